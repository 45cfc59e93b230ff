//! An array in GPU memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::pool::{Block, GUARD_BYTES, GUARD_WORD};
use crate::{Error, Gpu, Result};

/// Element type of a tensor's storage. Kernels always accumulate in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float.
    F32,
    /// 16-bit float.
    F16,
    /// Unsigned index.
    U32,
}

impl DType {
    /// Bytes of one element.
    pub fn bytes(self) -> u64 {
        match self {
            DType::F16 => 2,
            DType::F32 | DType::U32 => 4,
        }
    }

    /// The WGSL type.
    pub fn wgsl(self) -> &'static str {
        match self {
            DType::F16 => "f16",
            DType::F32 => "f32",
            DType::U32 => "u32",
        }
    }
}

/// Names the content of a tensor: clones and reshapes keep it, so a tape can follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorId(u64);

impl TensorId {
    fn fresh() -> TensorId {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        TensorId(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// An array in GPU memory, dense and row-major. Cloning shares the memory.
#[derive(Clone)]
pub struct Tensor {
    pub(crate) gpu: Gpu,
    pub(crate) block: Arc<Block>,
    /// Byte offset of the first element in the block.
    pub(crate) offset: u64,
    shape: Vec<usize>,
    dtype: DType,
    id: TensorId,
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor({:?} {})", self.shape, self.dtype.wgsl())
    }
}

impl Tensor {
    /// A tensor whose content is undefined (NaN, with guard words behind it, in debug mode).
    pub fn empty(gpu: &Gpu, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let bytes = byte_len(shape, dtype);
        let guard = if gpu.debug() { GUARD_BYTES } else { 0 };
        let tensor = Tensor {
            gpu: gpu.clone(),
            block: gpu.block(bytes + guard)?,
            offset: 0,
            shape: shape.to_vec(),
            dtype,
            id: TensorId::fresh(),
        };
        if gpu.debug() {
            // all ones is a NaN both as f32 and as two f16
            let mut words = vec![u32::MAX; (bytes / 4) as usize];
            words.resize(((bytes + guard) / 4) as usize, GUARD_WORD);
            tensor.write_bytes(bytemuck::cast_slice(&words));
        }
        Ok(tensor)
    }

    /// Whether a launch could bind such a tensor as a whole.
    pub fn bindable(gpu: &Gpu, shape: &[usize], dtype: DType) -> bool {
        let guard = if gpu.debug() { GUARD_BYTES } else { 0 };
        byte_len(shape, dtype) + guard <= gpu.caps().max_binding
    }

    /// A tensor of zeros.
    pub fn zeros(gpu: &Gpu, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let tensor = Tensor::empty(gpu, shape, dtype)?;
        tensor.fill_zero();
        Ok(tensor)
    }

    /// A tensor holding `values`, rounded to `dtype` (to nearest even for f16).
    pub fn from_f32(gpu: &Gpu, values: &[f32], shape: &[usize], dtype: DType) -> Result<Tensor> {
        let count: usize = shape.iter().product();
        if count != values.len() {
            return Err(Error::op(
                "upload",
                format!("{} values for shape {shape:?}, which holds {count}", values.len()),
            ));
        }
        let tensor = Tensor::empty(gpu, shape, dtype)?;
        tensor.write(values)?;
        Ok(tensor)
    }

    /// A tensor of indices.
    pub fn from_u32(gpu: &Gpu, values: &[u32], shape: &[usize]) -> Result<Tensor> {
        let count: usize = shape.iter().product();
        if count != values.len() {
            return Err(Error::op(
                "upload",
                format!("{} indices for shape {shape:?}, which holds {count}", values.len()),
            ));
        }
        let tensor = Tensor::empty(gpu, shape, DType::U32)?;
        tensor.write_bytes(bytemuck::cast_slice(values));
        Ok(tensor)
    }

    /// Overwrites the content with `values`, rounded to the tensor's dtype.
    pub fn write(&self, values: &[f32]) -> Result<()> {
        if values.len() != self.len() {
            return Err(Error::op(
                "upload",
                format!("{} values into {:?}, which holds {}", values.len(), self.shape, self.len()),
            ));
        }
        match self.dtype {
            DType::F32 => self.write_bytes(bytemuck::cast_slice(values)),
            DType::F16 => {
                let mut halves = vec![half::f16::ZERO; values.len().next_multiple_of(2)];
                half::slice::HalfFloatSliceExt::convert_from_f32_slice(&mut halves[..values.len()], values);
                self.write_bytes(bytemuck::cast_slice(&halves));
            }
            DType::U32 => return Err(Error::op("upload", "float values into a u32 tensor")),
        }
        Ok(())
    }

    fn write_bytes(&self, bytes: &[u8]) {
        // a queue write lands before everything in the next submit, so what was launched so far goes first
        self.gpu.flush();
        self.gpu.0.queue.write_buffer(&self.block.buffer, self.offset, bytes);
    }

    /// Sets every element to zero, in order with the launches around it.
    pub fn fill_zero(&self) {
        self.gpu.recorder().clear(
            &self.gpu.0,
            &self.block.buffer,
            self.offset,
            byte_len(&self.shape, self.dtype),
        );
    }

    /// The same content under another shape of as many elements.
    pub fn reshape(&self, shape: &[usize]) -> Result<Tensor> {
        if shape.iter().product::<usize>() != self.len() {
            return Err(Error::op(
                "reshape",
                format!("{:?} holds {} elements, {shape:?} does not", self.shape, self.len()),
            ));
        }
        Ok(Tensor { shape: shape.to_vec(), ..self.clone() })
    }

    /// A tensor on part of this one's memory, from element `start`, with an identity of its own.
    ///
    /// # Errors
    /// When the part reaches past the end, its first byte is not a multiple of 256 (a binding must start there), or it ends
    /// within a word that is not the tensor's last.
    pub fn view(&self, start: usize, shape: &[usize]) -> Result<Tensor> {
        let count: usize = shape.iter().product();
        let offset = self.offset + start as u64 * self.dtype.bytes();
        let end = start + count;
        // the host writes whole words, and half of the last would be the next part's
        let whole = (self.dtype.bytes() * end as u64).is_multiple_of(4) || end == self.len();
        if end > self.len() || !offset.is_multiple_of(256) || !whole {
            return Err(Error::op(
                "view",
                format!("elements {start}..{end} of {:?} {}", self.shape, self.dtype.wgsl()),
            ));
        }
        Ok(Tensor { offset, shape: shape.to_vec(), id: TensorId::fresh(), ..self.clone() })
    }

    /// The GPU adapter the tensor lives on.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Sizes of the axes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the tensor has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size of the last axis.
    pub fn last(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Elements divided by the size of the last axis: how many rows a `[…, channels]` tensor has.
    pub fn rows(&self) -> usize {
        self.len() / self.last().max(1)
    }

    /// Storage type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The content's name.
    pub fn id(&self) -> TensorId {
        self.id
    }

    /// Bytes a binding of this tensor spans; in debug mode the guard words too, so that an overrun shows.
    pub(crate) fn binding_bytes(&self) -> u64 {
        let guard = if self.gpu.debug() && self.offset == 0 { GUARD_BYTES } else { 0 };
        byte_len(&self.shape, self.dtype) + guard
    }
}

/// Bytes of a tensor's content, a multiple of 4 (copies and bindings work in words).
pub(crate) fn byte_len(shape: &[usize], dtype: DType) -> u64 {
    (shape.iter().product::<usize>() as u64 * dtype.bytes()).next_multiple_of(4).max(4)
}
