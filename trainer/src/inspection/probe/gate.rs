//! When the probed feature is on.

use strata_model::{Feature, GateMode, Gates, Prompt, Wording};

use super::{DrawBatch, ProbeFeature};
use crate::Result;

/// What a way of gating is called in reports and arguments.
pub fn gate_name(mode: GateMode) -> &'static str {
    match mode {
        GateMode::Always => "always",
        GateMode::Prompt => "prompt",
        GateMode::Token { after: false } => "token",
        GateMode::Token { after: true } => "token,after",
    }
}

/// The gates of a batch of one prompt: of LoRA sets `[number, count]`, that number is `feature`'s, and all others are
/// off. Unless the mode is `Always`, the number must be that of the feature in the prompt's mentions.
pub(super) fn gates(
    feature: &ProbeFeature,
    mode: GateMode,
    [set, sets]: [usize; 2],
    prompt: &Prompt,
    batch: &DrawBatch,
    [h, w, _]: [usize; 3],
) -> Result<Gates> {
    let off = Feature { tags: Vec::new(), mode: GateMode::Always, weight: 0.0, region: None, uncond: false };
    let mut features = vec![off; sets];
    features[set] =
        Feature { tags: feature.tags.clone(), mode, weight: feature.weight, region: None, uncond: false };
    let wording = Wording { wanted: vec![prompt.clone(); batch.timesteps.len()], unwanted: Vec::new() };
    Ok(wording.gates(&features, false, [h, w])?)
}
