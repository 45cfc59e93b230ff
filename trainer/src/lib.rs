//! Pictures and captions in, a layered LoRA out.
//!
//! [`run`] goes the whole way: a [`Config`] is checked, the [`Dataset`] is brought into a [`Cache`] of latents and
//! text states, a [`Trainer`] takes the steps (`step.rs` says how one works), and LoRA files and a log come out.
//! [`lint`](lint::lint) says beforehand what is wrong with pictures and captions.
//! All chance comes from [`noise`], so that one seed always gives the same file.

mod cache;
mod config;
mod dataset;
mod error;
mod init;
pub mod lint;
mod log;
mod loss_scale;
mod metadata;
pub mod noise;
pub mod probe;
mod run;
pub mod silence;
mod step;

pub use cache::{Cache, Posterior};
pub use config::{Config, DatasetConfig, LoraRule, Precision, Resolution, Schedule, TrainConfig};
pub use dataset::{Dataset, PICTURE_EXTENSIONS, Picture, mirror};
pub use error::{Error, Result};
pub use init::kaiming_uniform;
pub use log::{StepLog, StepRecord};
pub use loss_scale::LossScale;
pub use run::{Summary, run, storage_dtype};
pub use step::{Batch, Learner, Trainer, Update, UpdateArgs};
