//! `strata lora merge … --into MODEL` and `strata lora extract`: LoRAs into models, and out of them.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use strata_model::progress::note;
use strata_model::{Checkpoint, LoraWeights, ModelOptions, Numbers, Part, keys_of};

use super::Out;
use crate::commands::rank;

/// The model that LoRAs are put into, and how.
#[derive(Args)]
#[group(skip)]
pub struct IntoModel {
    /// Put the LoRAs into this model: a .safetensors file, or a folder in diffusers layout
    #[arg(long, value_name = "MODEL", conflicts_with = "to")]
    into: Option<PathBuf>,
    /// Of a model in one file: a folder in diffusers layout that has configurations, tokenizer, and the parts that the file lacks
    #[arg(long, value_name = "FOLDER", requires = "into")]
    config: Option<PathBuf>,
    /// How much of the LoRAs goes into some layers, times what their files have: a pattern of `strata layers --select`, or text_encoder;
    /// may be given several times
    #[arg(long = "ratio", value_name = "PATTERN=RATIO", requires = "into", value_parser = ratio)]
    ratios: Vec<(String, f32)>,
    /// Number format of the model that is written [default: as each tensor has it]
    #[arg(long, value_enum, requires = "into")]
    dtype: Option<Format>,
    /// Leave out the modules of a second text encoder, and say so
    #[arg(long, requires = "into")]
    allow_unused: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    F16,
    Bf16,
    F32,
}

impl IntoModel {
    pub fn is_given(&self) -> bool {
        self.into.is_some()
    }

    pub fn run(&self, files: &[(PathBuf, f32)], to: &Out, out: &mut impl Write) -> Result<()> {
        to.check()?;
        let Some(path) = &self.into else { return Ok(()) };
        let model = open(path, self.config.as_ref())?;
        let layers = model.layers()?;
        let mut loras = Vec::new();
        for (path, ratio) in files {
            let context = || path.display().to_string();
            let mut lora = LoraWeights::read(path)?;
            let second = lora.take(Part::TextEncoder2).modules.len();
            ensure!(
                second == 0 || self.allow_unused && !lora.modules.is_empty(),
                "{}: has {second} modules of {}, which this model lacks; --allow-unused goes without them, where there are others",
                path.display(),
                Part::TextEncoder2
            );
            if second > 0 {
                note(&format!("{}: {second} modules of {} are left out", path.display(), Part::TextEncoder2));
            }
            for (pattern, ratio) in &self.ratios {
                lora.scale_at(pattern, *ratio, &layers).with_context(context)?;
            }
            model.check_lora(&lora).with_context(context)?;
            let tags: Vec<String> = keys_of(&lora.metadata).with_context(context)?.into_keys().collect();
            let words: Vec<String> = tags.into_iter().chain(lora.embeddings.keys().cloned()).collect();
            if !words.is_empty() {
                note(&format!(
                    "{}: the word vectors of {} are no part of a model; prompts need their embedding files (--embedding) with the \
                     merged one",
                    path.display(),
                    words.join(", ")
                ));
            }
            loras.push((lora, *ratio));
        }
        let numbers = self.dtype.map(|dtype| match dtype {
            Format::F16 => Numbers::F16,
            Format::Bf16 => Numbers::Bf16,
            Format::F32 => Numbers::F32,
        });
        model.merge(&loras, &to.out, numbers)?;
        let modules: usize = loras.iter().map(|(lora, _)| lora.modules.len()).sum();
        Ok(writeln!(out, "wrote {} ({modules} modules merged)", to.out.display())?)
    }
}

/// Make a LoRA of the difference between a model and one that was tuned from it: the closest of a rank, layer by layer
///
/// Single files and folders in diffusers layout may be mixed. Needs no GPU.
#[derive(Args)]
pub struct Extract {
    /// The model that was tuned
    base: PathBuf,
    /// What it was tuned to
    tuned: PathBuf,
    /// The rank, up to 4096
    #[arg(long, value_parser = rank)]
    rank: usize,
    /// The layers to look at: a pattern of `strata layers --select`, or text_encoder, with commas between them [default: all]
    #[arg(long, value_name = "PATTERN")]
    select: Option<String>,
    /// Of models in one file: a folder in diffusers layout that has configurations, tokenizer, and the parts that a file lacks
    #[arg(long, value_name = "FOLDER")]
    config: Option<PathBuf>,
    #[command(flatten)]
    out: Out,
}

impl Extract {
    pub fn run(&self, out: &mut impl Write) -> Result<()> {
        self.out.check()?;
        let [base, tuned] = [&self.base, &self.tuned].map(|path| open(path, self.config.as_ref()));
        let lora = LoraWeights::extract(&base?, &tuned?, self.rank, self.select.as_deref())?;
        self.out.write(out, &lora)
    }
}

/// Opens a model. A folder has configurations of its own.
fn open(path: &std::path::Path, config: Option<&PathBuf>) -> Result<Checkpoint> {
    let config = config.filter(|_| path.is_file()).cloned();
    Ok(Checkpoint::open_with(path, &ModelOptions { config, ..ModelOptions::default() })?)
}

fn ratio(text: &str) -> Result<(String, f32)> {
    let parts =
        text.rsplit_once('=').and_then(|(pattern, ratio)| Some((pattern, ratio.trim().parse().ok()?)));
    match parts {
        Some((pattern, ratio)) if f32::is_finite(ratio) => Ok((pattern.trim().to_owned(), ratio)),
        _ => anyhow::bail!("write PATTERN=RATIO, such as up_blocks.1=0.5"),
    }
}
