//! DPM-Solver++ of second order by a call between σ and σ', stochastic (k-diffusion's `sample_dpmpp_sde`).

use super::Way;
use super::euler::{finish, up_and_down};
use crate::Result;
use crate::scheduler::Plan;
use crate::scheduler::ladder::timestep_of;
use crate::scheduler::plan::{Planner, Sum};

/// To m = √(σ σ') first, and then all the way with the x₀ found there. To each τ of the two:
/// x' = (down/σ) x + (1 − down/σ) x₀ + up · n, with `up` and `down` of τ. The noise is that of one Brownian motion over σ:
/// on the whole way it is that of the way to m and that of the way on, by their lengths.
pub(super) fn plan(way: &Way<'_>) -> Result<Plan> {
    let (ladder, table) = (way.continuous()?, way.sigma_table());
    let mut planner = Planner::new(way.schedule.prediction_type());
    for (i, t) in ladder.timesteps.iter().enumerate() {
        let (sigma, next) = (ladder.sigmas[i], ladder.sigmas[i + 1]);
        let first = planner.call_sigma(*t, sigma);
        if next == 0.0 {
            planner.land(first.x0);
            continue;
        }
        let land = |x0: Sum, to: f64, noise: Sum| {
            let [up, down] = up_and_down(sigma, to);
            &first.x * (down / sigma) + x0 * (1.0 - down / sigma) + noise * up
        };
        let middle = (sigma * next).sqrt();
        let (there, on) = (Sum::noise(2 * i), Sum::noise(2 * i + 1));
        planner.land(land(first.x0, middle, there.clone()));
        let second = planner.call_sigma(timestep_of(&table, middle), middle);
        let whole = there * (sigma - middle).sqrt() + on * (middle - next).sqrt();
        planner.land(land(second.x0, next, whole * (1.0 / (sigma - next).sqrt())));
    }
    Ok(finish(way, planner, &ladder))
}
