//! One training step, from top to bottom.
//!
//! [`Trainer::step`] is the whole of it: for each batch, `pick` the samples, `mix` them into a [`Batch`], let the model
//! without the LoRA `teach` what is preserved, and let [`Learner::backward`] run the U-Net and add up gradients; then
//! [`Learner::update`] moves the LoRA, and [`Silence`] takes out of it what must not be heard. The base model
//! is frozen throughout: nothing but the LoRA has a gradient, a moment, or a copy.

use std::time::Instant;

use strata_engine::Tensor;
use strata_model::{NoiseSchedule, Unet};

use crate::config::FeatureConfig;
use crate::data::cache::{Latents, Texts};
use crate::features::preserve::Preservation;
use crate::features::silence::Silence;
use crate::noise::{self, Stream};
use crate::training::learner::{Batch, Learner};
use crate::training::loss::Losses;
use crate::{Config, Error, LossScale, Result, StepRecord, Tags};

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
    pub preservation: Preservation,
    /// The model's noise.
    pub schedule: &'a NoiseSchedule,
    /// For each LoRA set attached to the U-Net, the tags that switch it on: it is frozen. None for those that are off,
    /// and for the feature's own, which is always on.
    pub company: Vec<Option<&'a Tags>>,
}

/// Takes the steps of a lesson.
pub struct Trainer<'a> {
    lesson: Lesson<'a>,
    learner: Learner,
    silence: Option<Silence>,
}

impl<'a> Trainer<'a> {
    /// A trainer before its first step. `learner` holds the LoRA of the feature.
    pub fn new(lesson: Lesson<'a>, learner: Learner, silence: Option<Silence>) -> Self {
        Self { lesson, learner, silence }
    }

    /// Takes one step, counted from 0: `gradient_accumulation` batches forward and backward, then one update. `unet`
    /// is the one that the learner's LoRA is attached to.
    ///
    /// # Errors
    /// [`Error::Diverged`] where gradients are not finite and no smaller loss scale can help; else the GPU's.
    pub fn step(&mut self, unet: &Unet, step: u64) -> Result<StepRecord> {
        let started = Instant::now();
        let (config, feature) = (self.lesson.config, self.lesson.feature);
        let train = &config.train;
        let mut losses = Vec::new();
        for batch in 0..train.gradient_accumulation {
            let samples = self.lesson.pick(step, batch);
            let mut batch = self.lesson.mix(step, &samples, self.learner.feature())?;
            self.learner.teach(unet, &mut batch)?;
            losses.push(self.learner.backward(unet, &batch)?);
        }
        let share = train.schedule.share(step, config.steps_of(feature));
        let loss_scale = self.learner.loss_scale().clone();
        let update = self.learner.update(share)?;
        if update.hopeless {
            return Err(diverged(step, &loss_scale));
        }
        if let Some(silence) = &self.silence {
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
            epoch: ((step + 1) * samples) as f64 / self.lesson.latents.len() as f64,
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
}

impl Lesson<'_> {
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
    /// the same latents, noise and timesteps, what is preserved. `own` is the place of the feature's LoRA set.
    fn mix(&self, step: u64, samples: &[Sample], own: usize) -> Result<Batch> {
        let [h, w, channels] = self.latents.shape();
        let mut batch = Batch { gates: vec![Vec::new(); self.company.len()], ..Batch::default() };
        let (loss, weight) = (&self.config.train.loss, self.feature.loss_weight as f32);
        let mut normal = vec![0.0; h * w * channels];
        for s in samples {
            noise::normal(self.seed, Stream::Latent, step, s.index, &mut normal);
            let latent = self.latents.sample(s.picture, s.flip, &normal);
            noise::normal(self.seed, Stream::Noise, step, s.index, &mut normal);
            loss.offset_noise(self.seed, step, s.index, channels, &mut normal);
            loss.add_sample(self.schedule, s.timestep, &latent, &normal, weight, &mut batch)?;
            let caption = if s.empty_caption { "" } else { self.captions[s.picture] };
            self.say(caption, own, &mut batch)?;
        }
        if let Some(preserve) = &self.feature.preserve {
            let count = preserve.samples(samples.len());
            self.preserve(step, samples, own, count, preserve.weight as f32, &mut batch)?;
        }
        let [tokens, text_channels] = self.texts.shape();
        batch.latent_shape = [batch.timesteps.len(), h, w, channels];
        batch.context_shape = [batch.timesteps.len(), tokens, text_channels];
        Ok(batch)
    }

    /// Adds `count` samples that are to stay what they are. The batch's loss becomes mean(learned) + weight ·
    /// mean(preserved).
    fn preserve(
        &self,
        step: u64,
        samples: &[Sample],
        own: usize,
        count: usize,
        weight: f32,
        batch: &mut Batch,
    ) -> Result<()> {
        let size = batch.noisy.len() / samples.len();
        for i in 0..count {
            let (s, index) = (&samples[i % samples.len()], samples[0].index * 8 + i as u64);
            let Some(prompt) = self.preservation.draw(self.seed, step, index, s.picture) else {
                return Ok(());
            };
            let from = i % samples.len() * size;
            batch.noisy.extend_from_within(from..from + size);
            batch.target.extend(std::iter::repeat_n(0.0, size));
            batch.timesteps.push(s.timestep as f32);
            self.say(prompt, own, batch)?;
            batch.preserved += 1;
        }
        let all = (samples.len() + count) as f32;
        batch.weights.iter_mut().for_each(|w| *w *= all / samples.len() as f32);
        batch.weights.resize(samples.len() + count, weight * all / count as f32);
        Ok(())
    }

    /// Adds the text of a sample, and the gates that it sets.
    fn say(&self, text: &str, own: usize, batch: &mut Batch) -> Result<()> {
        batch.context.extend(self.texts.get(text)?);
        for (i, (gates, tags)) in batch.gates.iter_mut().zip(&self.company).enumerate() {
            let called = match tags {
                Some(tags) => tags.are_in(text)?,
                None => false,
            };
            gates.push(if i == own || called { 1.0 } else { 0.0 });
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
