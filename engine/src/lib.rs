//! Arrays on a GPU, and how to go back through them.
//!
//! [`Gpu`] is an open GPU adapter, [`Tensor`] an array in its memory, [`Launch`] one dispatch of a WGSL kernel,
//! [`Tape`] the list of backward closures that ops push. This crate knows no op: those are in `strata-kernels`.
//! It is the only crate that names wgpu, and the only one allowed `unsafe`.
//!
//! ```
//! use strata_engine::{DType, Gpu, GpuOptions, Tensor};
//!
//! let gpu = Gpu::open(&GpuOptions::default())?;
//! let x = Tensor::from_f32(&gpu, &[1.0, 2.0, 3.0], &[3], DType::F16)?;
//! assert_eq!(x.to_f32()?, [1.0, 2.0, 3.0]);
//! # Ok::<(), strata_engine::Error>(())
//! ```
//!
//! `examples/matmul.rs` makes an op with its gradient.

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
pub use shader::{Def, Extension, Shader, render};
pub use tape::{Grads, Tape};
pub use tensor::{DType, Tensor, TensorId};
pub use timing::LaunchTime;
