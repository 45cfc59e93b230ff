//! From prompts and seeds to latents.

use strata_engine::{DType, Tensor};

use crate::noise::{self, Stream};
use crate::{
    Conditioning, Feature, Gates, Pipeline, Prompt, Prompts, Result, Sampling, Start, Takes, Wording,
};

/// Pictures to draw at once: their prompts in text states, and when each feature is on in them.
pub struct Scene {
    prompts: Prompts,
    takes: Takes,
    sampling: Sampling,
    /// Height, width and channels of latents.
    shape: [usize; 3],
}

impl Scene {
    /// Encodes prompts that were read with `features`, those of the LoRA sets that are attached. `dtype` is the U-Net's, h × w
    /// the size of latents, and `skip` [`TextEncoder::encode`](crate::TextEncoder::encode)'s.
    ///
    /// # Errors
    /// `skip` is more than there are layers, a region is none, or the GPU fails.
    pub fn new(
        pipeline: &Pipeline,
        wording: &Wording,
        features: &[Feature],
        sampling: &Sampling,
        dtype: DType,
        [h, w]: [usize; 2],
        skip: usize,
    ) -> Result<Self> {
        // prompts in which the same features are on with the same strength are encoded together, and all without LoRA
        let heard = if pipeline.text.clip().has_lora() { features } else { &[] };
        let encode = |prompts: &[Prompt], half: usize| {
            let gates = |prompt: &Prompt| -> Vec<f32> {
                let each = heard.iter().enumerate();
                each.map(|(i, feature)| feature.in_text(i, prompt, sampling.together)[half]).collect()
            };
            let strengths: Vec<Vec<f32>> = wording.wanted.iter().map(gates).collect();
            let mut states = Vec::new();
            for group in strengths.iter().zip(prompts).collect::<Vec<_>>().chunk_by(|a, b| a.0 == b.0) {
                let prompts: Vec<Prompt> = group.iter().map(|(_, prompt)| (*prompt).clone()).collect();
                let gates = Gates::scalars(group[0].0);
                states.push(pipeline.text.encode_with(&prompts, skip, &gates)?);
            }
            Conditioning::together(states)?.cast(dtype)
        };
        Ok(Self {
            prompts: Prompts { wanted: encode(&wording.wanted, 0)?, unwanted: encode(&wording.unwanted, 1)? },
            takes: wording.takes(features, sampling, [h, w])?,
            sampling: sampling.clone(),
            shape: [h, w, pipeline.unet.config().in_channels],
        })
    }

    /// Latents [B, h, w, C] whose noise comes from a seed for each picture; `picture` has the latents to begin with, if any.
    /// `tick` is called after each call of the model.
    ///
    /// # Errors
    /// Seeds and prompts are not equally many, or [`Pipeline::sample`]'s.
    pub fn draw(
        &self,
        pipeline: &Pipeline,
        seeds: &[u64],
        picture: Option<&[f32]>,
        mut tick: impl FnMut(),
    ) -> Result<Tensor> {
        let [h, w, channels] = self.shape;
        let normal = |stream, step, values: &mut [f32]| {
            for (seed, values) in seeds.iter().zip(values.chunks_exact_mut(h * w * channels)) {
                noise::normal(*seed, stream, step, 0, values);
            }
        };
        let mut start = vec![0.0; seeds.len() * h * w * channels];
        normal(Stream::Picture, 0, &mut start);
        let fresh = |k, values: &mut [f32]| normal(Stream::Sampling, k as u64, values);
        let (start, shape) = (Start { noise: &start, picture }, [seeds.len(), h, w, channels]);
        pipeline.sample(&self.prompts, start, shape, &self.takes, &self.sampling, fresh, |_| tick())
    }
}
