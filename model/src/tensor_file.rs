//! One safetensors file, open: the header is checked once, tensors are read from disk one at a time.
//!
//! Layout: 8 bytes little-endian header length, JSON header, raw little-endian data. Reads are plain seeks rather than
//! a memory map: a map needs `unsafe` and turns a file that shrinks under us into a crash instead of an error.

use crate::{Error, Result, sniff, write_atomic};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// The longest header accepted, as in every other reader of the format.
const MAX_HEADER: u64 = 100_000_000;

/// How much is read at once: a multiple of every number's size.
const READ_BYTES: usize = 1 << 20;

/// An open safetensors file.
pub struct TensorFile {
    path: PathBuf,
    file: File,
    data_start: u64,
    tensors: BTreeMap<String, TensorInfo>,
    metadata: BTreeMap<String, String>,
}

impl TensorFile {
    /// Opens `path` and checks its header against the file's length.
    ///
    /// # Errors
    /// The file cannot be opened, is a device, no safetensors file, is damaged, or is shorter or longer than its header says.
    pub fn open(path: &Path) -> Result<Self> {
        // a pipe may have no end, nor even a beginning
        if path.exists() && !path.is_file() && !path.is_dir() {
            return Err(Error::file(path, sniff::NO_FILE));
        }
        let mut file = File::open(path).map_err(Error::io("open", path))?;
        let length = file.metadata().map_err(Error::io("open", path))?.len();
        let mut start = Vec::new();
        Read::by_ref(&mut file)
            .take(sniff::ENOUGH)
            .read_to_end(&mut start)
            .map_err(Error::io("read", path))?;
        let header_length = start.first_chunk().map_or(u64::MAX, |prefix| u64::from_le_bytes(*prefix));
        if header_length > MAX_HEADER.min(length.saturating_sub(8)) {
            return Err(Error::file(
                path,
                match sniff::by_bytes(&start) {
                    Some(found) => format!("not a safetensors file, but {found}"),
                    None if header_length > MAX_HEADER => {
                        "not a safetensors file: it begins with no header".into()
                    }
                    None => format!(
                        "cut off: a header of {header_length} bytes in a file of {length}; fetch it again"
                    ),
                },
            ));
        }
        let mut header = vec![0; header_length as usize];
        file.seek(SeekFrom::Start(8))
            .and_then(|_| file.read_exact(&mut header))
            .map_err(Error::io("read", path))?;
        let header: Metadata = serde_json::from_slice(&header)
            .map_err(|e| Error::file(path, format!("damaged safetensors header: {e}")))?;

        let data_start = 8 + header_length;
        let expected = data_start + header.data_len() as u64;
        if length != expected {
            let message = format!(
                "{length} bytes, but its header describes {expected}: cut off while copying? fetch it again"
            );
            return Err(Error::file(path, message));
        }
        Ok(Self {
            path: path.into(),
            file,
            data_start,
            tensors: header.tensors().into_iter().map(|(name, info)| (name, info.clone())).collect(),
            metadata: header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect(),
        })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every tensor's dtype, shape and place, by name.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// The header's free-form `__metadata__`.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Reads one tensor as f32, row-major.
    ///
    /// # Errors
    /// No such tensor, a dtype other than F8_E4M3, F8_E5M2, F16, BF16, F32, F64 or I64, a value that is NaN or infinite, or the
    /// read fails.
    pub fn read(&mut self, name: &str) -> Result<Vec<f32>> {
        self.read_part(name, Chunk::WHOLE)
    }

    /// The bytes of a tensor as they are.
    ///
    /// # Errors
    /// No such tensor, or the read fails.
    pub(crate) fn bytes(&mut self, name: &str) -> Result<Vec<u8>> {
        let Some(info) = self.tensors.get(name) else {
            return Err(Error::MissingTensor {
                path: self.path.clone(),
                name: name.into(),
                shape: Vec::new(),
            });
        };
        let (start, end) = info.data_offsets;
        let mut bytes = vec![0; end - start];
        let at = SeekFrom::Start(self.data_start + start as u64);
        self.file
            .seek(at)
            .and_then(|_| self.file.read_exact(&mut bytes))
            .map_err(Error::io("read", &self.path))?;
        Ok(bytes)
    }

    /// Reads a part of a tensor, see [`read`](Self::read). Bytes are converted as they come, so that host memory holds little
    /// more than the numbers that are returned.
    pub(crate) fn read_part(&mut self, name: &str, chunk: Chunk) -> Result<Vec<f32>> {
        let Some(info) = self.tensors.get(name) else {
            return Err(Error::MissingTensor {
                path: self.path.clone(),
                name: name.into(),
                shape: Vec::new(),
            });
        };
        let convert: fn(&[u8], &mut [f32]) = match info.dtype {
            Dtype::F8_E4M3 => |bytes, to| each(bytes, to, |[byte]| e4m3(byte)),
            // the upper half of an f16
            Dtype::F8_E5M2 => |bytes, to| each(bytes, to, |[byte]| f16::from_le_bytes([0, byte]).to_f32()),
            Dtype::F16 => |bytes, to| widen(bytes, to, f16::from_le_bytes),
            Dtype::BF16 => |bytes, to| widen(bytes, to, bf16::from_le_bytes),
            Dtype::F32 => |bytes, to| each(bytes, to, f32::from_le_bytes),
            Dtype::F64 => |bytes, to| each(bytes, to, |b| f64::from_le_bytes(b) as f32),
            // alphas, from diffusers' own converter to kohya's names
            Dtype::I64 => |bytes, to| each(bytes, to, |b| i64::from_le_bytes(b) as f32),
            other => {
                return Err(Error::TensorDtype {
                    path: self.path.clone(),
                    name: name.into(),
                    dtype: format!("{other:?}"),
                });
            }
        };
        let (size, count) = (info.dtype.bitsize() / 8, info.shape.iter().product::<usize>() / chunk.of);
        let start = self.data_start + (info.data_offsets.0 + chunk.index * count * size) as u64;
        let (mut values, mut bytes) = (vec![0.0; count], vec![0; READ_BYTES.min(count * size)]);
        self.file.seek(SeekFrom::Start(start)).map_err(Error::io("read", &self.path))?;
        for to in values.chunks_mut(READ_BYTES / size) {
            let bytes = &mut bytes[..to.len() * size];
            self.file.read_exact(bytes).map_err(Error::io("read", &self.path))?;
            convert(bytes, to);
        }
        let bad = values.iter().filter(|value| !value.is_finite()).count();
        if bad > 0 {
            let message = format!(
                "tensor `{name}` is broken: {bad} of its {} values are NaN or infinite; the file is damaged, or what made \
                 it diverged: fetch or make it again",
                values.len()
            );
            return Err(Error::file(&self.path, message));
        }
        Ok(values)
    }
}

/// One of several equal parts of a tensor along its first axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub index: usize,
    pub of: usize,
}

impl Chunk {
    /// All of it.
    pub const WHOLE: Self = Self { index: 0, of: 1 };
}

/// Bytes to numbers, one by one.
fn each<const N: usize>(bytes: &[u8], to: &mut [f32], number: fn([u8; N]) -> f32) {
    to.iter_mut().zip(bytes.as_chunks().0).for_each(|(to, bytes)| *to = number(*bytes));
}

/// 16-bit numbers to f32. Whole slices at a time, for which the processor has instructions.
fn widen<H>(bytes: &[u8], to: &mut [f32], number: fn([u8; 2]) -> H)
where
    [H]: HalfFloatSliceExt,
{
    let halves = bytes.as_chunks().0.iter().map(|bytes| number(*bytes));
    halves.collect::<Vec<H>>().convert_to_f32_slice(to);
}

/// Four bits of exponent, biased by 7, and three of mantissa; no infinity, and one NaN of each sign.
fn e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let magnitude = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * 2_f32.powi(-9),
        _ => (8.0 + mantissa) * 2_f32.powi(exponent - 10),
    };
    if byte & 0x80 == 0 { magnitude } else { -magnitude }
}

/// The header (length word included, padded to 8 bytes) of a file whose tensors, in name order, have one dtype and
/// lie without gaps. Keys are sorted, so equal contents give equal bytes; the safetensors crate keeps `__metadata__`
/// in a hash map, whose order changes from run to run.
///
/// # Errors
/// The header cannot be written as JSON.
pub fn header<'a>(
    dtype: Dtype,
    tensors: impl IntoIterator<Item = (&'a str, Vec<usize>)>,
    metadata: &BTreeMap<String, String>,
) -> serde_json::Result<Vec<u8>> {
    header_of(tensors.into_iter().map(|(name, shape)| (name, dtype, shape)), metadata)
}

/// As [`header`], of tensors that have a dtype each.
///
/// # Errors
/// As [`header`].
pub(crate) fn header_of<'a>(
    tensors: impl IntoIterator<Item = (&'a str, Dtype, Vec<usize>)>,
    metadata: &BTreeMap<String, String>,
) -> serde_json::Result<Vec<u8>> {
    let mut json = String::from("{");
    let mut separator = "";
    if !metadata.is_empty() {
        json += &format!("\"__metadata__\":{}", serde_json::to_string(metadata)?);
        separator = ",";
    }
    let mut offset = 0;
    for (name, dtype, shape) in tensors {
        let end = offset + shape.iter().product::<usize>() * dtype.bitsize() / 8;
        let info = TensorInfo { dtype, shape, data_offsets: (offset, end) };
        json += &format!("{separator}{}:{}", serde_json::to_string(name)?, serde_json::to_string(&info)?);
        (offset, separator) = (end, ",");
    }
    json.push('}');
    json.extend(std::iter::repeat_n(' ', json.len().next_multiple_of(8) - json.len()));
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    Ok(bytes)
}

/// Tensors by name, each with its shape and its values, row-major.
pub type F32s = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Writes tensors as F32, the file whole or not at all. Equal contents give equal bytes.
///
/// # Errors
/// The file cannot be written.
pub fn write_f32s(path: &Path, tensors: &F32s) -> Result<()> {
    let shapes = tensors.iter().map(|(name, (shape, _))| (name.as_str(), shape.clone()));
    let header =
        header(Dtype::F32, shapes, &BTreeMap::new()).map_err(|e| Error::file(path, e.to_string()))?;
    write_atomic(path, |out| {
        out.write_all(&header)?;
        tensors.values().try_for_each(|(_, values)| {
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            out.write_all(&bytes)
        })
    })
}

/// The sharded form: `*.safetensors.index.json`, whose `weight_map` says which file holds which tensor.
#[derive(serde::Deserialize)]
pub(crate) struct ShardIndex {
    pub weight_map: HashMap<String, String>,
}

#[cfg(test)]
mod tests {
    use super::e4m3;

    #[test]
    fn eight_bits() {
        let cases =
            [(0x00, 0.0), (0x38, 1.0), (0xb8, -1.0), (0x01, 2_f32.powi(-9)), (0x7e, 448.0), (0x3c, 1.5)];
        cases.into_iter().for_each(|(byte, value)| assert_eq!(e4m3(byte), value));
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan());
    }
}
