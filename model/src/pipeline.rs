//! All of Stable Diffusion, from one folder.

use std::path::Path;

use strata_engine::{DType, Gpu};

use crate::config::{ModelIndex, SchedulerConfig};
use crate::{Clip, ClipTokenizer, NoiseSchedule, Result, Unet, Vae};

/// The parts of a Stable Diffusion 1.x or 2.x model.
pub struct Pipeline {
    /// Text to token ids.
    pub tokenizer: ClipTokenizer,
    /// Token ids to text states.
    pub clip: Clip,
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
    /// Opens a folder in diffusers' layout: model_index.json beside a folder for each part.
    ///
    /// # Errors
    /// A part is missing, damaged, of another kind of model, or does not fit onto the GPU.
    pub fn open(gpu: &Gpu, root: &Path, dtype: DType) -> Result<Self> {
        ModelIndex::open(root)?;
        let scheduler = SchedulerConfig::open(&root.join("scheduler").join("scheduler_config.json"))?;
        Ok(Self {
            tokenizer: ClipTokenizer::open(&root.join("tokenizer"))?,
            clip: Clip::open(gpu, &root.join("text_encoder"), dtype)?,
            unet: Unet::open(gpu, &root.join("unet"), dtype)?,
            vae: Vae::open(gpu, &root.join("vae"), dtype)?,
            schedule: NoiseSchedule::new(&scheduler)?,
            scheduler,
        })
    }
}
