//! A run: from a config to a LoRA file.

use std::path::{Path, PathBuf};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use strata_engine::{DType, Gpu};
use strata_model::{LoraDtype, LoraSet, ModelIndex, NoiseSchedule, Rule, SchedulerConfig, Selection, Unet};

use crate::metadata::metadata;
use crate::step::{Learner, Trainer};
use crate::{Cache, Config, Dataset, Error, Precision, Result, StepLog, kaiming_uniform};

/// Weight of the newest loss in the running mean that the progress bar shows.
const SMOOTHING: f64 = 0.05;

/// What a run did.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// The LoRA files that were written, the last one last.
    pub files: Vec<PathBuf>,
    /// The log of the steps.
    pub log: PathBuf,
    /// Updates asked for.
    pub steps: u64,
    /// Those of them that were left out because a gradient was not finite.
    pub skipped: u64,
    /// Captions that are longer than CLIP can read; what is over was left out.
    pub cut_captions: usize,
    /// Layers that have a LoRA.
    pub layers: usize,
    /// Numbers in the LoRA.
    pub parameters: usize,
    /// Running mean of the loss at the end.
    pub loss: f64,
    /// Seconds of all steps together.
    pub seconds: f64,
    /// Number format of weights and activations.
    pub dtype: DType,
}

/// Trains what a config describes and writes its files. Shows progress on stderr where that is a terminal.
///
/// A file is whole or not there: a run may be stopped at any time. Two runs of one config on one machine give equal
/// files.
///
/// # Errors
/// What the config asks for is impossible, a file cannot be read or written, the training diverges, or the GPU fails.
pub fn run(gpu: &Gpu, config: &Config) -> Result<Summary> {
    // Everything that can be wrong without the GPU comes first.
    config.validate()?;
    let model = &config.model;
    ModelIndex::open(model)?;
    let schedule = SchedulerConfig::open(&model.join("scheduler").join("scheduler_config.json"))?;
    let schedule = NoiseSchedule::new(&schedule)?;
    check_timesteps(config, &schedule)?;
    let dataset = Dataset::open(&config.dataset)?;
    let matches = select(config)?;
    make_folder_of(&config.output)?;
    let mut log = StepLog::create(&config.log_path())?;

    let cache = Cache::build(gpu, model, &dataset, config.dataset.flip)?;

    let dtype = storage_dtype(gpu, config.train.dtype);
    let mut unet = Unet::open(gpu, &model.join("unet"), dtype)?;
    let lora = LoraSet::init(gpu, dtype, &matches, |path, fan_in, down| {
        kaiming_uniform(config.seed, path, fan_in, down);
    })?;
    unet.attach(&lora)?;
    let save = |steps: u64, path: &Path| -> Result<PathBuf> {
        let strings =
            metadata(config, unet.config(), schedule.prediction_type(), &lora, dataset.len(), steps);
        lora.to_file(lora_dtype(config.save_dtype), strings)?.write(path)?;
        Ok(path.to_owned())
    };

    let mut trainer = Trainer::new(config, &cache, &schedule, Learner::new(gpu, &unet, &lora, dtype)?);
    let mut summary = Summary {
        files: Vec::new(),
        log: config.log_path(),
        steps: config.train.steps,
        skipped: 0,
        cut_captions: cache.cut_captions(),
        layers: lora.entries().len(),
        parameters: lora.entries().iter().map(|e| e.parameters()).sum(),
        loss: f64::NAN,
        seconds: 0.0,
        dtype,
    };
    let started = Instant::now();
    let progress = bar(config.train.steps, "steps");
    for step in 0..config.train.steps {
        let record = trainer.step(step)?;
        log.write(&record)?;
        summary.skipped += u64::from(record.skipped);
        if record.loss.is_finite() {
            let new = f64::from(record.loss);
            summary.loss =
                if summary.loss.is_nan() { new } else { summary.loss + SMOOTHING * (new - summary.loss) };
        }
        progress.set_message(format!("loss {:.4}", summary.loss));
        progress.inc(1);
        let (done, every) = (step + 1, config.train.save_every);
        if every > 0 && done.is_multiple_of(every) && done < config.train.steps {
            summary.files.push(save(done, &numbered(&config.output, done))?);
        }
    }
    progress.finish_and_clear();
    summary.seconds = started.elapsed().as_secs_f64();
    summary.files.push(save(config.train.steps, &config.output)?);
    Ok(summary)
}

/// The layers that the rules of a config select.
fn select(config: &Config) -> Result<Vec<strata_model::Match>> {
    let rule = |r: &crate::LoraRule| Rule {
        select: r.select.clone(),
        rank: r.rank as usize,
        alpha: r.alpha as f32,
        lr: r.lr.map(|lr| lr as f32),
    };
    let rules: Vec<Rule> = config.lora.iter().map(rule).collect();
    let layers = strata_model::unet_layers(&config.model.join("unet"))?;
    Ok(Selection::new(&rules)?.resolve(&layers)?)
}

/// The number format a run uses: what the config asks for, but f32 on a GPU adapter that has no f16.
pub fn storage_dtype(gpu: &Gpu, wanted: Precision) -> DType {
    if wanted == Precision::F16 && gpu.caps().f16 { DType::F16 } else { DType::F32 }
}

fn lora_dtype(precision: Precision) -> LoraDtype {
    match precision {
        Precision::F32 => LoraDtype::F32,
        Precision::F16 => LoraDtype::F16,
    }
}

/// The model's schedule must have the timesteps that the config draws.
fn check_timesteps(config: &Config, schedule: &NoiseSchedule) -> Result<()> {
    let (max, has) = (config.train.timestep_max, schedule.timesteps());
    if max as usize <= has {
        return Ok(());
    }
    let message = format!("train.timestep_max = {max}: the model has only {has} timesteps");
    Err(Error::Config { file: None, line: None, message })
}

/// Makes the folder of a file, so that a run does not fail at its very end for want of it.
fn make_folder_of(file: &Path) -> Result<()> {
    if file.is_dir() {
        let message = format!("output = {}: is a folder; name a file", file.display());
        return Err(Error::Config { file: None, line: None, message });
    }
    match file.parent() {
        Some(folder) => std::fs::create_dir_all(folder).map_err(Error::io("make folder", folder)),
        None => Ok(()),
    }
}

/// `NAME-000100.safetensors` beside `NAME.safetensors`.
fn numbered(output: &Path, step: u64) -> PathBuf {
    let name = output.file_stem().unwrap_or_default().to_string_lossy();
    output.with_file_name(format!("{name}-{step:06}.safetensors"))
}

/// A progress bar on stderr, invisible where that is no terminal.
pub(crate) fn bar(length: u64, what: &'static str) -> ProgressBar {
    let template = "{prefix:>8} {wide_bar} {pos}/{len} {per_sec} {eta} left {msg}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length).with_style(style).with_prefix(what)
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
