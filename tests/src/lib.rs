//! The harness behind the table of rows: what an op must do, checked one way for every op.
//!
//! A [`Row`] is an op at one shape. [`Expected`] is what its f64 reference says of it (output, gradients by central
//! differences under a random upstream gradient, where NaN must arrive), computed once; [`check`] holds a GPU adapter
//! to it. [`tolerance`] is the only place where closeness is decided.

mod check;
mod compare;
mod expected;
mod gpus;
mod random;
mod row;

pub use check::{Effort, check};
pub use compare::{compare, rms, tolerance};
pub use expected::{Expected, Probes};
pub use gpus::{Setup, coop, gpu, skipped};
pub use random::Random;
pub use row::{Input, Role, Row};
