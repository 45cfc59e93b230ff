//! Writing the tensors of a model, one at a time.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as MapEntry;
use std::io;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::Dtype;

use crate::tensor_file::{Chunk, TensorFile, header_of};
use crate::weights::Place;
use crate::{Error, Part, Result, write_atomic};

/// A layer: the part of the model, and its path there.
pub(super) type Layer = (Part, String);

/// A tensor to be written.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub name: String,
    pub shape: Vec<usize>,
    /// Where its numbers lie, one part after the other along the first axis.
    pub parts: Vec<Place>,
    /// Whose weights it has, where they are to be changed, and in which share of its rows.
    pub changes: Vec<(Chunk, Layer)>,
}

/// A file to be written.
pub(super) struct Output {
    pub path: PathBuf,
    pub entries: Vec<Entry>,
    pub metadata: BTreeMap<String, String>,
}

/// Files that are open.
#[derive(Default)]
pub(super) struct Files(BTreeMap<PathBuf, TensorFile>);

impl Files {
    pub fn get(&mut self, path: &Path) -> Result<&mut TensorFile> {
        Ok(match self.0.entry(path.to_owned()) {
            MapEntry::Occupied(open) => open.into_mut(),
            MapEntry::Vacant(new) => new.insert(TensorFile::open(path)?),
        })
    }

    /// The numbers of a place.
    pub fn read(&mut self, place: &Place) -> Result<Vec<f32>> {
        self.get(&place.file)?.read_part(&place.name, place.chunk)
    }

    /// Whether a place has numbers of at most 16 bits.
    pub fn is_half(&mut self, place: &Place) -> Result<bool> {
        Ok(self.dtype(place)?.bitsize() <= 16)
    }

    fn dtype(&mut self, place: &Place) -> Result<Dtype> {
        let missing = |path: &Path| Error::MissingTensor {
            path: path.into(),
            name: place.name.clone(),
            shape: Vec::new(),
        };
        let file = self.get(&place.file)?;
        file.tensors().get(&place.name).map(|info| info.dtype).ok_or_else(|| missing(file.path()))
    }
}

/// Adds to the weights of a layer what changes them.
pub(super) type Change<'a> = &'a mut dyn FnMut(&Layer, &mut [f32]) -> Result<()>;

impl Entry {
    /// The type that it is written in: `wanted`, for numbers; else its own, but where it is changed and this is narrower than
    /// F16, F16.
    fn dtype(&self, files: &mut Files, wanted: Option<Dtype>) -> Result<Dtype> {
        let mut own = None;
        for part in &self.parts {
            let dtype = files.dtype(part)?;
            own = Some(if own.is_none_or(|own| own == dtype) { dtype } else { Dtype::F32 });
        }
        // tables of the noise schedule, and marks, belong to no layer and keep what they have
        let wanted = wanted.filter(|_| self.name.contains('.'));
        Ok(match own.unwrap_or(Dtype::F32) {
            own @ (Dtype::F16 | Dtype::BF16 | Dtype::F32) => wanted.unwrap_or(own),
            Dtype::F8_E4M3 | Dtype::F8_E5M2 if wanted.is_some() || !self.changes.is_empty() => {
                wanted.unwrap_or(Dtype::F16)
            }
            Dtype::F64 if wanted.is_some() || !self.changes.is_empty() => wanted.unwrap_or(Dtype::F32),
            own => own,
        })
    }

    /// Its bytes in this type.
    fn bytes(&self, files: &mut Files, dtype: Dtype, change: Change<'_>) -> Result<Vec<u8>> {
        if let [part] = &self.parts[..]
            && part.chunk == Chunk::WHOLE
            && self.changes.is_empty()
            && files.dtype(part)? == dtype
        {
            return files.get(&part.file)?.bytes(&part.name);
        }
        let mut values = Vec::new();
        for part in &self.parts {
            values.extend(files.read(part)?);
        }
        for (rows, layer) in &self.changes {
            let length = values.len() / rows.of;
            change(layer, &mut values[rows.index * length..][..length])?;
        }
        let encoded: Vec<u8> = match dtype {
            Dtype::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
            Dtype::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        let most = if dtype == Dtype::F16 { f32::from(f16::MAX) } else { f32::MAX };
        match values.iter().find(|v| v.is_nan() || v.abs() > most) {
            Some(bad) => Err(Error::Lora(format!(
                "`{}` comes to hold {bad}, too large for {dtype}; take less of the LoRA, or write f32",
                self.name
            ))),
            None => Ok(encoded),
        }
    }
}

impl Output {
    /// How many bytes its tensors take.
    pub fn size(&self, files: &mut Files, dtype: Option<Dtype>) -> Result<u64> {
        let mut size = 0;
        for entry in &self.entries {
            let count = entry.shape.iter().product::<usize>();
            size += (count * entry.dtype(files, dtype)?.bitsize() / 8) as u64;
        }
        Ok(size)
    }

    /// Writes it whole or not at all; `tick` is called after each tensor.
    ///
    /// # Errors
    /// A tensor cannot be read, a value does not fit the type, or the file cannot be written.
    pub fn write(
        &self,
        files: &mut Files,
        dtype: Option<Dtype>,
        change: Change<'_>,
        mut tick: impl FnMut(),
    ) -> Result<()> {
        let mut entries = Vec::new();
        for entry in &self.entries {
            entries.push((entry.dtype(files, dtype)?, entry));
        }
        // each lies at a multiple of its numbers' size
        entries.sort_by(|(a, x), (b, y)| b.bitsize().cmp(&a.bitsize()).then_with(|| x.name.cmp(&y.name)));
        let tensors = entries.iter().map(|(dtype, entry)| (entry.name.as_str(), *dtype, entry.shape.clone()));
        let header =
            header_of(tensors, &self.metadata).map_err(|e| Error::file(&self.path, e.to_string()))?;
        let mut failed = None;
        let written = write_atomic(&self.path, |out| {
            out.write_all(&header)?;
            for (dtype, entry) in &entries {
                let bytes = entry.bytes(files, *dtype, change).map_err(|e| {
                    failed = Some(e);
                    io::Error::other("a tensor could not be made")
                })?;
                out.write_all(&bytes)?;
                tick();
            }
            Ok(())
        });
        failed.map_or(written, Err)
    }
}
