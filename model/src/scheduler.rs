//! Noise: how much of it a timestep has, what the model should predict, and DDIM's way back.
//!
//! With ᾱ_t = Π(1 − β): z_t = √ᾱ x₀ + √(1−ᾱ) ε, v = √ᾱ ε − √(1−ᾱ) x₀, SNR = ᾱ / (1−ᾱ).
//! Coefficients are f64 until they meet the data.

use crate::config::{BetaSchedule, PredictionType, SchedulerConfig, Spacing};
use crate::{Error, Result};

/// ᾱ for every training timestep.
#[derive(Debug, Clone)]
pub struct NoiseSchedule {
    alphas_cumprod: Vec<f64>,
    prediction: PredictionType,
}

/// A weighted sum of a clean latent and its noise: the two numbers a kernel needs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mix {
    /// Weight of the clean latent.
    pub x0: f32,
    /// Weight of the noise.
    pub noise: f32,
}

impl Mix {
    /// x0 · `self.x0` + noise · `self.noise`, element by element.
    ///
    /// # Errors
    /// The two differ in length.
    pub fn apply(&self, x0: &[f32], noise: &[f32]) -> Result<Vec<f32>> {
        if x0.len() != noise.len() {
            return Err(Error::Scheduler(format!(
                "{} values cannot be mixed with {} of noise",
                x0.len(),
                noise.len()
            )));
        }
        Ok(x0.iter().zip(noise).map(|(x, n)| self.x0 * x + self.noise * n).collect())
    }
}

impl NoiseSchedule {
    /// The schedule that a configuration describes.
    ///
    /// # Errors
    /// Betas outside 0 < β < 1, `trained_betas` of another length than `num_train_timesteps`, or a timestep of pure noise
    /// in a model that predicts noise.
    pub fn new(config: &SchedulerConfig) -> Result<Self> {
        let betas = betas(config);
        if betas.len() != config.num_train_timesteps {
            let message = format!(
                "{} trained_betas for num_train_timesteps {}",
                betas.len(),
                config.num_train_timesteps
            );
            return Err(Error::Scheduler(message));
        }
        if let Some(bad) = betas.iter().find(|b| !(**b > 0.0 && **b < 1.0)) {
            return Err(Error::Scheduler(format!(
                "beta {bad} is not between 0 and 1; check beta_start and beta_end"
            )));
        }
        // Diffusers keeps this table in f32, which moves 1 − ᾱ₀ by 3e-5: enough to see, so it is rounded alike here.
        let round = |x: f64| f64::from(x as f32);
        let cumulate = |product: &mut f64, beta: &f64| {
            *product *= round(1.0 - round(*beta));
            Some(round(*product))
        };
        let mut alphas_cumprod: Vec<f64> = betas.iter().scan(1.0, cumulate).collect();
        if config.rescale_betas_zero_snr {
            rescale_to_zero_snr(&mut alphas_cumprod);
        }
        let pure = alphas_cumprod.iter().position(|alpha| *alpha == 0.0);
        if let (Some(t), PredictionType::Epsilon) = (pure, config.prediction_type) {
            return Err(Error::Scheduler(format!(
                "timestep {t} is pure noise (rescale_betas_zero_snr), from which a model that predicts noise (epsilon) tells \
                 nothing; if it was trained that way its prediction_type is v_prediction, else set rescale_betas_zero_snr to \
                 false in scheduler_config.json"
            )));
        }
        Ok(Self { alphas_cumprod, prediction: config.prediction_type })
    }

    /// ᾱ_t for t = 0, 1, …
    pub fn alphas_cumprod(&self) -> &[f64] {
        &self.alphas_cumprod
    }

    /// How many training timesteps there are.
    pub fn timesteps(&self) -> usize {
        self.alphas_cumprod.len()
    }

    /// What the model says.
    pub fn prediction_type(&self) -> PredictionType {
        self.prediction
    }

    /// ᾱ_t.
    ///
    /// # Errors
    /// `t` is not a training timestep; so for all methods below.
    pub fn alpha_cumprod(&self, t: usize) -> Result<f64> {
        let count = self.timesteps();
        let error = || {
            Error::Scheduler(format!(
                "timestep {t} is out of range; the model was trained on 0 to {}",
                count - 1
            ))
        };
        self.alphas_cumprod.get(t).copied().ok_or_else(error)
    }

    /// z_t = √ᾱ x₀ + √(1−ᾱ) ε.
    ///
    /// # Errors
    /// There is no such timestep.
    pub fn add_noise(&self, t: usize) -> Result<Mix> {
        let alpha = self.alpha_cumprod(t)?;
        Ok(Mix { x0: alpha.sqrt() as f32, noise: (1.0 - alpha).sqrt() as f32 })
    }

    /// v = √ᾱ ε − √(1−ᾱ) x₀.
    ///
    /// # Errors
    /// There is no such timestep.
    pub fn velocity(&self, t: usize) -> Result<Mix> {
        let noisy = self.add_noise(t)?;
        Ok(Mix { x0: -noisy.noise, noise: noisy.x0 })
    }

    /// What the model's output is compared with in training.
    ///
    /// # Errors
    /// There is no such timestep.
    pub fn training_target(&self, t: usize) -> Result<Mix> {
        match self.prediction {
            PredictionType::Epsilon => self.alpha_cumprod(t).map(|_| Mix { x0: 0.0, noise: 1.0 }),
            PredictionType::Sample => self.alpha_cumprod(t).map(|_| Mix { x0: 1.0, noise: 0.0 }),
            PredictionType::VPrediction => self.velocity(t),
        }
    }

    /// Signal to noise, ᾱ / (1−ᾱ).
    ///
    /// # Errors
    /// There is no such timestep.
    pub fn snr(&self, t: usize) -> Result<f64> {
        self.alpha_cumprod(t).map(|alpha| alpha / (1.0 - alpha))
    }
}

fn betas(config: &SchedulerConfig) -> Vec<f64> {
    if let Some(betas) = &config.trained_betas {
        return betas.clone();
    }
    let n = config.num_train_timesteps;
    let between = |a: f64, b: f64, i: usize| a + (b - a) * i as f64 / (n - 1).max(1) as f64;
    let (start, end) = (config.beta_start, config.beta_end);
    let cosine =
        |i: usize| ((i as f64 / n as f64 + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
    (0..n)
        .map(|i| match config.beta_schedule {
            BetaSchedule::Linear => between(start, end, i),
            BetaSchedule::ScaledLinear => between(start.sqrt(), end.sqrt(), i).powi(2),
            BetaSchedule::SquaredcosCapV2 => (1.0 - cosine(i + 1) / cosine(i)).min(0.999),
        })
        .collect()
}

/// Shifts and scales √ᾱ so that the last timestep is pure noise and the first stays (arXiv 2305.08891, algorithm 1).
fn rescale_to_zero_snr(alphas_cumprod: &mut [f64]) {
    let &[first, .., last] = &*alphas_cumprod else { return };
    let (first, last) = (first.sqrt(), last.sqrt());
    for alpha in alphas_cumprod {
        *alpha = ((alpha.sqrt() - last) * first / (first - last)).powi(2);
    }
}

/// Deterministic (η = 0) to fully stochastic (η = 1) sampling, step by step.
#[derive(Debug, Clone)]
pub struct Ddim {
    timesteps: Vec<usize>,
    /// Per step: ᾱ here and ᾱ where the step lands.
    alphas: Vec<(f64, f64)>,
    prediction: PredictionType,
}

/// One step as a weighted sum: x' = `sample` · x + `output` · model(x) + `noise` · n, n a fresh normal sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DdimStep {
    /// Weight of the noisy latent.
    pub sample: f32,
    /// Weight of the model's output.
    pub output: f32,
    /// Weight of fresh noise.
    pub noise: f32,
}

impl Ddim {
    /// The way back in so many steps.
    ///
    /// # Errors
    /// `steps` is 0 or more than there are training timesteps, its timesteps leave that range, or the configuration
    /// asks for clipping or thresholding, which are for pixels and not for latents.
    pub fn new(schedule: &NoiseSchedule, config: &SchedulerConfig, steps: usize) -> Result<Self> {
        let total = schedule.timesteps();
        for (key, on) in [("clip_sample", config.clip_sample), ("thresholding", config.thresholding)] {
            if on {
                let message = format!(
                    "{key} is true, which distorts latents; set it to false in scheduler_config.json"
                );
                return Err(Error::Scheduler(message));
            }
        }
        if steps == 0 || steps > total {
            return Err(Error::Scheduler(format!("{steps} steps; choose 1 to {total}")));
        }
        let last = if config.set_alpha_to_one { 1.0 } else { schedule.alphas_cumprod[0] };
        let timesteps = spaced(config, total, steps);
        let mut alphas = Vec::with_capacity(steps);
        for &t in &timesteps {
            let here = schedule.alpha_cumprod(t)?;
            // Diffusers steps back by the same stride whatever the spacing.
            let next = t.checked_sub(total / steps).map_or(last, |t| schedule.alphas_cumprod[t]);
            alphas.push((here, next));
        }
        Ok(Self { timesteps, alphas, prediction: schedule.prediction })
    }

    /// The timesteps to run the model at, noisiest first.
    pub fn timesteps(&self) -> &[usize] {
        &self.timesteps
    }

    /// The weights of step `i`. With x₀ and ε as the model's output implies them:
    /// x' = √ᾱ' x₀ + √(1−ᾱ'−σ²) ε + σ n, σ² = η² (1−ᾱ')/(1−ᾱ) (1 − ᾱ/ᾱ').
    ///
    /// # Errors
    /// There is no step `i`, or `eta` is not in 0 to 1.
    pub fn coefficients(&self, i: usize, eta: f64) -> Result<DdimStep> {
        let Some(&(here, next)) = self.alphas.get(i) else {
            return Err(Error::Scheduler(format!("step {i} of {}", self.alphas.len())));
        };
        if !(0.0..=1.0).contains(&eta) {
            return Err(Error::Scheduler(format!("eta is {eta}; choose 0 (deterministic) to 1")));
        }
        let (signal, noise) = (here.sqrt(), (1.0 - here).sqrt());
        // (weight of x, weight of the output) in x₀ and in ε.
        let (x0, eps) = match self.prediction {
            PredictionType::Epsilon => ((1.0 / signal, -noise / signal), (0.0, 1.0)),
            PredictionType::VPrediction => ((signal, -noise), (noise, signal)),
            PredictionType::Sample => ((0.0, 1.0), (1.0 / noise, -signal / noise)),
        };
        let variance = ((1.0 - next) / (1.0 - here) * (1.0 - here / next)).max(0.0);
        let sigma = eta * variance.sqrt();
        let (a, b) = (next.sqrt(), (1.0 - next - sigma * sigma).max(0.0).sqrt());
        Ok(DdimStep {
            sample: (a * x0.0 + b * eps.0) as f32,
            output: (a * x0.1 + b * eps.1) as f32,
            noise: sigma as f32,
        })
    }

    /// Takes step `i` on the host, in place. `noise` is read only where η > 0 gives it weight.
    ///
    /// # Errors
    /// As [`coefficients`](Self::coefficients), and slices of different lengths or missing noise.
    pub fn step(
        &self,
        i: usize,
        eta: f64,
        sample: &mut [f32],
        output: &[f32],
        noise: Option<&[f32]>,
    ) -> Result<()> {
        let c = self.coefficients(i, eta)?;
        let noise = match noise {
            _ if c.noise == 0.0 => None,
            Some(noise) => Some(noise),
            None => return Err(Error::Scheduler(format!("step {i} with eta {eta} needs noise"))),
        };
        if output.len() != sample.len() || noise.is_some_and(|n| n.len() != sample.len()) {
            let noise = noise.map_or("none".into(), |n| n.len().to_string());
            let message = format!(
                "sample, output and noise must be equally long, not {}, {} and {noise}",
                sample.len(),
                output.len()
            );
            return Err(Error::Scheduler(message));
        }
        for (k, x) in sample.iter_mut().enumerate() {
            *x = c.sample * *x + c.output * output[k] + noise.map_or(0.0, |n| c.noise * n[k]);
        }
        Ok(())
    }
}

/// `steps` of `total` timesteps, noisiest first; the rounding is numpy's.
fn spaced(config: &SchedulerConfig, total: usize, steps: usize) -> Vec<usize> {
    let ascending = |f: &dyn Fn(usize) -> usize| (0..steps).rev().map(f).collect();
    match config.timestep_spacing {
        Spacing::Leading => ascending(&|i| i * (total / steps) + config.steps_offset),
        Spacing::Linspace => {
            let stride = (total - 1) as f64 / (steps - 1).max(1) as f64;
            ascending(&|i| (i as f64 * stride).round_ties_even() as usize)
        }
        Spacing::Trailing => {
            let stride = total as f64 / steps as f64;
            (0..steps).map(|i| (total as f64 - i as f64 * stride).round_ties_even() as usize - 1).collect()
        }
    }
}
