//! The ops of Stable Diffusion on [`strata_engine`]: forward, backward, and a naive f64 reference each.
//!
//! Activations are NHWC, `[B, H, W, C]` or `[B, T, C]`; only the last axis matters to most ops. All float tensors of a
//! call have one type (f32 or f16) except biases, norm weights, gates, losses and LoRA gradients, which are f32 always.
//! Sums are f32 always. Every op checks shapes, launches, and records its way back on the tape.
//!
//! ```
//! use strata_engine::{DType, Gpu, GpuOptions, Tensor};
//! use strata_kernels::{matmul, tape};
//!
//! let gpu = Gpu::open(&GpuOptions::default())?;
//! let tensor = |values: &[f32]| Tensor::from_f32(&gpu, values, &[2, 2], DType::F32);
//! let (a, b) = (tensor(&[1.0, 2.0, 3.0, 4.0])?, tensor(&[0.0, 1.0, 1.0, 0.0])?);
//! let tape = tape();
//! tape.track(&a);
//! let c = matmul(&tape, &a, &b)?;
//! assert_eq!(c.to_f32()?, [2.0, 1.0, 4.0, 3.0]);
//! let grads = tape.backward(&c, tensor(&[1.0, 0.0, 0.0, 0.0])?)?;
//! assert_eq!(grads.get(&a).unwrap().to_f32()?, [0.0, 1.0, 0.0, 0.0]);
//! # Ok::<(), strata_engine::Error>(())
//! ```

mod attention;
mod blend;
mod bodies;
mod conv2d;
mod elementwise;
mod embedding;
mod frozen;
mod gemm;
mod group_norm;
mod image;
mod layer_norm;
mod linear;
mod matmul;
mod mse;
mod optimizer;
mod project;
mod tokens;
mod variants;
mod weight;
mod winograd;

pub use attention::{AttentionArgs, attention};
pub use blend::blend;
pub use bodies::{Bodies, bodies, use_bodies};
pub use conv2d::{ConvArgs, ConvShape, Padding, conv2d};
pub use elementwise::{Act, activation, add, cast, copy, geglu};
pub use embedding::{embedding, timestep_embedding};
pub use frozen::{Gate, Lora};
pub use gemm::{Choice, Tuning, tune, tuning_name, use_tuning};
pub use group_norm::{GroupNormArgs, group_norm};
pub use image::{concat, split, upsample_nearest};
pub use layer_norm::layer_norm;
pub use linear::{LinearArgs, linear};
pub use matmul::matmul;
pub use mse::mse;
pub use optimizer::{AdamW, adamw, grad_norm};
pub use project::{RowSet, project};
pub use variants::{Variant, variants};
pub use weight::{Storage, Weight};

/// The naive f64 twins of the ops: their specification.
pub mod reference {
    pub use crate::attention::reference as attention;
    pub use crate::blend::reference as blend;
    pub use crate::conv2d::reference as conv2d;
    pub use crate::elementwise::geglu_reference as geglu;
    pub use crate::frozen::LoraFactors;
    pub use crate::group_norm::reference as group_norm;
    pub use crate::image::{concat_reference as concat, upsample_reference as upsample_nearest};
    pub use crate::layer_norm::reference as layer_norm;
    pub use crate::linear::reference as linear;
    pub use crate::matmul::reference as matmul;
    pub use crate::mse::reference as mse;
    pub use crate::optimizer::reference as adamw;
    pub use crate::project::reference as project;
}

use strata_engine::{DType, Tape};

/// A tape that records, and sums gradients with [`add`].
pub fn tape() -> Tape {
    Tape::new(|a, b| add(&Tape::off(), a, b))
}

/// Types of x and of the output of a norm that occur: both alike, or a stream in f32 and the rest in f16.
const NORM_TYPES: [[DType; 2]; 3] =
    [[DType::F32, DType::F32], [DType::F16, DType::F16], [DType::F32, DType::F16]];
