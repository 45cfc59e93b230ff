//! Heun's method in σ (arXiv 2206.00364): an Euler step, and again with the mean of the slopes at both its ends.

use super::Way;
use super::euler::finish;
use crate::Result;
use crate::scheduler::Plan;
use crate::scheduler::plan::Planner;

/// x' = x + (σ' − σ) (ε + ε')/2, with ε' at x + (σ' − σ) ε; the last step is Euler's.
pub(super) fn plan(way: &Way<'_>) -> Result<Plan> {
    let ladder = way.continuous()?;
    let mut planner = Planner::new(way.schedule.prediction_type());
    for (i, t) in ladder.timesteps.iter().enumerate() {
        let (sigma, next) = (ladder.sigmas[i], ladder.sigmas[i + 1]);
        let first = planner.call_sigma(*t, sigma);
        planner.land(first.x.clone() + &first.eps * (next - sigma));
        if let Some(t) = ladder.timesteps.get(i + 1) {
            let second = planner.call_sigma(*t, next);
            planner.land(first.x + (first.eps + second.eps) * ((next - sigma) / 2.0));
        }
    }
    Ok(finish(way, planner, &ladder))
}
