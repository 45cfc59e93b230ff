//! Euler's method in σ (arXiv 2206.00364), and the same with fresh noise at every step.
//!
//! The sample is x₀ + σ ε here, and the model is shown it at the size that it was trained on.

use super::Way;
use crate::Result;
use crate::scheduler::ladder::Ladder;
use crate::scheduler::plan::{Level, Planner, Sum, Told};
use crate::scheduler::{Mix, Plan};

/// x' = x + (σ' − σ) ε.
pub(super) fn plan(way: &Way<'_>) -> Result<Plan> {
    steps(way, |_, told, sigma, next| told.x + told.eps * (next - sigma))
}

/// Down to less noise than wanted, and up again by fresh noise; see [`up_and_down`].
pub(super) fn ancestral(way: &Way<'_>) -> Result<Plan> {
    steps(way, |i, told, sigma, next| {
        let [up, down] = up_and_down(sigma, next);
        told.x + told.eps * (down - sigma) + Sum::noise(i) * up
    })
}

/// A call for each σ, and `step` from it to the next.
fn steps(way: &Way<'_>, step: impl Fn(usize, Told, f64, f64) -> Sum) -> Result<Plan> {
    let ladder = way.continuous()?;
    let mut planner = Planner::new(way.schedule.prediction_type());
    for (i, t) in ladder.timesteps.iter().enumerate() {
        let (sigma, next) = (ladder.sigmas[i], ladder.sigmas[i + 1]);
        let told = planner.call_sigma(*t, sigma);
        planner.land(step(i, told, sigma, next));
    }
    Ok(finish(way, planner, &ladder))
}

/// σ of fresh noise, and the σ to go down to for it: their squares add up to that of `next`.
pub(super) fn up_and_down(sigma: f64, next: f64) -> [f64; 2] {
    let up = (next.powi(2) * (sigma.powi(2) - next.powi(2)) / sigma.powi(2)).sqrt().min(next);
    [up, (next.powi(2) - up.powi(2)).sqrt()]
}

/// The plan of a sampler in σ.
pub(super) fn finish(way: &Way<'_>, planner: Planner, ladder: &Ladder) -> Plan {
    let largest = ladder.sigmas[0];
    planner.finish(way.init_sigma(largest), Mix { x0: 1.0, noise: largest as f32 })
}

impl Planner {
    /// A call of the model on a sample in σ.
    pub(super) fn call_sigma(&mut self, timestep: f64, sigma: f64) -> Told {
        let level = Level::of_sigma(sigma);
        self.call(timestep, level, level.signal)
    }
}
