//! All of Stable Diffusion, open.

use strata_engine::{DType, Gpu};

use crate::config::SchedulerConfig;
use crate::{Checkpoint, NoiseSchedule, Result, TextEncoder, Unet, Vae};

/// The parts of a Stable Diffusion 1.x or 2.x model.
pub struct Pipeline {
    /// Text to what the U-Net is conditioned on.
    pub text: TextEncoder,
    /// Noisy latents and text states to noise.
    pub unet: Unet,
    /// Pictures to latents and back.
    pub vae: Vae,
    /// How much noise each timestep has.
    pub schedule: NoiseSchedule,
    /// How the schedule and the sampling are set.
    pub scheduler: SchedulerConfig,
}

impl Pipeline {
    /// Opens all parts: the U-Net in one number format, text encoder and VAE in another. These run once, and some VAEs
    /// overflow f16.
    ///
    /// # Errors
    /// A part is missing, damaged, of another kind of model, or does not fit onto the GPU.
    pub fn open(gpu: &Gpu, checkpoint: &Checkpoint, unet: DType, rest: DType) -> Result<Self> {
        let scheduler = checkpoint.scheduler()?;
        Ok(Self {
            text: checkpoint.text_encoder(gpu, rest)?,
            unet: checkpoint.unet(gpu, unet)?,
            vae: checkpoint.vae(gpu, rest)?,
            schedule: NoiseSchedule::new(&scheduler)?,
            scheduler,
        })
    }
}
