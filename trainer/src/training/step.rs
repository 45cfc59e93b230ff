//! One training step, from top to bottom.
//!
//! [`Lesson::step`] is the whole of it: for each batch, `pick` the samples, `mix` them into a [`Batch`], let the model
//! without the LoRA `teach` what is preserved, and let [`Learner::backward`] run the U-Net and add up gradients; then
//! [`Learner::update`] moves the LoRA, and [`Silence`] takes out of it what must not be heard. The base model
//! is frozen throughout: nothing but the LoRA has a gradient, a moment, or a copy.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use strata_engine::Tensor;
use strata_model::{NoiseSchedule, Unet};

use crate::config::FeatureConfig;
use crate::data::latents::Latents;
use crate::data::texts::Texts;
use crate::features::preserve::Preservation;
use crate::features::silence::Silence;
use crate::noise::{self, Stream};
use crate::training::learner::{Batch, Learner};
use crate::training::loss::Losses;
use crate::{Config, Error, LossScale, Result, StepRecord};

/// What a feature is trained with.
pub struct Lesson<'a> {
    /// The run's config.
    pub config: &'a Config,
    /// The feature.
    pub feature: &'a FeatureConfig,
    /// All chance in the lesson comes from this number.
    pub seed: u64,
    /// One per picture.
    pub captions: Vec<&'a str>,
    /// Of the pictures.
    pub latents: &'a Latents,
    /// States of every caption, of nothing, and of every prompt that is preserved.
    pub texts: &'a Texts,
    /// Prompts without the tag.
    pub preservation: &'a Preservation,
    /// The model's noise.
    pub schedule: &'a NoiseSchedule,
    /// For each of these texts, how strong each LoRA set that is attached to the U-Net is in its samples: found out once,
    /// when captions are read.
    pub gates: BTreeMap<String, Vec<f32>>,
}

impl Lesson<'_> {
    /// Takes one step, counted from 0: `gradient_accumulation` batches forward and backward, then one update. The LoRA of
    /// `learner` is attached to `unet`; `silence` is its own, if any.
    ///
    /// # Errors
    /// [`Error::Diverged`] where gradients are not finite and no smaller loss scale can help; else the GPU's.
    pub fn step(
        &self,
        unet: &Unet,
        learner: &mut Learner,
        silence: Option<&Silence>,
        step: u64,
    ) -> Result<StepRecord> {
        let started = Instant::now();
        let (config, feature) = (self.config, self.feature);
        let train = &config.train;
        let mut losses = Vec::new();
        for batch in 0..train.gradient_accumulation {
            let samples = self.pick(step, batch);
            let mut batch = self.mix(step, &samples)?;
            learner.teach(unet, &mut batch)?;
            losses.push(learner.backward(unet, &batch)?);
        }
        let share = train.schedule.share(step, config.steps_of(feature));
        let loss_scale = learner.loss_scale().clone();
        let update = learner.update(share)?;
        if update.hopeless {
            return Err(diverged(step, &loss_scale));
        }
        if let Some(silence) = silence {
            silence.apply()?;
        }
        let mean = |part: &dyn Fn(&Losses) -> Option<&Tensor>| -> Result<Option<f32>> {
            let Some(parts) = losses.iter().map(part).collect::<Option<Vec<_>>>() else { return Ok(None) };
            let parts = parts.into_iter().map(Tensor::to_f32).collect::<Result<Vec<_>, _>>()?.concat();
            Ok(Some(parts.iter().sum::<f32>() / parts.len() as f32))
        };
        let (seconds, samples) = (started.elapsed().as_secs_f64(), config.samples_per_step());
        Ok(StepRecord {
            feature: (!feature.name.is_empty()).then(|| feature.name.clone()),
            step,
            epoch: ((step + 1) * samples) as f64 / self.latents.len() as f64,
            loss: mean(&|l| Some(&l.total))?.unwrap_or(f32::NAN),
            preserve_loss: mean(&|l| l.preserved.as_ref())?,
            grad_norm: update.grad_norm,
            lr: (train.lr * share) as f32,
            loss_scale: loss_scale.is_dynamic().then_some(loss_scale.value()),
            skipped: update.skipped,
            seconds,
            samples_per_second: samples as f64 / seconds,
        })
    }

    /// The pictures that a step learns from, by number.
    pub(crate) fn pictures(&self, step: u64) -> BTreeSet<usize> {
        let batches = 0..self.config.train.gradient_accumulation;
        batches.flat_map(|batch| self.pick(step, batch)).map(|sample| sample.picture).collect()
    }

    /// Which samples make up a batch of a step. Samples are counted across all batches of the step.
    fn pick(&self, step: u64, batch: u32) -> Vec<Sample> {
        let (seed, train) = (self.seed, &self.config.train);
        let size = u64::from(train.batch_size);
        let per_step = self.config.samples_per_step();
        let picked = |sample: u64| Sample {
            index: sample,
            picture: noise::sample_index(seed, step * per_step + sample, self.latents.len()),
            flip: self.feature.dataset.flip && noise::chance(seed, Stream::Flip, step, sample, 0.5),
            empty_caption: noise::chance(seed, Stream::Caption, step, sample, train.caption_dropout),
            timestep: noise::uniform_timestep(seed, step, sample, train.timestep_min, train.timestep_max),
        };
        (u64::from(batch) * size..u64::from(batch + 1) * size).map(picked).collect()
    }

    /// Draws latents and noise for the samples and mixes them to what the U-Net sees and what it should say; then, of
    /// the same latents, noise and timesteps, what is preserved.
    fn mix(&self, step: u64, samples: &[Sample]) -> Result<Batch> {
        let [h, w, channels] = self.latents.shape();
        let (mut batch, mut said) = (Batch::default(), Vec::new());
        let (loss, weight) = (&self.config.train.loss, self.feature.loss_weight as f32);
        let mut normal = vec![0.0; h * w * channels];
        for s in samples {
            noise::normal(self.seed, Stream::Latent, step, s.index, &mut normal);
            let latent = self.latents.sample(s.picture, s.flip, &normal);
            noise::normal(self.seed, Stream::Noise, step, s.index, &mut normal);
            loss.offset_noise(self.seed, step, s.index, channels, &mut normal);
            loss.add_sample(self.schedule, s.timestep, &latent, &normal, weight, &mut batch)?;
            said.push(if s.empty_caption { "" } else { self.captions[s.picture] });
        }
        if let Some(preserve) = &self.feature.preserve {
            let count = preserve.samples(samples.len());
            said.extend(self.preserve(step, samples, count, preserve.weight as f32, &mut batch));
        }
        batch.latent_shape = [said.len(), h, w, channels];
        self.say(&said, &mut batch)?;
        Ok(batch)
    }

    /// Adds `count` samples that are to stay what they are, and returns their prompts. The batch's loss becomes
    /// mean(learned) + weight · mean(preserved).
    fn preserve(
        &self,
        step: u64,
        samples: &[Sample],
        count: usize,
        weight: f32,
        batch: &mut Batch,
    ) -> Vec<&str> {
        let size = batch.noisy.len() / samples.len();
        let mut prompts = Vec::new();
        for i in 0..count {
            let (s, index) = (&samples[i % samples.len()], samples[0].index * 8 + i as u64);
            let Some(prompt) = self.preservation.draw(self.seed, step, index, s.picture) else {
                return prompts;
            };
            let from = i % samples.len() * size;
            batch.noisy.extend_from_within(from..from + size);
            batch.target.extend(std::iter::repeat_n(0.0, size));
            batch.timesteps.push(s.timestep as f32);
            batch.preserved += 1;
            prompts.push(prompt);
        }
        let all = (samples.len() + count) as f32;
        batch.weights.iter_mut().for_each(|w| *w *= all / samples.len() as f32);
        batch.weights.resize(samples.len() + count, weight * all / count as f32);
        prompts
    }

    /// Adds the text of every sample, each as long as the longest of them, and the gates that it sets.
    fn say(&self, said: &[&str], batch: &mut Batch) -> Result<()> {
        let chunks = self.texts.chunks(said.iter().copied())?;
        let [tokens, channels] = self.texts.shape_of(chunks);
        batch.context_shape = [said.len(), tokens, channels];
        for text in said {
            batch.context.extend_from_slice(&self.texts.get(text, chunks)?);
            let missing = || Error::Dataset(format!("{text:?}: nothing says which features are on in it"));
            let gates = self.gates.get(*text).ok_or_else(missing)?;
            batch.gates.resize(gates.len(), Vec::new());
            batch.gates.iter_mut().zip(gates).for_each(|(samples, gate)| samples.push(*gate));
        }
        Ok(())
    }
}

/// What chance says about one sample.
struct Sample {
    /// Position within the step.
    index: u64,
    picture: usize,
    flip: bool,
    empty_caption: bool,
    timestep: u32,
}

fn diverged(step: u64, loss_scale: &LossScale) -> Error {
    let message = match loss_scale.is_dynamic() {
        true => {
            "gradients are not finite in f16 even with a loss scale of 1; train with dtype = \"f32\", or lower lr"
        }
        false => "gradients are not finite in f32; lower lr, and look for damaged pictures or weights",
    };
    Error::Diverged { step, message: message.to_owned() }
}
