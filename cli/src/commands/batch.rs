//! Pictures that are drawn at once, each of a prompt and a seed of its own.

use anyhow::Result;
use strata_engine::{DType, Tensor};
use strata_model::{Feature, Pipeline, Prompt, Prompts, Sampling, Wording};
use strata_trainer::noise::{self, Stream};

/// What to draw, and how.
pub struct Batch<'a> {
    pub prompts: &'a [&'a str],
    /// Where the noise of each comes from, as in `strata generate`.
    pub seeds: &'a [u64],
    /// How each of the attached LoRA sets is gated.
    pub features: &'a [Feature],
    pub sampling: Sampling,
    /// Number format of the U-Net.
    pub dtype: DType,
    /// Height, width and channels of latents.
    pub shape: [usize; 3],
}

impl Batch<'_> {
    /// Latents [B, h, w, C], away from the empty prompt. `tick` is called after each step.
    pub fn latents(&self, pipeline: &Pipeline, tick: &mut dyn FnMut()) -> Result<Tensor> {
        let (count, [h, w, channels]) = (self.prompts.len(), self.shape);
        let wording =
            Wording::read(pipeline.text.tokenizer(), self.prompts, &vec![""; count], self.features)?;
        let takes = wording.takes(self.features, &self.sampling, [h, w])?;
        let encode = |prompts: &[Prompt]| pipeline.text.encode(prompts, 0)?.cast(self.dtype);
        let prompts = Prompts { wanted: encode(&wording.wanted)?, unwanted: encode(&wording.unwanted)? };
        let mut start = vec![0.0; count * h * w * channels];
        for (seed, start) in self.seeds.iter().zip(start.chunks_exact_mut(h * w * channels)) {
            noise::normal(*seed, Stream::Picture, 0, 0, start);
        }
        let shape = [count, h, w, channels];
        Ok(pipeline.sample(&prompts, &start, shape, &takes, &self.sampling, |_| tick())?)
    }
}
