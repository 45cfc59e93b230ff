//! From a config to LoRA files: what is to be done, and the steps that do it.

mod attach;
mod class;
pub(crate) mod fingerprint;
pub(crate) mod init;
mod keys;
pub(crate) mod learner;
pub(crate) mod log;
pub(crate) mod loss;
pub(crate) mod loss_scale;
mod materials;
pub(crate) mod memory;
pub(crate) mod metadata;
pub(crate) mod optimizer;
pub(crate) mod plan;
pub(crate) mod pupil;
mod replaced;
pub(crate) mod resume;
pub(crate) mod run;
mod save;
pub(crate) mod schedule;
pub(crate) mod step;
mod tensorboard;
pub(crate) mod watch;
