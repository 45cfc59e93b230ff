//! The preservation loss: `[feature.preserve]`.

use super::check::{positive, require};
use super::section::section;
use super::value::choice;

section! {
    /// The preservation loss.
    pub struct PreserveConfig: "train the model to stay as it was without the tag" {
        /// Factor on ‖ε_LoRA − ε_base‖² over prompts without the tag. Default 1.
        weight: f64 = 1.0, "factor on that loss", check positive;
        /// Preserved samples for each sample that is learned from. Default 1.
        share: f64 = 1.0, "such samples for each sample that is learned from", check share;
        /// Kinds of prompts, all equally likely. Default: all five.
        prompts: Vec<PreservePrompt> = PreservePrompt::ALL.to_vec(), "kinds of prompts", check kinds;
    }
}

choice! {
    /// A kind of prompt without the tag.
    pub enum PreservePrompt {
        /// The caption without its tag.
        Untagged = "untagged",
        /// The caption with the class in the tag's place.
        Class = "class",
        /// Nothing.
        Empty = "empty",
        /// The caption with another feature's tag in the tag's place.
        Others = "others",
        /// An ordinary prompt of Strata's own.
        Bank = "bank",
    }
}

fn share(share: &f64) -> Result<(), String> {
    require(*share > 0.0 && *share <= 8.0, "must be more than 0 and at most 8")
}

fn kinds(prompts: &[PreservePrompt]) -> Result<(), String> {
    require(!prompts.is_empty(), "must name at least one kind of prompts")
}

impl PreserveConfig {
    /// How many samples are preserved beside so many that are learned from.
    pub(crate) fn samples(&self, learned: usize) -> usize {
        ((learned as f64 * self.share).round() as usize).max(1)
    }
}
