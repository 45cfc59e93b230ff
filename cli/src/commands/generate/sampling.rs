//! How to sample.

use anyhow::{Result, bail};
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use strata_model::config::Spacing;
use strata_model::{SAMPLERS, Sampler, Sampling, Sigmas, Together};

use crate::commands::MAX_SAMPLING_STEPS;

/// The way from noise to a picture.
#[derive(clap::Args)]
pub struct SamplingArgs {
    /// The way from noise to a picture
    #[arg(long, value_parser = sampler(), default_value = SAMPLERS[0].name)]
    pub sampler: &'static Sampler,
    /// Steps of the sampler
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..=MAX_SAMPLING_STEPS))]
    pub steps: u32,
    /// How the noise falls from step to step [default: as the model's scheduler_config.json has it]
    #[arg(long, value_enum)]
    pub sigmas: Option<SigmasArg>,
    /// Which timesteps are visited [default: as scheduler_config.json has it, else as is usual for the sampler]
    #[arg(long, value_enum)]
    spacing: Option<SpacingArg>,
    /// Fresh noise at every step of ddim: 0 = none, 1 = as much as in ddpm
    #[arg(long, default_value_t = 0.0, value_parser = share)]
    eta: f64,
    /// How far to go from the negative prompt towards the prompt; 1 = plain prompt
    #[arg(long, default_value_t = 7.5, value_parser = guidance)]
    pub guidance: f32,
    /// How far to bring guided predictions back to the spread of plain ones; about 0.7 for models with zero-terminal SNR
    #[arg(long, default_value_t = 0.0, value_parser = share)]
    guidance_rescale: f64,
    /// How several LoRAs whose tags are in the prompt act together
    #[arg(long, value_enum, default_value_t = TogetherArg::Sum)]
    together: TogetherArg,
}

/// How the noise falls.
#[derive(Debug, Clone, Copy, PartialEq, clap::ValueEnum)]
pub enum SigmasArg {
    /// As at the model's timesteps
    Normal,
    /// In equal steps of its seventh root: smaller ones towards the end
    Karras,
}

/// Which timesteps are visited.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum SpacingArg {
    /// Equal strides from the first one on
    Leading,
    /// Equal strides back from the last one
    Trailing,
    /// From the first to the last one
    Linspace,
}

/// How several LoRAs act together.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum TogetherArg {
    /// Their changes are added up in the model, as in other programs
    Sum,
    /// Each place of the picture goes to the one that changes it most; runs the model once more for each
    Place,
}

impl SamplingArgs {
    /// What the model is told.
    pub fn sampling(&self) -> Sampling {
        Sampling {
            sampler: self.sampler,
            steps: self.steps as usize,
            sigmas: self.sigmas.map(|sigmas| match sigmas {
                SigmasArg::Normal => Sigmas::Normal,
                SigmasArg::Karras => Sigmas::Karras,
            }),
            spacing: self.spacing.map(|spacing| match spacing {
                SpacingArg::Leading => Spacing::Leading,
                SpacingArg::Trailing => Spacing::Trailing,
                SpacingArg::Linspace => Spacing::Linspace,
            }),
            eta: self.eta,
            guidance: self.guidance,
            rescale: self.guidance_rescale as f32,
            together: match self.together {
                TogetherArg::Sum => Together::Sum,
                TogetherArg::Place => Together::Place,
            },
            ..Sampling::default()
        }
    }
}

/// Reads the name of a sampler.
fn sampler() -> impl TypedValueParser<Value = &'static Sampler> {
    let value = |sampler: &Sampler| {
        PossibleValue::new(sampler.name).help(format!("{}: {}", sampler.title, sampler.about))
    };
    // every possible value is one of the table
    PossibleValuesParser::new(SAMPLERS.iter().map(value))
        .map(|name| Sampler::named(&name).unwrap_or(&SAMPLERS[0]))
}

fn guidance(text: &str) -> Result<f32> {
    match text.parse::<f32>() {
        Ok(guidance) if guidance.is_finite() && guidance >= 0.0 => Ok(guidance),
        _ => bail!("choose a number of at least 0, such as 7.5"),
    }
}

fn share(text: &str) -> Result<f64> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => bail!("choose a number from 0 to 1"),
    }
}
