//! From a config to LoRA files: what is to be done, and the steps that do it.

pub(crate) mod fingerprint;
pub(crate) mod init;
mod keys;
pub(crate) mod learner;
pub(crate) mod log;
pub(crate) mod loss;
pub(crate) mod loss_scale;
pub(crate) mod memory;
pub(crate) mod metadata;
pub(crate) mod optimizer;
pub(crate) mod plan;
pub(crate) mod pupil;
mod replaced;
pub(crate) mod run;
pub(crate) mod schedule;
pub(crate) mod step;
mod tensorboard;
pub(crate) mod watch;
