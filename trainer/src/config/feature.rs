//! Features: what a run teaches, each with tags, pictures and layers of its own. `[[feature]]`.

use std::path::{Path, PathBuf};

use super::check::{Problem, if_set, lora_file, positive, require, within};
use super::section::section;
use super::train::MAX_STEPS;
use super::{DatasetConfig, KeyConfig, LoraRule, PreserveConfig, SilenceConfig, Switch};

section! {
    /// Something that pictures have in common, to be learned by some layers and called by a tag.
    pub struct FeatureConfig: "something to learn; repeat the table for others" {
        /// Names the feature and its files.
        name: String = String::new(), "names its files", check file_stem;
        /// Words that call it; every caption must carry one of them.
        tags: Vec<String> = Vec::new(), "words that call it; every caption carries one of them",
            check tags, also "tag" "trigger" "trigger_word" "instance_prompt";
        /// What ordinary people call such a thing (`hair`); stands in for the tag in preservation prompts. Default:
        /// nothing.
        class: String = String::new(), "what such a thing is called; may stand in for the tag",
            also "class_prompt" "class_tokens";
        /// Words that say what the feature is, which captions should leave out. For `strata dataset check`.
        describes: Vec<String> = Vec::new(), "words that captions should leave out", decides false;
        /// Its LoRA, a `.safetensors` file. Default: the run's `output` with `-NAME` after its stem.
        output: Option<PathBuf> = None,
            example |f: &FeatureConfig| PathBuf::from(format!("lora-{}.safetensors", f.name)),
            "its LoRA; default: named after the run's output",
            check if_set(lora_file), decides false;
        /// Updates, instead of `train.steps`.
        steps: Option<u64> = None, example |_| 1000_u64, "updates; default: train.steps",
            check if_set(within(1, MAX_STEPS)),
            // the number that holds does, wherever it comes from
            decides false;
        /// Factor on its loss. Default 1.
        loss_weight: f64 = 1.0, "factor on its loss", check positive;
        /// Staged: earlier features are attached, frozen and gated by their tags, while this one learns. Default `true`.
        with_frozen: bool = true, "staged: learn beside earlier features, which are frozen";
        /// Gives the tag word vectors of its own, and makes the LoRA deaf to all else. Default: on where there is a tag and layers
        /// that read the text.
        key: Switch<KeyConfig> => table;
        /// Keeps cross-attention's keys and values silent on ordinary text. Default: off.
        silence: Option<SilenceConfig> => table;
        /// Trains the model to stay as it was on prompts without the tag. Default: off.
        preserve: Option<PreserveConfig> => table;
        /// Its pictures.
        dataset: DatasetConfig => table;
        /// The layers that learn it. Default: one rule, `attn` with rank 8 and alpha 8.
        lora: Vec<LoraRule> => table = vec![LoraRule::default()];
    }
    together FeatureConfig::check_together;
}

fn file_stem(name: &str) -> Result<(), String> {
    let simple = |c: char| c.is_alphanumeric() || "_-.".contains(c);
    let named = !name.is_empty() && name.chars().all(simple) && !name.starts_with('.');
    require(named, "must be letters, digits, `_`, `-` and `.`, as files are named after it")
}

fn tags(tags: &[String]) -> Result<(), String> {
    let named = !tags.is_empty() && tags.iter().all(|tag| !tag.trim().is_empty());
    require(named, "must name at least one tag; a feature without one could not be called")
}

impl FeatureConfig {
    /// Its LoRA file, of a feature that comes from [`Config::features`](super::Config::features).
    pub fn file(&self) -> &Path {
        self.output.as_deref().unwrap_or(Path::new("lora.safetensors"))
    }

    fn check_together(&self) -> Result<(), Problem> {
        LoraRule::check_all(&self.lora)
    }

    /// What a feature must not share with those before it: the key, its value, and what that must be.
    pub(super) fn check_against<'a>(
        &'a self,
        earlier: &[Self],
    ) -> Result<(), (&'static str, &'a str, String)> {
        if earlier.iter().any(|other| other.name == self.name) {
            let must = "is the name of an earlier feature; give each a name of its own";
            return Err(("name", &self.name, must.to_owned()));
        }
        for tag in &self.tags {
            let same = |other: &String| other.trim().eq_ignore_ascii_case(tag.trim());
            if let Some(other) = earlier.iter().find(|other| other.tags.iter().any(same)) {
                let must = format!("is also a tag of {}; give each feature tags of its own", other.name);
                return Err(("tags", tag, must));
            }
        }
        Ok(())
    }
}
