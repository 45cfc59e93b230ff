//! What a feature's loss is measured on.

use std::collections::BTreeSet;

use anyhow::Result;
use strata_engine::{DType, Gpu, Tape, Tensor};
use strata_model::{Conditioning, Cx, F32s, Gates, Pipeline, Unet, UnetInput};
use strata_trainer::noise::{self, Stream};
use strata_trainer::{Config, Dataset, FeatureConfig, Latents, Tags, Texts};

use super::BATCH;

/// Bands of timesteps.
const BANDS: u32 = 4;

/// Every picture of a feature with its caption, once in each of four bands of timesteps, with noise that is the same
/// whatever was trained.
pub struct Lesson {
    /// By picture.
    pub captions: Vec<String>,
    /// The loss without any LoRA.
    pub base: f64,
    /// Height, width and channels.
    shape: [usize; 3],
    /// Tokens and channels.
    text_shape: [usize; 2],
    /// By sample, here and below: band after band, all pictures in each.
    texts: Vec<f32>,
    noisy: Vec<f32>,
    target: Vec<f32>,
    timesteps: Vec<f32>,
}

impl Lesson {
    /// Reads the pictures and draws noise for them.
    pub fn new(gpu: &Gpu, config: &Config, feature: &FeatureConfig, pipeline: &Pipeline) -> Result<Self> {
        let dataset = Dataset::open(&feature.dataset)?;
        let latents = Latents::encode(gpu, &pipeline.vae, &dataset, false)?;
        let captions: Vec<String> = dataset.pictures().iter().map(|p| p.caption.clone()).collect();
        let own = Tags::new(pipeline.text.tokenizer(), &feature.tags)?;
        let tags: Vec<_> = own.iter().map(|tag| (0, tag)).collect();
        let texts = Texts::encode(&pipeline.text, &captions.iter().cloned().collect::<BTreeSet<_>>(), &tags)?;
        let chunks = texts.chunks(captions.iter().map(String::as_str))?;
        let mut lesson = Self {
            captions,
            base: 0.0,
            shape: latents.shape(),
            text_shape: texts.shape_of(chunks),
            texts: Vec::new(),
            noisy: Vec::new(),
            target: Vec::new(),
            timesteps: Vec::new(),
        };
        let (total, count) = (pipeline.schedule.timesteps() as u32, latents.shape().iter().product());
        for band in 0..BANDS {
            let (lo, hi) = (total * band / BANDS, total * (band + 1) / BANDS);
            for (i, caption) in lesson.captions.iter().enumerate() {
                let (step, sample) = (u64::from(band), i as u64);
                let t = noise::uniform_timestep(config.seed, step, sample, lo, hi);
                let mut normal = vec![0.0; count];
                let latent = latents.sample(i, false, &normal);
                noise::normal(config.seed, Stream::Noise, step, sample, &mut normal);
                let (mix, target) = (
                    pipeline.schedule.add_noise(t as usize)?,
                    pipeline.schedule.training_target(t as usize)?,
                );
                lesson.noisy.extend(mix.apply(&latent, &normal)?);
                lesson.target.extend(target.apply(&latent, &normal)?);
                lesson.timesteps.push(t as f32);
                lesson.texts.extend_from_slice(&texts.get(caption, chunks)?);
            }
        }
        lesson.base = lesson.loss(gpu, &pipeline.unet, None)?;
        Ok(lesson)
    }

    /// The mean squared error of what the model predicts, with one of the LoRA sets that are attached, or without any.
    pub fn loss(&self, gpu: &Gpu, unet: &Unet, set: Option<usize>) -> Result<f64> {
        let on: Vec<f32> = (0..unet.features()).map(|i| if Some(i) == set { 1.0 } else { 0.0 }).collect();
        let (tape, gates) = (Tape::off(), Gates::scalars(&on));
        let cx = Cx { gates: &gates, ..Cx::new(&tape) };
        let ([h, w, channels], [tokens, text_channels]) = (self.shape, self.text_shape);
        let (values, states) = (h * w * channels, tokens * text_channels);
        let batches = self
            .timesteps
            .chunks(BATCH)
            .zip(self.noisy.chunks(BATCH * values))
            .zip(self.texts.chunks(BATCH * states).zip(self.target.chunks(BATCH * values)));
        let mut sum = 0.0;
        for ((timesteps, noisy), (texts, target)) in batches {
            let size = timesteps.len();
            let noisy = Tensor::from_f32(gpu, noisy, &[size, h, w, channels], DType::F32)?;
            let shape = [size, tokens, text_channels];
            let conditioning = Conditioning::upload(gpu, texts, &shape, DType::F32)?;
            let input = UnetInput { sample: &noisy, timesteps, conditioning: &conditioning };
            let predicted = unet.forward(&cx, &input)?.to_f32()?;
            let pairs = predicted.iter().zip(target);
            sum += pairs.map(|(p, t)| (f64::from(*p) - f64::from(*t)).powi(2)).sum::<f64>();
        }
        Ok(sum / self.target.len() as f64)
    }

    /// What the model is given, and should say, for another program.
    pub fn inputs(&self, name: &str) -> F32s {
        let (samples, [h, w, channels]) = (self.timesteps.len(), self.shape);
        let shape = vec![samples, h, w, channels];
        F32s::from([
            (format!("{name}.noisy"), (shape.clone(), self.noisy.clone())),
            (format!("{name}.target"), (shape, self.target.clone())),
            (format!("{name}.timesteps"), (vec![samples], self.timesteps.clone())),
        ])
    }
}
