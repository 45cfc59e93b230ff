//! What kernels and whole steps take at the shapes of Stable Diffusion 1.5, on the GPU's own clock, and how that compares with
//! what the same GPU can do at best.
//!
//! [`list`] names kernels, [`run`] times them, a U-Net's forward pass and training step, VAE and CLIP, all on random weights,
//! and makes a [`Report`]. [`roofline`] draws it.

mod case;
mod clock;
mod compare;
mod models;
mod ops;
mod report;
mod roofline;
mod run;

pub use case::Case;
pub use compare::{Change, compare};
pub use report::{Ceilings, Device, Kernel, Report, Row};
pub use roofline::roofline;
pub use run::{Options, list, run, tune};
