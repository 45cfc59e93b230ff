//! LoRA files of a run: of each feature, in between and at the end, and of all together.

use std::path::{Path, PathBuf};

use strata_engine::DType;
use strata_model::{LoraSet, LoraWeights, NoiseSchedule, Unet};

use crate::training::metadata::metadata;
use crate::training::plan::{Plan, is_done};
use crate::{Config, Outcome, Precision, Result};

/// Saves where the config says so: `done` steps have been taken.
pub(crate) fn save_between(
    config: &Config,
    plan: &Plan,
    unet: &Unet,
    schedule: &NoiseSchedule,
    lora: &LoraSet,
    done: u64,
    outcome: &mut Outcome,
) -> Result<()> {
    let every = config.train.save_every;
    if every > 0 && done.is_multiple_of(every) && done < config.steps_of(&plan.feature) {
        outcome.files.push(save(config, plan, unet, schedule, lora, Some(done), done)?);
    }
    Ok(())
}

/// Writes a LoRA after so many steps: beside the others where `between` says so, or at the end.
pub(crate) fn save(
    config: &Config,
    plan: &Plan,
    unet: &Unet,
    schedule: &NoiseSchedule,
    lora: &LoraSet,
    between: Option<u64>,
    steps: u64,
) -> Result<PathBuf> {
    let (feature, file) = (&plan.feature, plan.feature.file());
    let path = between.map_or(file.to_owned(), |done| numbered(file, done));
    let prediction = schedule.prediction_type();
    let mut strings = metadata(config, feature, unet.config(), prediction, lora, plan.dataset.len(), steps);
    if between.is_none() && !feature.name.is_empty() {
        strings.insert("strata_run".into(), plan.fingerprint.clone());
    }
    lora.to_weights(lora_dtype(config.save_dtype), strings)?.write(&path)?;
    Ok(path)
}

/// Puts all features into one file, where there are several and all are done.
pub(crate) fn combine(config: &Config, plans: &[Plan]) -> Result<Option<PathBuf>> {
    if plans.len() < 2 || !plans.iter().all(|plan| is_done(plan.feature.file(), &plan.fingerprint)) {
        return Ok(None);
    }
    let files = plans.iter().map(|p| LoraWeights::read(p.feature.file())).collect::<Result<Vec<_>, _>>()?;
    LoraWeights::combine(&files)?.write(&config.output)?;
    Ok(Some(config.output.clone()))
}

fn lora_dtype(precision: Precision) -> DType {
    match precision {
        Precision::F32 => DType::F32,
        Precision::F16 => DType::F16,
    }
}

/// `NAME-000100.safetensors` beside `NAME.safetensors`.
fn numbered(output: &Path, step: u64) -> PathBuf {
    let name = output.file_stem().unwrap_or_default().to_string_lossy();
    output.with_file_name(format!("{name}-{step:06}.safetensors"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intermediate_files_are_named_after_the_output() {
        let path = numbered(Path::new("out/cat.v2.safetensors"), 100);
        assert_eq!(path, Path::new("out/cat.v2-000100.safetensors"));
    }
}
