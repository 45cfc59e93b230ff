//! Pictures and captions in, a layered LoRA out.
//!
//! [`run`] goes the whole way: a [`Config`] is checked, the [`Dataset`] is brought into [`Latents`] and
//! [`Texts`], a [`Trainer`] takes the steps (`step.rs` says how one works), and LoRA files and a log come out.
//! [`lint`](lint::lint) says beforehand what is wrong with pictures and captions.
//! All chance comes from [`noise`], so that one seed always gives the same file.

mod cache;
mod config;
mod dataset;
mod error;
mod init;
mod learner;
pub mod lint;
mod log;
mod loss_scale;
mod memory;
mod metadata;
pub mod noise;
mod plan;
mod preserve;
pub mod probe;
pub mod progress;
mod run;
mod save;
mod sheet;
pub mod silence;
mod step;
mod tags;
mod tensorboard;
mod watch;

pub use cache::{Latents, Posterior, Texts};
pub use config::{
    Config, DatasetConfig, FeatureConfig, LoraRule, Order, Precision, PreserveConfig, PreservePrompt,
    Resolution, Schedule, SilenceConfig, TrainConfig,
};
pub use dataset::{Dataset, PICTURE_EXTENSIONS, Picture, mirror};
pub use error::{Error, Result};
pub use init::kaiming_uniform;
pub use learner::{Batch, Learner, Losses, Update, UpdateArgs};
pub use log::{StepLog, StepRecord};
pub use loss_scale::LossScale;
pub use memory::{Memory, measure};
pub use preserve::Preservation;
pub use run::{Outcome, Summary, run, storage_dtype};
pub use sheet::{Alignment, Sheet, png, rgb};
pub use step::{Lesson, Trainer};
pub use tags::Tags;
pub use watch::ProbeRecord;
