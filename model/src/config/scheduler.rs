//! The noise schedule's configuration.

use std::path::Path;

use serde_json::{Value, json};

use super::fields::{Fields, positive};
use crate::Result;

/// What the model says about a noisy latent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The model predicts the noise ε.
    Epsilon,
    /// v = √ᾱ ε − √(1−ᾱ) x₀.
    VPrediction,
    /// x₀ itself.
    Sample,
}

/// How β grows over the timesteps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Linear in β.
    Linear,
    /// Linear in √β: Stable Diffusion's.
    ScaledLinear,
    /// The cosine schedule.
    SquaredcosCapV2,
}

/// Which of the timesteps a sampler with fewer steps visits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spacing {
    /// Equal strides from the first timestep on.
    Leading,
    /// Equal strides back from the last timestep.
    Trailing,
    /// From the first to the last timestep, both included.
    Linspace,
}

/// The noise schedule and what sampling needs, whichever sampler class the file was written for.
#[derive(Debug, Clone, PartialEq)]
pub struct SchedulerConfig {
    /// Timesteps the model was trained on.
    pub num_train_timesteps: usize,
    /// β of the first timestep.
    pub beta_start: f64,
    /// β of the last timestep.
    pub beta_end: f64,
    /// How β grows between them.
    pub beta_schedule: BetaSchedule,
    /// Every β, in place of the three above.
    pub trained_betas: Option<Vec<f64>>,
    /// What the model says.
    pub prediction_type: PredictionType,
    /// Whether the last timestep is made pure noise.
    pub rescale_betas_zero_snr: bool,
    /// Added to the timesteps with leading spacing.
    pub steps_offset: usize,
    /// Whether the last step lands on ᾱ = 1 rather than on that of timestep 0.
    pub set_alpha_to_one: bool,
    /// Which timesteps a sampler visits; `None` if the file leaves it to the sampler.
    pub timestep_spacing: Option<Spacing>,
    /// Whether samplers that can take Karras sigmas do.
    pub use_karras_sigmas: bool,
    /// Whether a sampler clips to −1 to 1, which is for pixels and refused by [`Plan`](crate::Plan).
    pub clip_sample: bool,
    /// Whether a sampler thresholds, which is for pixels and refused by [`Plan`](crate::Plan).
    pub thresholding: bool,
    /// What of the file was not used, and why: a sentence each.
    pub notes: Vec<String>,
}

impl SchedulerConfig {
    /// That of Stable Diffusion 1.5.
    pub fn sd15() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: BetaSchedule::ScaledLinear,
            trained_betas: None,
            prediction_type: PredictionType::Epsilon,
            rescale_betas_zero_snr: false,
            steps_offset: 1,
            set_alpha_to_one: false,
            timestep_spacing: Some(Spacing::Leading),
            use_karras_sigmas: false,
            clip_sample: false,
            thresholding: false,
            notes: Vec::new(),
        }
    }

    /// Reads scheduler_config.json. Missing keys get the defaults of diffusers' `DDIMScheduler.from_config`, but
    /// for one: a file of a sampler that does not know `clip_sample` does not mean DDIM's default of clipping.
    ///
    /// # Errors
    /// As [`UnetConfig::open`](super::UnetConfig::open); flow matching is refused.
    pub fn open(path: &Path) -> Result<Self> {
        let mut f = Fields::open(path)?;
        let class = f.class().to_owned();
        if class.contains("Flow") {
            return Err(f.refuse("_class_name", &json!(class), "flow matching is not supported"));
        }
        f.only("use_flow_sigmas", &[json!(false), Value::Null])?;
        f.only(
            "variance_type",
            &[
                json!("fixed_small"),
                json!("fixed_small_log"),
                json!("fixed_large"),
                json!("fixed_large_log"),
                Value::Null,
            ],
        )?;
        // Settings of samplers that have one value here, and of samplers that are not here.
        f.skip(&[
            "skip_prk_steps",
            "tensor_format",
            "algorithm_type",
            "solver_order",
            "solver_type",
            "solver_p",
            "lower_order_final",
            "euler_at_final",
            "final_sigmas_type",
            "interpolation_type",
            "lambda_min_clipped",
            "use_exponential_sigmas",
            "use_beta_sigmas",
            "use_lu_lambdas",
            "sigma_min",
            "sigma_max",
            "sigma_data",
            "sigma_schedule",
            "rho",
            "timestep_type",
            "timestep_scaling",
            "original_inference_steps",
            "disable_corrector",
            "predict_x0",
            "clip_sample_range",
            "sample_max_value",
            "dynamic_thresholding_ratio",
            "flow_shift",
            "shift_terminal",
            "time_shift_type",
            "use_dynamic_shifting",
        ]);
        // Rarer ones.
        f.set_aside(
            &[
                "base_image_seq_len",
                "base_shift",
                "clip_denoised",
                "corrector_order",
                "correct_steps",
                "eta",
                "invert_sigmas",
                "max_image_seq_len",
                "max_shift",
                "noise_sampler_seed",
                "predictor_order",
                "s_noise",
                "sampling_eps",
                "set_alpha_to_zero",
                "shift",
                "snr",
                "stochastic_sampling",
                "tau_func",
                "timestep_values",
            ],
            "samplers that are not here, or settings of theirs that have one value here",
        );
        let clips_by_default = class.starts_with("DDIM") || class.starts_with("DDPM");
        let config = Self {
            num_train_timesteps: f.count("num_train_timesteps", 1000)?,
            beta_start: positive(&mut f, "beta_start", 0.0001)?,
            beta_end: positive(&mut f, "beta_end", 0.02)?,
            beta_schedule: f.or("beta_schedule", BetaSchedule::Linear)?,
            trained_betas: f.get("trained_betas")?,
            prediction_type: f.or("prediction_type", PredictionType::Epsilon)?,
            rescale_betas_zero_snr: f.or("rescale_betas_zero_snr", false)?,
            steps_offset: f.or("steps_offset", 0)?,
            set_alpha_to_one: f.or("set_alpha_to_one", true)?,
            timestep_spacing: f.get("timestep_spacing")?,
            use_karras_sigmas: f.or("use_karras_sigmas", false)?,
            clip_sample: f.or("clip_sample", clips_by_default)?,
            thresholding: f.or("thresholding", false)?,
            notes: f.finish()?,
        };
        Ok(config)
    }
}
