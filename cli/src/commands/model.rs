//! Which model to use.

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use strata_model::{Checkpoint, ModelOptions, PredictionType};

use super::note;

/// The model, and what is said of it.
#[derive(clap::Args)]
pub struct ModelArgs {
    /// A Stable Diffusion model: a checkpoint in one .safetensors file, or a folder in diffusers layout
    pub model: PathBuf,
    /// Another VAE: a .safetensors file, or a folder in diffusers layout [default: the model's]
    #[arg(long, value_name = "FILE|FOLDER")]
    vae: Option<PathBuf>,
    /// Of a model in one file: a folder in diffusers layout that has configurations, tokenizer, and the parts that the file lacks
    /// [default: those of Stable Diffusion]
    #[arg(long, value_name = "FOLDER")]
    config: Option<PathBuf>,
    /// What the model predicts [default: what its files say]
    #[arg(long, value_enum)]
    prediction: Option<Prediction>,
}

/// What a model predicts.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Prediction {
    /// The noise
    Epsilon,
    /// Velocity, as Stable Diffusion 2.x for pictures of 768 × 768 does
    V,
}

impl ModelArgs {
    /// Opens it, and says what was assumed.
    pub fn open(&self) -> Result<Checkpoint> {
        let checkpoint = Checkpoint::open_with(&self.model, &self.options())?;
        checkpoint.notes()?.iter().for_each(|text| note(text));
        Ok(checkpoint)
    }

    /// What is said of it.
    pub fn options(&self) -> ModelOptions {
        let prediction = self.prediction.map(|prediction| match prediction {
            Prediction::Epsilon => PredictionType::Epsilon,
            Prediction::V => PredictionType::VPrediction,
        });
        ModelOptions { vae: self.vae.clone(), config: self.config.clone(), prediction }
    }
}
