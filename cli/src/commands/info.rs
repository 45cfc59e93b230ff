//! `strata info`

mod embedding;
pub(super) mod lora;
mod model;

use std::io::Write;

use anyhow::Result;
use serde_json::Value;
use strata_model::{is_embedding, is_lora};

use super::model::ModelArgs;

/// Say what a model, a LoRA or an embedding is, and what Strata does with it
///
/// Needs no GPU. What a file is, is told from its tensors, not from its name. Of a model: which Stable Diffusion it is, its
/// parts, what its U-Net looks like and predicts. Of a LoRA: how it is spelled, ranks and alphas, how much it changes each block
/// (the norm of ΔW over its modules there), tags, and what its metadata say.
/// Of an embedding: its word, its vectors, and which models they fit.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  strata info v1-5-pruned-emaonly.safetensors
  strata info stable-diffusion-v1-5
  strata info lora.safetensors
  strata info easynegative.safetensors
  strata info lora.safetensors --json | jq .metadata")]
pub struct Info {
    #[command(flatten)]
    model: ModelArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One line of what is shown: what it is about, and what there is to say.
pub(super) type Line = (&'static str, String);

impl Info {
    pub fn run(&self, out: &mut impl Write) -> Result<()> {
        let path = &self.model.model;
        if path.is_file() && is_embedding(path)? {
            return show(out, embedding::describe(path)?, self.json);
        }
        // of a LoRA, PEFT's folder
        if path.join("adapter_config.json").is_file() || path.is_file() && is_lora(path)? {
            return show(out, lora::describe(path)?, self.json);
        }
        show(out, model::describe(path, &self.model.options())?, self.json)
    }
}

/// What is told of a file, as JSON or as lines.
pub(super) fn show(out: &mut impl Write, (value, lines): (Value, Vec<Line>), json: bool) -> Result<()> {
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&value)?)?;
        return Ok(());
    }
    for (about, text) in lines {
        writeln!(out, "{about:13} {text}")?;
    }
    Ok(())
}
