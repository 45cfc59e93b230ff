//! Noise: how much of it a timestep has, what the model should predict, and the ways back ([`Sampler`]).
//!
//! With ᾱ_t = Π(1 − β): z_t = √ᾱ x₀ + √(1−ᾱ) ε, v = √ᾱ ε − √(1−ᾱ) x₀, SNR = ᾱ / (1−ᾱ).
//! Coefficients are f64 until they meet the data.

mod ladder;
mod plan;
mod samplers;

use crate::config::{BetaSchedule, PredictionType, SchedulerConfig};
use crate::{Error, Result};

pub use ladder::Sigmas;
pub use plan::{Call, Plan, Walk};
pub use samplers::{SAMPLERS, Sampler};

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
