//! `strata train`

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use strata_engine::{DType, Gpu};
use strata_trainer::{Config, Outcome, Precision, ProbeRecord, Summary, run};

use super::{Dtype, GpuArgs, note, thousands};

/// Train a LoRA as a config file says
///
/// Writes the LoRA (and one file every `save_every` steps) and a log with one line of JSON per step. Files are whole or not
/// there, so a run may be stopped at any time; features that are done are not trained again. Two runs of one config
/// give equal files.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  strata train --print-config > run.toml
  strata train --print-config=features > features.toml
  strata train run.toml
  strata train features.toml --only hair_style_a
  strata train run.toml --steps 20 --seed 7 --adapter nvidia")]
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
    /// Train this feature alone, again if it is done
    #[arg(long, value_name = "FEATURE")]
    only: Option<String>,
    /// Updates of the LoRA, instead of the config's
    #[arg(long)]
    steps: Option<u64>,
    /// All chance comes from this number, instead of the config's
    #[arg(long)]
    seed: Option<u64>,
    /// Number format of weights and activations, instead of the config's
    #[arg(long, value_enum)]
    dtype: Option<Dtype>,
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
        config.train.dtype = self.dtype.map_or(config.train.dtype, Precision::from);
        let gpu = open()?;
        let summary = run(&gpu, &config, self.only.as_deref())?;
        let Summary { features, combined, log, cut_captions, seconds, dtype } = summary;
        if dtype == DType::F32 && config.train.dtype == Precision::F16 {
            let name = &gpu.caps().name;
            note(&format!("GPU adapter {name} has no f16 in shaders; trained in f32"));
        }
        if cut_captions > 0 {
            note(&format!(
                "{cut_captions} captions are longer than CLIP's 75 tokens; what is over was left out"
            ));
        }
        let trained = features.iter().filter(|feature| !feature.files.is_empty());
        let steps: u64 = trained.map(|feature| feature.steps).sum();
        for Outcome { name, files, steps, skipped, layers, parameters, loss, probe, stopped } in features {
            let title = if name.is_empty() { String::new() } else { format!("{name}: ") };
            if files.is_empty() {
                writeln!(out, "{title}not trained; its file is up to date, or was not asked for")?;
                continue;
            }
            writeln!(out, "{title}{layers} layers, {} parameters", thousands(parameters))?;
            writeln!(out, "{title}{steps} steps, loss {loss:.4}")?;
            if skipped > 0 {
                writeln!(out, "{title}{skipped} steps left out, since a gradient was not finite in f16")?;
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
            writeln!(out, "{steps} steps in {seconds:.1} s ({:.2} a second)", steps as f64 / seconds)?;
            writeln!(out, "log   {}", log.display())?;
        }
        Ok(())
    }
}
