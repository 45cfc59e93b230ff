//! DDIM (arXiv 2010.02502): from deterministic (η = 0) to as much fresh noise as in training (η = 1).

use super::Way;
use crate::Result;
use crate::scheduler::Plan;
use crate::scheduler::plan::{Level, Planner, Sum};

/// x' = √ᾱ' x₀ + √(1−ᾱ'−σ²) ε + σ n, σ² = η² (1−ᾱ')/(1−ᾱ) (1 − ᾱ/ᾱ').
pub(super) fn plan(way: &Way<'_>) -> Result<Plan> {
    let mut planner = Planner::new(way.schedule.prediction_type());
    let timesteps = way.timesteps();
    for (i, &t) in timesteps.iter().enumerate() {
        let here = way.schedule.alpha_cumprod(t)?;
        // diffusers steps back by the same stride whatever the spacing
        let next = way.alpha_before(t, way.stride());
        let told = planner.call(t as f64, Level::of_alpha(here), 1.0);
        let variance = ((1.0 - next) / (1.0 - here) * (1.0 - here / next)).max(0.0);
        let sigma = way.eta * variance.sqrt();
        let (signal, noise) = (next.sqrt(), (1.0 - next - sigma * sigma).max(0.0).sqrt());
        planner.land(told.x0 * signal + told.eps * noise + Sum::noise(i) * sigma);
    }
    Ok(planner.finish(1.0, way.schedule.add_noise(timesteps[0])?))
}

impl Way<'_> {
    /// Timesteps from one step to the next.
    pub(super) fn stride(&self) -> usize {
        self.schedule.timesteps() / self.steps
    }

    /// ᾱ so many timesteps before `t`, or where the last step lands.
    pub(super) fn alpha_before(&self, t: usize, stride: usize) -> f64 {
        let table = self.schedule.alphas_cumprod();
        let last = if self.config.set_alpha_to_one { 1.0 } else { table[0] };
        t.checked_sub(stride).map_or(last, |t| table[t])
    }
}
