//! What a probe was given, so that another program can be given the same.

use std::path::Path;

use anyhow::Result;
use strata_model::{F32s, write_f32s};
use strata_trainer::probe::Probe;

/// Writes `noisy` [draws, h, w, channels], `timesteps` [draws] and, for prompt number i of the report, `text.i` [tokens,
/// channels], all F32.
pub fn write(probe: &Probe, path: &Path) -> Result<()> {
    let draws = probe.draws().draws();
    let [h, w, channels] = probe.draws().shape();
    let noisy = draws.iter().flat_map(|draw| &draw.noisy).copied().collect();
    let timesteps = draws.iter().map(|draw| draw.timestep as f32).collect();
    let mut tensors = F32s::from([
        ("noisy".to_owned(), (vec![draws.len(), h, w, channels], noisy)),
        ("timesteps".to_owned(), (vec![draws.len()], timesteps)),
    ]);
    for (i, text) in probe.script().texts().iter().enumerate() {
        tensors.insert(format!("text.{i}"), (text.shape.to_vec(), text.states.clone()));
    }
    Ok(write_f32s(path, &tensors)?)
}
