//! `strata train`

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use strata_engine::DType;
use strata_trainer::{Config, Precision, Summary, run};

use super::{Dtype, GpuArgs, note, thousands};

/// Train a LoRA as a config file says
///
/// Writes the LoRA (and one file every `save_every` steps) and a log with one line of JSON per step. Files are whole or not
/// there, so a run may be stopped at any time. Two runs of one config give equal files.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  strata train --print-config > run.toml
  strata train run.toml
  strata train run.toml --steps 20 --seed 7 --adapter nvidia")]
pub struct Train {
    /// The config, a TOML file
    #[arg(required_unless_present = "print_config")]
    config: Option<PathBuf>,
    /// Print a config with every key at its default, and stop
    #[arg(long, conflicts_with = "config")]
    print_config: bool,
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

impl Train {
    pub fn run(&self, out: &mut impl Write) -> Result<()> {
        let Some(path) = &self.config else {
            return Ok(write!(out, "{}", Config::default_toml())?);
        };
        let mut config = Config::load(path)?;
        config.train.steps = self.steps.unwrap_or(config.train.steps);
        config.seed = self.seed.unwrap_or(config.seed);
        config.train.dtype = self.dtype.map_or(config.train.dtype, Precision::from);
        let gpu = self.gpu.open()?;
        let summary = run(&gpu, &config)?;
        let Summary { files, log, steps, skipped, cut_captions, layers, parameters, loss, seconds, dtype } =
            summary;
        if dtype == DType::F32 && config.train.dtype == Precision::F16 {
            let name = &gpu.caps().name;
            note(&format!("GPU adapter {name} has no f16 in shaders; trained in f32"));
        }
        if cut_captions > 0 {
            note(&format!(
                "{cut_captions} captions are longer than CLIP's 75 tokens; what is over was left out"
            ));
        }
        writeln!(out, "{layers} layers, {} parameters", thousands(parameters))?;
        let rate = steps as f64 / seconds;
        writeln!(out, "{steps} steps in {seconds:.1} s ({rate:.2} a second), loss {loss:.4}")?;
        if skipped > 0 {
            writeln!(out, "{skipped} steps left out, since a gradient was not finite in f16")?;
        }
        for file in files {
            writeln!(out, "wrote {}", file.display())?;
        }
        writeln!(out, "log   {}", log.display())?;
        Ok(())
    }
}
