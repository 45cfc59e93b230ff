//! What a prediction should be, how far it is from that, and how much that counts.

use strata_engine::{DType, Gpu, Tape, Tensor};
use strata_kernels::mse;
use strata_model::{NoiseSchedule, PredictionType};

use crate::Result;
use crate::config::check::{if_set, not_negative, positive};
use crate::config::section::section;
use crate::noise::{self, Stream};
use crate::training::learner::Batch;
use crate::training::metadata::kohya_number;

section! {
    /// What a prediction should be, and how much it counts. Its keys stand in `[train]`.
    pub struct LossConfig {
        /// γ of min-SNR weighting: the loss at timestep t counts min(SNR(t), γ) / SNR(t). Default: every t counts 1.
        min_snr_gamma: Option<f64> = None, example |_| 5.0,
            "weighs steps by min(SNR, gamma) / SNR; default: off",
            check if_set(positive), also "snr_gamma";
        /// Standard deviation of a constant added to each channel of the noise. Default 0.
        noise_offset: f64 = 0.0, "shifts each channel of the noise; 0.05 helps dark pictures",
            check not_negative;
    }
}

/// The losses of a batch, f32 \[1\] and still on the GPU.
pub struct Losses {
    /// Mean over samples of weight · mean((prediction − target)²).
    pub total: Tensor,
    /// The share of the preserved samples in it.
    pub preserved: Option<Tensor>,
}

impl Losses {
    /// Of what the U-Net said about a batch; the tape goes back through the total alone.
    pub(crate) fn new(tape: &Tape, gpu: &Gpu, prediction: &Tensor, batch: &Batch) -> Result<Self> {
        let upload = |values: &[f32], shape: &[usize]| Tensor::from_f32(gpu, values, shape, DType::F32);
        let target = upload(&batch.target, &batch.latent_shape)?;
        let weigh = |weights: &[f32]| upload(weights, &[weights.len()]);
        let total = mse(tape, prediction, &target, &weigh(&batch.weights)?)?;
        let preserved = match batch.preserved {
            0 => None,
            count => {
                let mut weights = batch.weights.clone();
                let learned = weights.len() - count;
                weights[..learned].fill(0.0);
                Some(mse(&Tape::off(), prediction, &target, &weigh(&weights)?)?)
            }
        };
        Ok(Self { total, preserved })
    }
}

impl LossConfig {
    /// Adds a sample to a batch, but for its text: the latent with the noise that belongs to timestep `t`, what the U-Net
    /// should say about it, and how much that counts, times `weight`.
    pub(crate) fn add_sample(
        &self,
        schedule: &NoiseSchedule,
        t: u32,
        latent: &[f32],
        noise: &[f32],
        weight: f32,
        batch: &mut Batch,
    ) -> Result<()> {
        let step = t as usize;
        batch.noisy.extend(schedule.add_noise(step)?.apply(latent, noise)?);
        batch.target.extend(schedule.training_target(step)?.apply(latent, noise)?);
        batch.timesteps.push(t as f32);
        batch.weights.push(weight * self.weight(schedule, step)?);
        Ok(())
    }

    /// Adds `noise_offset` · (one normal number per channel) to the noise, whose last axis is `channels`.
    pub(crate) fn offset_noise(&self, seed: u64, step: u64, sample: u64, channels: usize, noise: &mut [f32]) {
        let offset = self.noise_offset as f32;
        if offset > 0.0 {
            let mut shift = vec![0.0; channels];
            noise::normal(seed, Stream::Offset, step, sample, &mut shift);
            let pixels = noise.chunks_exact_mut(channels);
            pixels.for_each(|pixel| pixel.iter_mut().zip(&shift).for_each(|(x, shift)| *x += offset * shift));
        }
    }

    /// Min-SNR: min(SNR, γ) / SNR where the model predicts noise, / (SNR + 1) for v, and min(SNR, γ) for x₀, all of which
    /// weigh the error of x₀ alike (arXiv 2303.09556). 1 without γ.
    fn weight(&self, schedule: &NoiseSchedule, t: usize) -> Result<f32> {
        let Some(gamma) = self.min_snr_gamma else { return Ok(1.0) };
        let snr = schedule.snr(t)?;
        let weight = match schedule.prediction_type() {
            PredictionType::Epsilon if snr <= gamma => 1.0,
            PredictionType::Epsilon => gamma / snr,
            PredictionType::VPrediction => snr.min(gamma) / (snr + 1.0),
            PredictionType::Sample => snr.min(gamma),
        };
        Ok(weight as f32)
    }

    /// What kohya's trainers call it, for a LoRA file.
    pub(crate) fn metadata(&self) -> [(&'static str, String); 2] {
        [
            ("ss_min_snr_gamma", self.min_snr_gamma.map_or("None".to_owned(), kohya_number)),
            ("ss_noise_offset", kohya_number(self.noise_offset)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use strata_model::SchedulerConfig;

    /// Stable Diffusion's schedule, whose SNR at timestep 100 is 8.45389 and at 500 is 0.38185.
    fn schedule(prediction_type: PredictionType) -> NoiseSchedule {
        let config = SchedulerConfig { prediction_type, ..SchedulerConfig::sd15() };
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
            let config = LossConfig { min_snr_gamma: gamma, noise_offset: 0.0 };
            let weight = config.weight(schedule, t).unwrap();
            assert!((weight - expected).abs() < 1e-5, "t {t}, γ {gamma:?}: {weight}, not {expected}");
        }
    }
}
