//! The config of a run: a TOML file in which every key has a default and no key is ever ignored.
//!
//! [`Config::default_toml`] prints all of it with comments, and is the reference of the format. Each table has a file
//! here, which declares its keys; what the optimizer, the learning rate's schedule and the loss are set by is declared
//! where these are.

pub(crate) mod check;
mod dataset;
mod feature;
mod key;
mod lora;
pub(crate) mod parse;
mod preserve;
mod print;
mod run;
pub(crate) mod section;
mod silence;
mod train;
pub(crate) mod value;

pub use dataset::{DatasetConfig, Resolution};
pub use feature::FeatureConfig;
pub use key::KeyConfig;
pub use lora::LoraRule;
pub use preserve::{PreserveConfig, PreservePrompt};
pub use run::{Config, Order};
pub use section::Switch;
pub use silence::{Bank, SilenceConfig};
pub use train::TrainConfig;
