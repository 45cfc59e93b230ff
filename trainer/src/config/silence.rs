//! The silent subspace: `[feature.silence]`.

use std::path::{Path, PathBuf};

use toml::de::DeValue;

use super::check::within;
use super::section::section;
use super::value::Value;

/// More than the channels of any text encoder of Stable Diffusion.
const MAX_RANK: usize = 4096;

section! {
    /// The silent subspace.
    pub struct SilenceConfig: "keys and values of the text stay the base model's without the tag" {
        /// Ordinary prompts. Default: Strata's own.
        bank: Bank = Bank::Default, "\"default\", or a file with one prompt a line",
            // the prompts themselves do
            decides false;
        /// Directions, beside that of the first token, which `down` is kept free of. Default 2.
        ///
        /// The default stands at the knee of what was measured on the portrait model (benches/results,
        /// portraits-frontier): the most directions for which both features keep their loss within 15 % of a plain
        /// LoRA's. They silence the empty prompt by a factor of 46 and more. Those after them cost learning and do not
        /// lessen the leak: they hold more of what prompts with the tag say than of what other prompts do.
        rank: usize = 2, "directions of ordinary text to be deaf to; more costs learning; with a key, key.rank counts",
            check within(0, MAX_RANK);
        /// Also keep it free of what earlier features read. Default `false`.
        disjoint: bool = false, "also deaf to what earlier features hear";
    }
}

/// Ordinary prompts: `"default"`, or a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bank {
    /// Strata's own.
    Default,
    /// A file with one prompt a line.
    File(PathBuf),
}

impl Value for Bank {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        match value.as_str() {
            Some("default") => Ok(Self::Default),
            Some(file) if !file.is_empty() => Ok(Self::File(file.into())),
            _ => Err("must be \"default\" or a file".to_owned()),
        }
    }

    fn print(&self) -> Option<String> {
        match self {
            Self::Default => "default".to_owned().print(),
            Self::File(file) => file.print(),
        }
    }

    fn relocate(&mut self, folder: &Path) {
        if let Self::File(file) = self {
            file.relocate(folder);
        }
    }
}

impl SilenceConfig {
    /// The file of prompts, where it is not Strata's own bank.
    pub fn bank_file(&self) -> Option<&Path> {
        match &self.bank {
            Bank::Default => None,
            Bank::File(file) => Some(file),
        }
    }
}
