//! Pictures and captions in, a layered LoRA out.
//!
//! [`run`] goes the whole way: a [`Config`] is checked, the [`Dataset`] is brought into [`Latents`] and
//! [`Texts`], a [`Lesson`] takes the steps (`step.rs` says how one works), and LoRA files and a log come out.
//! [`lint`](lint::lint) says beforehand what is wrong with pictures and captions.
//! All chance comes from [`noise`], so that one seed always gives the same file.
//!
//! ```no_run
//! use strata_engine::{Gpu, GpuOptions};
//! use strata_trainer::{Config, Interrupt, run};
//!
//! let config = Config::load("run.toml".as_ref())?;
//! let summary = run(&Gpu::open(&GpuOptions::default())?, &config, None, &Interrupt::default())?;
//! println!("{:?}", summary.features[0].files);
//! # Ok::<(), strata_trainer::Error>(())
//! ```

mod config;
mod data;
mod error;
mod features;
mod inspection;
pub mod noise;
mod training;

pub use config::{
    Bank, Config, DatasetConfig, FeatureConfig, KeyConfig, LoraRule, Order, PreserveConfig, PreservePrompt,
    Resolution, SilenceConfig, Switch, TrainConfig,
};
pub use data::dataset::{Dataset, LeftOut, PICTURE_EXTENSIONS, Picture, Why, mirror};
pub use data::latents::{Latents, Posterior};
pub use data::tags::Tags;
pub use data::texts::Texts;
pub use error::{Error, Result};
pub use features::preserve::Preservation;
pub use features::silence;
pub use inspection::sheet::{Alignment, Sheet};
pub use inspection::{lint, probe};
pub use training::init::kaiming_uniform;
pub use training::learner::{Batch, Learner, Update};
pub use training::log::{StepLog, StepRecord};
pub use training::loss::{LossConfig, Losses};
pub use training::loss_scale::LossScale;
pub use training::memory::{Memory, measure};
pub use training::optimizer::{AdamW, Optimizer};
pub use training::pupil::Outcome;
pub use training::resume::Start;
pub use training::run::{Interrupt, Summary, run, run_from};
pub use training::schedule::{Schedule, ScheduleConfig};
pub use training::step::Lesson;
pub use training::watch::ProbeRecord;
