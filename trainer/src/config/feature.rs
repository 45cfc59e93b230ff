//! Features: what a run teaches, each with tags, pictures and layers of its own.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Config, DatasetConfig, LoraRule};

/// How the features of a run are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// One after the other, in the order of the config.
    Staged,
    /// Side by side: in each step each feature learns from samples of its own.
    Joint,
}

/// Something that pictures have in common, to be learned by some layers and called by a tag.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FeatureConfig {
    /// Names the feature and its files.
    pub name: String,
    /// Words that call it; every caption must carry one of them.
    pub tags: Vec<String>,
    /// What ordinary people call such a thing (`hair`); stands in for the tag in preservation prompts. Default: nothing.
    pub class: String,
    /// Words that say what the feature is, which captions should leave out. For `strata dataset check`.
    pub describes: Vec<String>,
    /// Its LoRA, a `.safetensors` file. Default: the run's `output` with `-NAME` after its stem.
    pub output: Option<PathBuf>,
    /// Updates, instead of `train.steps`.
    pub steps: Option<u64>,
    /// Factor on its loss. Default 1.
    pub loss_weight: f64,
    /// Staged: earlier features are attached, frozen and gated by their tags, while this one learns. Default `true`.
    pub with_frozen: bool,
    /// Its pictures.
    pub dataset: DatasetConfig,
    /// The layers that learn it. Default: one rule, `attn` with rank 8 and alpha 8.
    pub lora: Vec<LoraRule>,
    /// Keeps cross-attention's keys and values silent on ordinary text. Default: off.
    pub silence: Option<SilenceConfig>,
    /// Trains the model to stay as it was on prompts without the tag. Default: off.
    pub preserve: Option<PreserveConfig>,
}

/// The silent subspace.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SilenceConfig {
    /// `default`, or a file with one prompt a line. Default `default`.
    pub bank: String,
    /// Directions, beside that of the first token, which `down` is kept free of. Default 2.
    pub rank: usize,
    /// Also keep it free of what earlier features read. Default `false`.
    pub disjoint: bool,
}

/// The preservation loss.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PreserveConfig {
    /// Factor on ‖ε_LoRA − ε_base‖² over prompts without the tag. Default 1.
    pub weight: f64,
    /// Preserved samples for each sample that is learned from. Default 1.
    pub share: f64,
    /// Kinds of prompts, all equally likely. Default: all five.
    pub prompts: Vec<PreservePrompt>,
}

/// A kind of prompt without the tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PreservePrompt {
    /// The caption without its tag.
    Untagged,
    /// The caption with the class in the tag's place.
    Class,
    /// Nothing.
    Empty,
    /// The caption with another feature's tag in the tag's place.
    Others,
    /// An ordinary prompt of Strata's own.
    Bank,
}

impl PreservePrompt {
    /// All of them, by their names in a config.
    pub const ALL: [(&'static str, Self); 5] = [
        ("untagged", Self::Untagged),
        ("class", Self::Class),
        ("empty", Self::Empty),
        ("others", Self::Others),
        ("bank", Self::Bank),
    ];
}

impl Default for FeatureConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            tags: Vec::new(),
            class: String::new(),
            describes: Vec::new(),
            output: None,
            steps: None,
            loss_weight: 1.0,
            with_frozen: true,
            dataset: DatasetConfig::default(),
            lora: vec![LoraRule::default()],
            silence: None,
            preserve: None,
        }
    }
}

impl Default for SilenceConfig {
    /// The rank stands at the knee of what was measured on the portrait model (benches/results, portraits-frontier): the
    /// most directions for which both features keep their loss within 15 % of a plain LoRA's. They silence the empty
    /// prompt by a factor of 46 and more. Those after them cost learning and do not lessen the leak: they hold more of
    /// what prompts with the tag say than of what other prompts do.
    fn default() -> Self {
        Self { bank: "default".into(), rank: 2, disjoint: false }
    }
}

impl Default for PreserveConfig {
    fn default() -> Self {
        Self { weight: 1.0, share: 1.0, prompts: PreservePrompt::ALL.map(|(_, kind)| kind).to_vec() }
    }
}

impl PreserveConfig {
    /// How many samples are preserved beside so many that are learned from.
    pub(crate) fn samples(&self, learned: usize) -> usize {
        ((learned as f64 * self.share).round() as usize).max(1)
    }
}

impl SilenceConfig {
    /// The file of prompts, where it is not Strata's own bank.
    pub fn bank_file(&self) -> Option<&Path> {
        (self.bank != "default").then(|| Path::new(&self.bank))
    }
}

impl Config {
    /// What the run teaches. A config without `[[feature]]` is one feature that has no name and no tag.
    pub fn features(&self) -> Vec<FeatureConfig> {
        let own = |feature: &FeatureConfig| {
            let stem = self.output.file_stem().unwrap_or_default().to_string_lossy();
            let output = self.output.with_file_name(format!("{stem}-{}.safetensors", feature.name));
            FeatureConfig { output: feature.output.clone().or(Some(output)), ..feature.clone() }
        };
        if !self.feature.is_empty() {
            return self.feature.iter().map(own).collect();
        }
        let (dataset, lora, output) = (self.dataset.clone(), self.lora.clone(), Some(self.output.clone()));
        vec![FeatureConfig { dataset, lora, output, ..FeatureConfig::default() }]
    }

    /// Updates of a feature's LoRA.
    pub fn steps_of(&self, feature: &FeatureConfig) -> u64 {
        feature.steps.unwrap_or(self.train.steps)
    }
}

impl FeatureConfig {
    /// Its LoRA file, of a feature that comes from [`Config::features`].
    pub fn file(&self) -> &Path {
        self.output.as_deref().unwrap_or(Path::new("lora.safetensors"))
    }
}
