//! One training step, from top to bottom.
//!
//! [`Trainer::step`] is the whole of it: for each batch, `pick` the samples, `mix` them into a [`Batch`], and let
//! [`Learner::backward`] run the U-Net and add up gradients; then [`Learner::update`] moves the LoRA. The base model
//! is frozen throughout: nothing but the LoRA has a gradient, a moment, or a copy.

use std::time::Instant;

use strata_engine::{DType, Gpu, Tensor};
use strata_kernels::{AdamW, adamw, grad_norm, mse, tape};
use strata_model::{Cx, Gates, LoraSet, NoiseSchedule, PredictionType, Unet};

use crate::noise::{self, Stream};
use crate::{Cache, Config, Error, LossScale, Result, StepRecord};

/// Takes the steps of a run.
pub struct Trainer<'a> {
    config: &'a Config,
    cache: &'a Cache,
    schedule: &'a NoiseSchedule,
    learner: Learner<'a>,
}

impl<'a> Trainer<'a> {
    /// A trainer before its first step. `learner` holds the LoRA that `config` asks for.
    pub fn new(
        config: &'a Config,
        cache: &'a Cache,
        schedule: &'a NoiseSchedule,
        learner: Learner<'a>,
    ) -> Self {
        Self { config, cache, schedule, learner }
    }

    /// Takes one step, counted from 0: `gradient_accumulation` batches forward and backward, then one update.
    ///
    /// # Errors
    /// [`Error::Diverged`] where gradients are not finite and no smaller loss scale can help; else the GPU's.
    pub fn step(&mut self, step: u64) -> Result<StepRecord> {
        let started = Instant::now();
        let train = &self.config.train;
        let mut losses = Vec::new();
        for batch in 0..train.gradient_accumulation {
            let samples = self.pick(step, batch);
            let batch = self.mix(step, &samples)?;
            losses.push(self.learner.backward(&batch)?);
        }
        let share = self.config.lr_factor(step);
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
        let losses = losses.iter().map(Tensor::to_f32).collect::<Result<Vec<_>, _>>()?.concat();
        let (seconds, samples) = (started.elapsed().as_secs_f64(), self.config.samples_per_step());
        Ok(StepRecord {
            step,
            epoch: ((step + 1) * samples) as f64 / self.cache.len() as f64,
            loss: losses.iter().sum::<f32>() / losses.len() as f32,
            grad_norm: update.grad_norm,
            lr: (train.lr * share) as f32,
            loss_scale: loss_scale.is_dynamic().then_some(loss_scale.value()),
            skipped: update.skipped,
            seconds,
            samples_per_second: samples as f64 / seconds,
        })
    }

    /// Which samples make up a batch of a step. Samples are counted across all batches of the step.
    fn pick(&self, step: u64, batch: u32) -> Vec<Sample> {
        let (seed, train) = (self.config.seed, &self.config.train);
        let size = u64::from(train.batch_size);
        let picked = |sample: u64| Sample {
            index: sample,
            picture: noise::sample_index(
                seed,
                step * self.config.samples_per_step() + sample,
                self.cache.len(),
            ),
            flip: self.config.dataset.flip && noise::chance(seed, Stream::Flip, step, sample, 0.5),
            empty_caption: noise::chance(seed, Stream::Caption, step, sample, train.caption_dropout),
            timestep: noise::uniform_timestep(seed, step, sample, train.timestep_min, train.timestep_max),
        };
        (u64::from(batch) * size..u64::from(batch + 1) * size).map(picked).collect()
    }

    /// Draws latents and noise for the samples and mixes them to what the U-Net sees and what it should say.
    fn mix(&self, step: u64, samples: &[Sample]) -> Result<Batch> {
        let (seed, [h, w, channels]) = (self.config.seed, self.cache.latent_shape());
        let [tokens, text_channels] = self.cache.text_shape();
        let mut batch = Batch {
            latent_shape: [samples.len(), h, w, channels],
            context_shape: [samples.len(), tokens, text_channels],
            ..Batch::default()
        };
        let mut normal = vec![0.0; h * w * channels];
        for s in samples {
            noise::normal(seed, Stream::Latent, step, s.index, &mut normal);
            let latent = self.cache.latent(s.picture, s.flip, &normal);
            noise::normal(seed, Stream::Noise, step, s.index, &mut normal);
            self.offset_noise(step, s.index, &mut normal);

            let t = s.timestep as usize;
            batch.noisy.extend(self.schedule.add_noise(t)?.apply(&latent, &normal)?);
            batch.target.extend(self.schedule.training_target(t)?.apply(&latent, &normal)?);
            batch.timesteps.push(s.timestep as f32);
            batch.weights.push(loss_weight(self.schedule, t, self.config.train.min_snr_gamma)?);
            batch.context.extend(match s.empty_caption {
                true => self.cache.empty_text(),
                false => self.cache.text(s.picture),
            });
        }
        Ok(batch)
    }

    /// Adds `noise_offset` · (one normal number per channel) to the noise.
    fn offset_noise(&self, step: u64, sample: u64, noise: &mut [f32]) {
        let offset = self.config.train.noise_offset as f32;
        let [.., channels] = self.cache.latent_shape();
        if offset > 0.0 {
            let mut shift = vec![0.0; channels];
            noise::normal(self.config.seed, Stream::Offset, step, sample, &mut shift);
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

/// What goes through the U-Net at once, in host memory, row-major. B is the number of samples.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Batch {
    /// B, H, W, C of `noisy` and `target`.
    pub latent_shape: [usize; 4],
    /// What the U-Net sees.
    pub noisy: Vec<f32>,
    /// What it should say.
    pub target: Vec<f32>,
    /// One per sample.
    pub timesteps: Vec<f32>,
    /// B, tokens, channels of `context`.
    pub context_shape: [usize; 3],
    /// Text states.
    pub context: Vec<f32>,
    /// Factor on each sample's loss.
    pub weights: Vec<f32>,
}

/// What an update needs to know.
#[derive(Debug, Clone, PartialEq)]
pub struct UpdateArgs {
    /// Learning rate of layers that have none of their own.
    pub lr: f32,
    /// Share of their learning rate that layers with one of their own get in this step.
    pub lr_share: f32,
    /// AdamW's β₁ and β₂.
    pub betas: [f32; 2],
    /// AdamW's ε.
    pub eps: f32,
    /// AdamW's decay.
    pub weight_decay: f32,
    /// A longer gradient is scaled down to this norm; 0 = never.
    pub max_norm: f32,
    /// How many batches went into the gradients; their mean is followed.
    pub batches: u32,
}

/// What an update did.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// Norm of the whole gradient, free of the loss scale, before clipping.
    pub grad_norm: f32,
    /// The gradients were not finite, and nothing was changed.
    pub skipped: bool,
    /// Skipped, and the loss scale cannot be lowered any more.
    pub hopeless: bool,
}

/// A U-Net with one attached LoRA, and AdamW's state for it.
pub struct Learner<'a> {
    gpu: &'a Gpu,
    unet: &'a Unet,
    lora: &'a LoraSet,
    dtype: DType,
    /// All f32 and flat, in the order of the LoRA's parameters.
    grads: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    /// Updates made; skipped ones do not count.
    updates: u32,
    loss_scale: LossScale,
}

impl<'a> Learner<'a> {
    /// A learner before its first update. `lora` must be the only LoRA attached to `unet`, whose activations are
    /// of `dtype`.
    ///
    /// # Errors
    /// Out of GPU memory.
    pub fn new(gpu: &'a Gpu, unet: &'a Unet, lora: &'a LoraSet, dtype: DType) -> Result<Self> {
        let zeros = || Tensor::zeros(gpu, lora.params().shape(), DType::F32);
        let loss_scale = if dtype == DType::F16 { LossScale::dynamic() } else { LossScale::off() };
        let (grads, exp_avg, exp_avg_sq) = (zeros()?, zeros()?, zeros()?);
        Ok(Self { gpu, unet, lora, dtype, grads, exp_avg, exp_avg_sq, updates: 0, loss_scale })
    }

    /// Runs a batch forward and backward and adds to the gradients. Returns the loss, f32 \[1\], still on the GPU:
    /// mean over samples of weight · mean((prediction − target)²).
    ///
    /// # Errors
    /// Shapes that do not fit, or the GPU's.
    pub fn backward(&self, batch: &Batch) -> Result<Tensor> {
        let upload =
            |values: &[f32], shape: &[usize], dtype| Tensor::from_f32(self.gpu, values, shape, dtype);
        let noisy = upload(&batch.noisy, &batch.latent_shape, DType::F32)?;
        let target = upload(&batch.target, &batch.latent_shape, DType::F32)?;
        let context = upload(&batch.context, &batch.context_shape, self.dtype)?;
        let weights = upload(&batch.weights, &[batch.weights.len()], DType::F32)?;

        let tape = tape();
        self.lora.track(&tape, &self.grads)?;
        let gates = Gates::scalars(&[1.0]);
        let cx = Cx { gates: &gates, ..Cx::new(&tape) };
        let prediction = self.unet.forward(&cx, &noisy, &batch.timesteps, &context)?;
        let loss = mse(&tape, &prediction, &target, &weights)?;
        let grad_loss = upload(&[self.loss_scale.value()], &[1], DType::F32)?;
        tape.backward(&loss, grad_loss)?;
        Ok(loss)
    }

    /// Moves the LoRA by what [`Learner::backward`] gathered since the last update, unless it is not finite, and
    /// starts the gradients again from 0.
    ///
    /// # Errors
    /// The GPU's.
    pub fn update(&mut self, args: &UpdateArgs) -> Result<Update> {
        let norm = grad_norm(&self.grads)?;
        let grad_scale = 1.0 / (self.loss_scale.value() * args.batches as f32);
        for (own_lr, range) in self.lora.lr_groups() {
            let part = |flat: &Tensor| flat.view(range.start, &[range.len()]);
            let shadow = self.lora.shadow().map(part).transpose()?;
            let [params, exp_avg, exp_avg_sq, grads] = [
                part(self.lora.params())?,
                part(&self.exp_avg)?,
                part(&self.exp_avg_sq)?,
                part(&self.grads)?,
            ];
            let adam = AdamW {
                lr: own_lr.map_or(args.lr, |lr| lr * args.lr_share),
                beta1: args.betas[0],
                beta2: args.betas[1],
                eps: args.eps,
                weight_decay: args.weight_decay,
                step: self.updates + 1,
                grad_scale,
                max_norm: args.max_norm,
            };
            adamw(&params, &exp_avg, &exp_avg_sq, &grads, &norm, shadow.as_ref(), &adam)?;
        }
        self.grads.fill_zero();
        let grad_norm = norm.to_f32()?[0] * grad_scale;
        let finite = grad_norm.is_finite();
        self.updates += u32::from(finite);
        let can_go_on = self.loss_scale.observe(finite);
        Ok(Update { grad_norm, skipped: !finite, hopeless: !finite && !can_go_on })
    }

    /// The factor that the loss is multiplied by now.
    pub fn loss_scale(&self) -> &LossScale {
        &self.loss_scale
    }

    /// The gradients gathered so far, times the loss scale: flat, in the order of the LoRA's parameters.
    pub fn grads(&self) -> &Tensor {
        &self.grads
    }

    /// AdamW's running means of gradients and of their squares, in the same order.
    pub fn moments(&self) -> (&Tensor, &Tensor) {
        (&self.exp_avg, &self.exp_avg_sq)
    }
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
