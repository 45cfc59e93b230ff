//! `strata train`

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Result, anyhow};
use serde_json::{Value, json};
use strata_engine::{DType, Gpu};
use strata_model::counted;
use strata_trainer::{Config, Error, Memory, Outcome, ProbeRecord, Start, Summary, measure, run_from};

use super::interrupt::interruptible;
use super::{GpuArgs, note, number_format, seed, thousands};

/// Train a LoRA as a config file says
///
/// Writes the LoRA (and one file every `save_every` steps) and a log with one line of JSON per step. Files are whole or not
/// there. Every `train.state_minutes`, and whenever a run ends early, its state is saved beside the output (`NAME-STEP.save`): the
/// same command then goes on from there, and comes to the same files, bit for bit, as a run that never stopped. Saves are removed
/// once their feature is done. Ctrl-C ends the run after the step under way, and what was learned until then is written to a LoRA
/// of its own as well. Features that are done are not trained again.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  strata train --print-config > run.toml
  strata train --print-config=features > features.toml
  strata train run.toml
  strata train run.toml --dry-run                 how much GPU memory it takes
  strata train features.toml --only hair_style_a
  strata train run.toml --fresh                   begin anew, though a save is there
  strata train run.toml --steps 20 --seed 7 --adapter nvidia
  strata train run.toml --quiet --json            for scripts: no progress, and the summary as JSON")]
pub struct Train {
    /// The config, a TOML file
    #[arg(required_unless_present = "print_config")]
    config: Option<PathBuf>,
    /// Print a config with every key at its default, and stop: of one LoRA (plain), or of two features with tags
    #[arg(
        long,
        value_name = "KIND",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "plain",
        conflicts_with = "config",
        value_enum
    )]
    print_config: Option<Kind>,
    /// Print how much GPU memory the run takes, and train nothing
    ///
    /// Measured, not computed: VAE and CLIP read one picture and one text of zeros, and one training step is taken on zeros
    /// for each feature that would be trained. Of features the one that takes most is shown. Probes during training
    /// (train.probe_every) are left out.
    #[arg(long, requires = "config")]
    dry_run: bool,
    /// Print JSON: what was trained and written, or with --dry-run bytes
    #[arg(long, conflicts_with = "print_config")]
    json: bool,
    /// Train this feature alone, again if it is done
    #[arg(long, value_name = "FEATURE")]
    only: Option<String>,
    /// Begin anew, though there are saves of a run that ended early; they are removed once there is a new one
    #[arg(long, conflicts_with_all = ["print_config", "dry_run"])]
    fresh: bool,
    /// Go on from a save, and fail where there is none; without this option such a run begins anew
    #[arg(long, conflicts_with_all = ["fresh", "print_config", "dry_run"])]
    resume: bool,
    /// Updates of the LoRA, instead of the config's
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    steps: Option<u64>,
    /// All chance comes from this number, instead of the config's
    #[arg(long, value_parser = seed)]
    seed: Option<u64>,
    /// Number format of weights and activations, instead of the config's
    #[arg(long, value_parser = number_format())]
    dtype: Option<DType>,
    #[command(flatten)]
    gpu: GpuArgs,
}

/// A kind of config.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Kind {
    /// One LoRA
    Plain,
    /// Two features
    Features,
}

impl Train {
    pub fn run(&self, out: &mut impl Write) -> Result<()> {
        self.run_on(|| self.gpu.open(), out)
    }

    /// Runs on the GPU adapter that `open` gives.
    pub fn run_on(&self, open: impl FnOnce() -> Result<Gpu>, out: &mut impl Write) -> Result<()> {
        let Some(path) = &self.config else {
            let text = match self.print_config {
                Some(Kind::Features) => Config::example_toml(),
                _ => Config::default_toml(),
            };
            return Ok(write!(out, "{text}")?);
        };
        let mut config = Config::load(path)?;
        config.train.steps = self.steps.unwrap_or(config.train.steps);
        if let Some(steps) = self.steps {
            config.feature.iter_mut().for_each(|feature| feature.steps = Some(steps));
        }
        config.seed = self.seed.unwrap_or(config.seed);
        config.train.dtype = self.dtype.unwrap_or(config.train.dtype);
        let gpu = open()?;
        if self.dry_run {
            let memory = measure(&gpu, &config, self.only.as_deref())?;
            return match self.json {
                true => Ok(writeln!(out, "{}", serde_json::to_string_pretty(&memory)?)?),
                false => print(&memory, out),
            };
        }
        let start = match (self.fresh, self.resume) {
            (true, _) => Start::Anew,
            (_, true) => Start::MustGoOn,
            _ => Start::GoOn,
        };
        let trained =
            interruptible(|interrupt| run_from(&gpu, &config, self.only.as_deref(), start, interrupt))?;
        let summary = trained.map_err(|error| match error {
            Error::Resume(why) => anyhow!("{why} with --fresh"),
            other => other.into(),
        })?;
        let json = self.json.then(|| to_json(&summary));
        let Summary { features, combined, log, seconds, dtype } = summary;
        if dtype == DType::F32 && config.train.dtype == DType::F16 {
            let name = &gpu.caps().name;
            note(&format!("GPU adapter {name} has no f16 in shaders; trained in f32"));
        }
        if let Some(json) = json {
            return Ok(writeln!(out, "{}", serde_json::to_string_pretty(&json)?)?);
        }
        let trained = features.iter().filter(|feature| !feature.files.is_empty());
        let steps: u64 = trained.map(|feature| feature.steps - feature.resumed_from).sum();
        for Outcome { name, files, steps, resumed_from, skipped, layers, parameters, loss, probe, stopped } in
            features
        {
            let title = if name.is_empty() { String::new() } else { format!("{name}: ") };
            if files.is_empty() {
                writeln!(out, "{title}not trained; its file is up to date, or was not asked for")?;
                continue;
            }
            writeln!(out, "{title}{}, {} parameters", counted(layers, "layer"), thousands(parameters))?;
            let before = if resumed_from > 0 { format!(" ({resumed_from} before)") } else { String::new() };
            writeln!(out, "{title}{}{before}, loss {loss:.4}", counted(steps, "step"))?;
            if skipped > 0 {
                let skipped = counted(skipped, "step");
                writeln!(out, "{title}{skipped} left out, since a gradient was not finite in f16")?;
            }
            if let Some(ProbeRecord { step, drift, leak, .. }) = probe {
                let leak = leak.map_or("-".into(), |leak| format!("{leak:.3}"));
                let end = if stopped { "; stopped, as it leaks more than train.stop_leak" } else { "" };
                writeln!(
                    out,
                    "{title}probed at step {step}: drift {drift:.4} with its tag, leak {leak}{end}"
                )?;
            }
            for file in files {
                writeln!(out, "wrote {}", file.display())?;
            }
        }
        if let Some(combined) = combined {
            writeln!(out, "wrote {} (all features)", combined.display())?;
        }
        if steps > 0 {
            let pace = steps as f64 / seconds;
            writeln!(out, "{} in {seconds:.1} s ({pace:.2} a second)", counted(steps, "step"))?;
            writeln!(out, "log   {}", log.display())?;
        }
        Ok(())
    }
}

/// All of a summary. A loss that is not finite is null.
fn to_json(summary: &Summary) -> Value {
    let feature = |feature: &Outcome| {
        json!({
            "name": feature.name,
            "trained": !feature.files.is_empty(),
            "files": feature.files,
            "steps": feature.steps,
            "resumed_from": feature.resumed_from,
            "skipped": feature.skipped,
            "layers": feature.layers,
            "parameters": feature.parameters,
            "loss": feature.loss,
            "probe": feature.probe,
            "stopped": feature.stopped,
        })
    };
    json!({
        "features": summary.features.iter().map(feature).collect::<Vec<_>>(),
        "combined": summary.combined,
        "log": summary.log,
        "seconds": summary.seconds,
        "dtype": summary.dtype.wgsl(),
    })
}

fn print(memory: &Memory, out: &mut impl Write) -> Result<()> {
    let Memory { feature, weights, lora, activations, preparation, peak, held } = memory;
    let of = if feature.is_empty() { String::new() } else { format!(" of {feature}") };
    for (what, bytes, note) in [
        ("weights", *weights, "U-Net".into()),
        ("LoRA", *lora, "parameters, gradients and moments".into()),
        ("activations", *activations, format!("and all else in a training step{of}")),
        ("training", weights + lora + activations, "these three".into()),
        ("preparation", *preparation, "VAE and CLIP, before the U-Net is loaded".into()),
        ("peak", *peak, "the larger of the two".into()),
        ("buffers", *held, "what the driver is asked for, free ones between uses among them".to_owned()),
    ] {
        writeln!(out, "{what:12} {:>10.1} MiB   {note}", bytes as f64 / f64::from(1 << 20))?;
    }
    Ok(())
}
