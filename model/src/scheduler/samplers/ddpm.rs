//! DDPM (arXiv 2006.11239): the steps of training turned around.

use super::Way;
use crate::Result;
use crate::scheduler::Plan;
use crate::scheduler::plan::{Level, Planner, Sum};

/// With α = ᾱ/ᾱ' and β = 1 − α: x' = √ᾱ' β/(1−ᾱ) x₀ + √α (1−ᾱ')/(1−ᾱ) x + √((1−ᾱ')/(1−ᾱ) β) n.
pub(super) fn plan(way: &Way<'_>) -> Result<Plan> {
    let mut planner = Planner::new(way.schedule.prediction_type());
    let timesteps = way.timesteps();
    for (i, &t) in timesteps.iter().enumerate() {
        let here = way.schedule.alpha_cumprod(t)?;
        let next = match timesteps.get(i + 1) {
            Some(&t) => way.schedule.alpha_cumprod(t)?,
            None => 1.0,
        };
        let told = planner.call(t as f64, Level::of_alpha(here), 1.0);
        let (alpha, share) = (here / next, (1.0 - next) / (1.0 - here));
        let mean = told.x0 * (next.sqrt() * (1.0 - alpha) / (1.0 - here)) + told.x * (alpha.sqrt() * share);
        planner.land(mean + Sum::noise(i) * (share * (1.0 - alpha)).sqrt());
    }
    Ok(planner.finish(1.0, way.schedule.add_noise(timesteps[0])?))
}
