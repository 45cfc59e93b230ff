//! `strata lora`

mod model;

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Result, anyhow, ensure};
use clap::{Args, Subcommand, ValueEnum};
use strata_model::{LoraWeights, Spelling, Target};

use super::info::{lora, show};
use super::lora::split_weight;
use super::rank;
use model::{Extract, IntoModel};

/// Look into LoRA files, and make others of them
///
/// Read are kohya's and diffusers' files and PEFT's folders, with LoCon, LoHa, LoKr, DoRA and full differences. Needs no GPU.
#[derive(Args)]
#[command(after_help = "\
Examples:
  strata lora info hair.safetensors
  strata lora convert hair.safetensors --to peft --out hair
  strata lora merge hair.safetensors:0.8 coat.safetensors --out both.safetensors
  strata lora merge hair.safetensors:0.8 --into sd15.safetensors --out merged.safetensors
  strata lora merge hair.safetensors --into sd15 --ratio 'up_blocks.1=0.5' --out merged
  strata lora extract sd15.safetensors tuned.safetensors --rank 32 --out tuned-lora.safetensors
  strata lora resize both.safetensors --rank 16 --out small.safetensors")]
pub struct Lora {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Info(Info),
    Convert(Convert),
    Merge(Merge),
    Extract(Extract),
    Resize(Resize),
}

/// Show what a LoRA changes, how much, and what its file says about it
#[derive(Args)]
struct Info {
    /// A LoRA file, or PEFT's folder
    file: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Write a LoRA in another spelling; values stay as they are
#[derive(Args)]
struct Convert {
    /// A LoRA file, or PEFT's folder
    file: PathBuf,
    #[command(flatten)]
    out: Out,
}

/// Make one LoRA that does what several do together, exactly: ranks add up. Or put LoRAs into a model
///
/// With --into, the result is the model with W + ratio · ΔW in place of W: what it says is what the model says with the LoRAs always on,
/// whatever the prompt. It is a folder in diffusers layout, or a single file where --out ends in .safetensors.
#[derive(Args)]
struct Merge {
    /// LoRA files, each with how much of it
    #[arg(required = true, value_name = "FILE[:RATIO]", value_parser = part)]
    files: Vec<(PathBuf, f32)>,
    #[command(flatten)]
    into: IntoModel,
    #[command(flatten)]
    out: Out,
}

/// Make a LoRA smaller: the closest one of lower rank, layer by layer
#[derive(Args)]
#[group(skip)]
struct Resize {
    /// A LoRA file, or PEFT's folder
    file: PathBuf,
    /// The largest rank, up to 4096
    #[arg(long, value_parser = rank_or_energy, required_unless_present = "energy", conflicts_with = "energy")]
    rank: Option<usize>,
    /// In place of a rank: the share of each layer's squared norm to keep, such as 0.95
    #[arg(long)]
    energy: Option<f64>,
    #[command(flatten)]
    out: Out,
}

/// Where the result goes.
#[derive(Args)]
struct Out {
    /// What to write, which must not be there yet: a file, or a folder for peft
    #[arg(long)]
    out: PathBuf,
    /// How to spell it
    #[arg(long, value_enum, default_value_t = To::Kohya)]
    to: To,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum To {
    /// One file, which every Stable Diffusion program reads
    Kohya,
    /// A folder with adapter_model.safetensors and adapter_config.json
    Peft,
    /// One file with diffusers' names; alphas are in its header
    Diffusers,
}

impl Lora {
    pub fn run(&self, out: &mut impl Write) -> Result<()> {
        match &self.command {
            Command::Info(info) => info.run(out),
            Command::Convert(convert) => convert.out.write(out, &LoraWeights::read(&convert.file)?),
            Command::Extract(extract) => extract.run(out),
            Command::Merge(merge) if merge.into.is_given() => merge.into.run(&merge.files, &merge.out, out),
            Command::Merge(merge) => {
                ensure!(
                    merge.files.len() > 1,
                    "there is one LoRA alone; name those that it is to go together with, or a model, --into MODEL"
                );
                merge.out.check()?;
                let read = |(path, ratio): &(PathBuf, f32)| Ok(LoraWeights::read(path)?.scaled(*ratio));
                let all = merge.files.iter().map(read).collect::<Result<Vec<_>>>()?;
                merge.out.write(out, &LoraWeights::combine(&all)?)
            }
            Command::Resize(resize) => {
                resize.out.check()?;
                let target = match (resize.rank, resize.energy) {
                    (Some(rank), _) => Target::Rank(rank),
                    (None, energy) => Target::Energy(energy.unwrap_or(1.0)),
                };
                resize.out.write(out, &LoraWeights::read(&resize.file)?.resize(target)?)
            }
        }
    }
}

impl Info {
    fn run(&self, out: &mut impl Write) -> Result<()> {
        show(out, lora::describe(&self.file)?, self.json)
    }
}

impl Out {
    /// Finds out before the work whether there is a place for its result.
    fn check(&self) -> Result<()> {
        ensure!(
            !self.out.exists(),
            "--out {}: there is something already; name another place, or remove it",
            self.out.display()
        );
        Ok(())
    }

    fn write(&self, out: &mut impl Write, lora: &LoraWeights) -> Result<()> {
        self.check()?;
        let spelling = match self.to {
            To::Kohya => Spelling::Kohya,
            To::Peft => Spelling::Peft,
            To::Diffusers => Spelling::Diffusers,
        };
        lora.write_as(spelling, &self.out)?;
        Ok(writeln!(out, "wrote {} ({} modules)", self.out.display(), lora.modules.len())?)
    }
}

fn rank_or_energy(text: &str) -> Result<usize> {
    rank(text)
        .map_err(|e| anyhow!("{e}; for a share of each layer give --energy instead, such as --energy 0.95"))
}

fn part(arg: &str) -> Result<(PathBuf, f32)> {
    let (path, ratio) = split_weight(arg)?;
    ensure!(!path.is_empty(), "name a file");
    Ok((path.into(), ratio))
}
