//! One training step, from top to bottom.
//!
//! [`Trainer::step`] is the whole of it: for each batch, `pick` the samples, `mix` them into a [`Batch`], let the model
//! without the LoRA `teach` what is preserved, and let [`Learner::backward`] run the U-Net and add up gradients; then
//! [`Learner::update`] moves the LoRA, and [`Silence`] takes out of it what must not be heard. The base model
//! is frozen throughout: nothing but the LoRA has a gradient, a moment, or a copy.

use std::time::Instant;

use strata_engine::Tensor;
use strata_model::{NoiseSchedule, PredictionType};

use crate::config::FeatureConfig;
use crate::data::latents::Latents;
use crate::data::texts::Texts;
use crate::features::preserve::Preservation;
use crate::features::silence::Silence;
use crate::noise::{self, Stream};
use crate::training::learner::{Batch, Learner, Losses, UpdateArgs};
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
    /// Chunks that every text is brought to.
    pub chunks: usize,
    /// For each LoRA set attached to the U-Net, the tags that switch it on: it is frozen. None for those that are off,
    /// and for the feature's own, which is always on.
    pub company: Vec<Option<&'a Tags>>,
}

/// Takes the steps of a lesson.
pub struct Trainer<'a> {
    lesson: Lesson<'a>,
    learner: Learner<'a>,
    silence: Option<Silence>,
}

impl<'a> Trainer<'a> {
    /// A trainer before its first step. `learner` holds the LoRA of the feature.
    pub fn new(lesson: Lesson<'a>, learner: Learner<'a>, silence: Option<Silence>) -> Self {
        Self { lesson, learner, silence }
    }

    /// Takes one step, counted from 0: `gradient_accumulation` batches forward and backward, then one update.
    ///
    /// # Errors
    /// [`Error::Diverged`] where gradients are not finite and no smaller loss scale can help; else the GPU's.
    pub fn step(&mut self, step: u64) -> Result<StepRecord> {
        let started = Instant::now();
        let (config, feature) = (self.lesson.config, self.lesson.feature);
        let train = &config.train;
        let mut losses = Vec::new();
        for batch in 0..train.gradient_accumulation {
            let samples = self.lesson.pick(step, batch);
            let mut batch = self.lesson.mix(step, &samples, self.learner.feature())?;
            self.learner.teach(&mut batch)?;
            losses.push(self.learner.backward(&batch)?);
        }
        let share = config.lr_factor(step, config.steps_of(feature));
        let loss_scale = self.learner.loss_scale().clone();
        let update = self.learner.update(&UpdateArgs {
            lr: (train.lr * share) as f32,
            lr_share: share as f32,
            betas: train.betas.map(|beta| beta as f32),
            eps: train.eps as f32,
            weight_decay: train.weight_decay as f32,
            max_norm: train.max_grad_norm as f32,
            batches: train.gradient_accumulation,
        })?;
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
        let weight = self.feature.loss_weight as f32;
        let mut normal = vec![0.0; h * w * channels];
        for s in samples {
            noise::normal(self.seed, Stream::Latent, step, s.index, &mut normal);
            let latent = self.latents.sample(s.picture, s.flip, &normal);
            noise::normal(self.seed, Stream::Noise, step, s.index, &mut normal);
            self.offset_noise(step, s.index, &mut normal);

            let t = s.timestep as usize;
            batch.noisy.extend(self.schedule.add_noise(t)?.apply(&latent, &normal)?);
            batch.target.extend(self.schedule.training_target(t)?.apply(&latent, &normal)?);
            batch.timesteps.push(s.timestep as f32);
            batch.weights.push(weight * loss_weight(self.schedule, t, self.config.train.min_snr_gamma)?);
            let caption = if s.empty_caption { "" } else { self.captions[s.picture] };
            self.say(caption, own, &mut batch)?;
        }
        if let Some(preserve) = &self.feature.preserve {
            let count = preserve.samples(samples.len());
            self.preserve(step, samples, own, count, preserve.weight as f32, &mut batch)?;
        }
        let [tokens, text_channels] = self.texts.shape_of(self.chunks);
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
        batch.context.extend_from_slice(&self.texts.get(text, self.chunks)?);
        for (i, (gates, tags)) in batch.gates.iter_mut().zip(&self.company).enumerate() {
            let called = match tags {
                Some(tags) => tags.are_in(text)?,
                None => false,
            };
            gates.push(if i == own || called { 1.0 } else { 0.0 });
        }
        Ok(())
    }

    /// Adds `noise_offset` · (one normal number per channel) to the noise.
    fn offset_noise(&self, step: u64, sample: u64, noise: &mut [f32]) {
        let offset = self.config.train.noise_offset as f32;
        let [.., channels] = self.latents.shape();
        if offset > 0.0 {
            let mut shift = vec![0.0; channels];
            noise::normal(self.seed, Stream::Offset, step, sample, &mut shift);
            let pixels = noise.chunks_exact_mut(channels);
            pixels.for_each(|pixel| pixel.iter_mut().zip(&shift).for_each(|(x, shift)| *x += offset * shift));
        }
    }
}

/// Min-SNR: min(SNR, γ) / SNR where the model predicts noise, / (SNR + 1) for v, and min(SNR, γ) for x₀, all of which
/// weigh the error of x₀ alike (arXiv 2303.09556). 1 without γ.
fn loss_weight(schedule: &NoiseSchedule, t: usize, gamma: Option<f64>) -> Result<f32> {
    let Some(gamma) = gamma else { return Ok(1.0) };
    let snr = schedule.snr(t)?;
    let weight = match schedule.prediction_type() {
        PredictionType::Epsilon if snr <= gamma => 1.0,
        PredictionType::Epsilon => gamma / snr,
        PredictionType::VPrediction => snr.min(gamma) / (snr + 1.0),
        PredictionType::Sample => snr.min(gamma),
    };
    Ok(weight as f32)
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

#[cfg(test)]
mod tests {
    use super::*;
    use strata_model::SchedulerConfig;
    use strata_model::config::{BetaSchedule, Spacing};

    /// Stable Diffusion's schedule, whose SNR at timestep 100 is 8.45389 and at 500 is 0.38185.
    fn schedule(prediction_type: PredictionType) -> NoiseSchedule {
        let config = SchedulerConfig {
            num_train_timesteps: 1000,
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: BetaSchedule::ScaledLinear,
            trained_betas: None,
            prediction_type,
            rescale_betas_zero_snr: false,
            steps_offset: 1,
            set_alpha_to_one: false,
            timestep_spacing: Spacing::Leading,
            clip_sample: false,
            thresholding: false,
            notes: Vec::new(),
        };
        NoiseSchedule::new(&config).unwrap()
    }

    #[test]
    fn min_snr_weights() {
        let (epsilon, v) = (schedule(PredictionType::Epsilon), schedule(PredictionType::VPrediction));
        let cases = [
            (&epsilon, 100, Some(5.0), 5.0 / 8.45389),
            (&epsilon, 500, Some(5.0), 1.0),
            (&epsilon, 100, None, 1.0),
            (&v, 100, Some(5.0), 5.0 / 9.45389),
            (&v, 500, Some(5.0), 0.38185 / 1.38185),
        ];
        for (schedule, t, gamma, expected) in cases {
            let weight = loss_weight(schedule, t, gamma).unwrap();
            assert!((weight - expected).abs() < 1e-5, "t {t}, γ {gamma:?}: {weight}, not {expected}");
        }
    }
}
