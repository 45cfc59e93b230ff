//! The JSON configurations of a diffusers folder, read strictly.
//!
//! A key that changes the computation is either supported or refused by name; a key nobody here knows is refused
//! unless it is null or false. Missing keys get the default of the library that wrote the file (diffusers,
//! transformers), and keys that start with `_` are notes, not settings.

mod clip;
mod fields;
mod index;
mod scheduler;
mod unet;
mod vae;

pub use clip::{Act, ClipConfig, pooled_index};
pub use index::ModelIndex;
pub use scheduler::{BetaSchedule, PredictionType, SchedulerConfig, Spacing};
pub use unet::UnetConfig;
pub(crate) use unet::other_kind;
pub use vae::VaeConfig;
