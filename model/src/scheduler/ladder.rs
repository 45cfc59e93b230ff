//! Which timesteps and noise levels a sampler visits.

use super::samplers::Way;
use crate::config::Spacing;
use crate::{Error, Result};

/// How σ falls from step to step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sigmas {
    /// As the model's timesteps have it, whose spacing is chosen.
    Normal,
    /// Equal steps in σ^(1/7) from the largest to the smallest (arXiv 2206.00364, equation 5).
    Karras,
}

/// The seventh root in [`Sigmas::Karras`].
const RHO: f64 = 7.0;

/// Where a sampler rests: `sigmas` has one entry more than `timesteps`, the last, which is 0.
pub(super) struct Ladder {
    pub timesteps: Vec<f64>,
    pub sigmas: Vec<f64>,
}

impl Way<'_> {
    /// Training timesteps, noisiest first: those that image to image does not leave out. The rounding is numpy's.
    pub(super) fn timesteps(&self) -> Vec<usize> {
        let (total, steps) = (self.schedule.timesteps(), self.steps);
        let ascending = |f: &dyn Fn(usize) -> usize| (0..steps).rev().map(f).collect();
        let mut all: Vec<usize> = match self.spacing {
            Spacing::Leading => ascending(&|i| i * (total / steps) + self.config.steps_offset),
            Spacing::Linspace => {
                let stride = (total - 1) as f64 / (steps - 1).max(1) as f64;
                ascending(&|i| (i as f64 * stride).round_ties_even() as usize)
            }
            Spacing::Trailing => self.trailing(),
        };
        all.drain(..self.begin);
        all
    }

    fn trailing(&self) -> Vec<usize> {
        let total = self.schedule.timesteps() as f64;
        let stride = total / self.steps as f64;
        (0..self.steps).map(|i| (total - i as f64 * stride).round_ties_even() as usize - 1).collect()
    }

    /// The ladder of samplers in σ, whose linear spacing may fall between timesteps.
    ///
    /// # Errors
    /// Timesteps leave the range of training; so for [`multistep`](Self::multistep).
    pub(super) fn continuous(&self) -> Result<Ladder> {
        let total = self.schedule.timesteps();
        let table = self.sigma_table();
        let timesteps: Vec<f64> = match self.spacing {
            Spacing::Linspace => {
                let stride = (total - 1) as f64 / (self.steps - 1).max(1) as f64;
                // numpy's linspace in f32, as the model is told timesteps in f32
                let at = |i: usize| if self.steps == 1 { 0.0 } else { f64::from((i as f64 * stride) as f32) };
                (0..self.steps).rev().map(at).collect()
            }
            _ => Way { begin: 0, ..*self }.timesteps().into_iter().map(|t| t as f64).collect(),
        };
        let sigmas = self.sigmas_at(&table, &timesteps)?;
        let ladder = match self.sigmas {
            Sigmas::Normal => Ladder { timesteps, sigmas },
            Sigmas::Karras => self.karras(&table, sigmas[0], sigmas[self.steps - 1], |t| t),
        };
        Ok(self.cut(ladder))
    }

    /// The ladder of multistep samplers: at timesteps, and as if there was one more step, which lands at timestep 0.
    pub(super) fn multistep(&self) -> Result<Ladder> {
        let (total, steps) = (self.schedule.timesteps(), self.steps);
        let table = self.sigma_table();
        if self.sigmas == Sigmas::Karras {
            return Ok(self.cut(self.karras(&table, table[total - 1], table[0], f64::round_ties_even)));
        }
        let timesteps: Vec<usize> = match self.spacing {
            Spacing::Leading => {
                let stride = total / (steps + 1);
                if stride == 0 {
                    let message = format!(
                        "{steps} steps with leading spacing; choose 1 to {}, or another spacing",
                        total - 1
                    );
                    return Err(Error::Scheduler(message));
                }
                (1..=steps).rev().map(|i| i * stride + self.config.steps_offset).collect()
            }
            Spacing::Linspace => {
                let stride = (total - 1) as f64 / steps as f64;
                (1..=steps).rev().map(|i| (i as f64 * stride).round_ties_even() as usize).collect()
            }
            Spacing::Trailing => self.trailing(),
        };
        let timesteps: Vec<f64> = timesteps.into_iter().map(|t| t as f64).collect();
        let sigmas = self.sigmas_at(&table, &timesteps)?;
        Ok(self.cut(Ladder { timesteps, sigmas }))
    }

    /// What plain noise is multiplied by to begin in σ.
    pub(super) fn init_sigma(&self, largest: f64) -> f64 {
        // with leading spacing the first timestep is not all noise, as it is taken to be otherwise
        if self.spacing == Spacing::Leading { (largest * largest + 1.0).sqrt() } else { largest }
    }

    /// σ of every timestep; pure noise is left a trace of signal, as σ is a ratio.
    pub(super) fn sigma_table(&self) -> Vec<f64> {
        const TRACE: f64 = 1.0 / (1 << 24) as f64;
        let sigma = |alpha: &f64| {
            let alpha = alpha.max(TRACE);
            ((1.0 - alpha) / alpha).sqrt()
        };
        self.schedule.alphas_cumprod().iter().map(sigma).collect()
    }

    fn sigmas_at(&self, table: &[f64], timesteps: &[f64]) -> Result<Vec<f64>> {
        let at = |t: &f64| {
            let low = *t as usize;
            let sigma = self.schedule.alpha_cumprod(low).map(|_| table[low])?;
            let high = table.get(low + 1).copied().unwrap_or(sigma);
            Ok(sigma + (high - sigma) * t.fract())
        };
        timesteps.iter().map(at).collect()
    }

    fn karras(&self, table: &[f64], largest: f64, smallest: f64, round: impl Fn(f64) -> f64) -> Ladder {
        let (from, to) = (largest.powf(1.0 / RHO), smallest.powf(1.0 / RHO));
        let at = |i: usize| (from + (to - from) * i as f64 / (self.steps - 1).max(1) as f64).powf(RHO);
        let sigmas: Vec<f64> = (0..self.steps).map(at).collect();
        let timesteps = sigmas.iter().map(|sigma| round(timestep_of(table, *sigma))).collect();
        Ladder { timesteps, sigmas }
    }

    /// Leaves out what image to image does not take, and ends without noise.
    fn cut(&self, mut ladder: Ladder) -> Ladder {
        ladder.timesteps.drain(..self.begin);
        ladder.sigmas.drain(..self.begin);
        ladder.sigmas.push(0.0);
        ladder
    }
}

/// The timestep of a σ, between two of the table by its logarithm.
pub(super) fn timestep_of(table: &[f64], sigma: f64) -> f64 {
    let low =
        table.partition_point(|entry| *entry <= sigma).saturating_sub(1).min(table.len().saturating_sub(2));
    let (a, b) = (table[low].ln(), table[low + 1].ln());
    low as f64 + ((sigma.ln() - a) / (b - a)).clamp(0.0, 1.0)
}
