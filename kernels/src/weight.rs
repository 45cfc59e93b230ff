//! What a model does not train.

use std::sync::{Arc, OnceLock};

use strata_engine::{DType, Error, Gpu, Result, Tensor};

/// How the numbers of a [`Weight`] lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// One 32-bit float each.
    F32,
    /// One 16-bit float each.
    F16,
}

impl Storage {
    /// Numbers of this type, one after the other.
    ///
    /// # Errors
    /// The type is no float.
    pub fn of(dtype: DType) -> Result<Self> {
        match dtype {
            DType::F32 => Ok(Self::F32),
            DType::F16 => Ok(Self::F16),
            DType::U32 => Err(Error::op("weight", "u32 numbers are indices; a weight is f32 or f16")),
        }
    }

    /// The type in which kernels multiply with them. What a layer computes in, the model says.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
        }
    }
}

/// A frozen tensor of a model: a matrix `[out, in]`, a kernel `[out, KH, KW, in]`, a table or a vector. Clones share its memory,
/// and with it what ops prepared of it to be faster: so a recomputed block prepares nothing anew.
#[derive(Clone, Debug)]
pub struct Weight {
    data: Tensor,
    storage: Storage,
    /// [`conv2d`](crate::conv2d)'s kernel, transformed.
    prepared: Arc<OnceLock<Tensor>>,
}

impl Weight {
    /// Numbers that lie on the GPU already.
    ///
    /// # Errors
    /// They are no floats.
    pub fn new(data: Tensor) -> Result<Self> {
        Ok(Self { storage: Storage::of(data.dtype())?, data, prepared: Arc::default() })
    }

    /// `values` of this shape, on the GPU as `storage` has them.
    ///
    /// # Errors
    /// Another number of values than the shape has, or the GPU is out of memory.
    pub fn from_f32(gpu: &Gpu, values: &[f32], shape: &[usize], storage: Storage) -> Result<Self> {
        Self::new(Tensor::from_f32(gpu, values, shape, storage.dtype())?)
    }

    /// The numbers as they lie in memory.
    pub fn data(&self) -> &Tensor {
        &self.data
    }

    /// How they lie there.
    pub fn storage(&self) -> Storage {
        self.storage
    }

    /// Sizes of the axes, outermost first.
    pub fn shape(&self) -> &[usize] {
        self.data.shape()
    }

    /// What `make` gave the first time.
    pub(crate) fn prepared(&self, make: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
        if let Some(made) = self.prepared.get() {
            return Ok(made.clone());
        }
        let made = make()?;
        Ok(self.prepared.get_or_init(|| made).clone())
    }
}
