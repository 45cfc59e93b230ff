//! Layers and ranks: `[[lora]]`, `[[feature.lora]]`.

use strata_model::MAX_RANK;

use super::check::{Problem, if_set, positive, require, within};
use super::section::section;

section! {
    /// A rule: the layers a pattern selects get a LoRA of this rank.
    pub struct LoraRule: "a rule; repeat the table to give other layers another rank" {
        /// Pattern of layer paths, or the name of a group of layers. Default `attn`.
        select: String = "attn".into(), "pattern of layer paths, or the name of a group of layers",
            check pattern, also "target_modules" "layers" "only_if_contains";
        /// Rank r: `down` is r × in, `up` is out × r. Default 8.
        rank: u32 = 8, "more learns more, and makes a larger file",
            check within(1, MAX_RANK as u32), also "network_dim" "dim" "lora_rank" "linear";
        /// The LoRA's output is multiplied by alpha / r. Default 8.
        alpha: f64 = 8.0, "the LoRA is scaled by alpha / rank",
            check positive, also "network_alpha" "lora_alpha" "linear_alpha";
        /// Learning rate of these layers. Default: `train.lr`.
        lr: Option<f64> = None, example |_| 1e-4, "learning rate of these layers; default: train.lr",
            check if_set(positive);
    }
}

fn pattern(select: &str) -> Result<(), String> {
    require(!select.trim().is_empty(), "must be a pattern or a group, such as \"attn\"")
}

impl LoraRule {
    /// What the rules of a feature must satisfy together.
    pub(super) fn check_all(rules: &[Self]) -> Result<(), Problem> {
        match rules {
            [] => Err(Problem::new("lora", "[]", "selects no layers; give at least one rule")),
            _ => Ok(()),
        }
    }
}
