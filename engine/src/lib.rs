//! Arrays on a GPU, and how to go back through them.
//!
//! [`Gpu`] is an open GPU adapter, [`Tensor`] an array in its memory, [`Launch`] one dispatch of a WGSL kernel,
//! [`Tape`] the list of backward closures that ops push. This crate knows no op: those are in `strata-kernels`.
//! It is the only crate that names wgpu, and the only one allowed `unsafe`.

mod error;
mod gpu;
mod launch;
mod params;
mod pool;
mod readback;
mod shader;
mod tape;
mod tensor;
mod timing;

#[doc(hidden)]
pub use bytemuck;
pub use error::{Error, Result};
pub use gpu::{AdapterSummary, Caps, Gpu, GpuOptions, Stats};
pub use launch::{Launch, fold_grid};
pub use params::Params;
pub use shader::{Def, Feature, Shader, render};
pub use tape::{Grads, Tape};
pub use tensor::{DType, Tensor, TensorId};
pub use timing::LaunchTime;
