//! What a probe was given, so that another program can be given the same.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use safetensors::Dtype;
use strata_model::{header, write_atomic};
use strata_trainer::probe::Probe;

/// Writes `noisy` [draws, h, w, channels], `timesteps` [draws] and, for prompt number i of the report, `text.i` [tokens,
/// channels], all F32.
pub fn write(probe: &Probe, path: &Path) -> Result<()> {
    let draws = probe.draws().draws();
    let [h, w, channels] = probe.draws().shape();
    let noisy = draws.iter().flat_map(|draw| &draw.noisy).copied().collect();
    let timesteps = draws.iter().map(|draw| draw.timestep as f32).collect();
    let mut tensors = BTreeMap::from([
        ("noisy".to_owned(), (vec![draws.len(), h, w, channels], noisy)),
        ("timesteps".to_owned(), (vec![draws.len()], timesteps)),
    ]);
    for (i, text) in probe.script().texts().iter().enumerate() {
        tensors.insert(format!("text.{i}"), (text.shape.to_vec(), text.states.clone()));
    }
    let shapes = tensors.iter().map(|(name, (shape, _))| (name.as_str(), shape.clone()));
    let header = header(Dtype::F32, shapes, &BTreeMap::new())
        .with_context(|| format!("{}: cannot be written", path.display()))?;
    Ok(write_atomic(path, |out| {
        out.write_all(&header)?;
        tensors.values().try_for_each(|(_, values): &(_, Vec<f32>)| {
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            out.write_all(&bytes)
        })
    })?)
}
