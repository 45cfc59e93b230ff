//! Latent consistency (arXiv 2310.04378): a model distilled to say x₀ at once, and fresh noise between its calls.

use super::Way;
use crate::scheduler::Plan;
use crate::scheduler::plan::{Level, Planner, Sum};
use crate::{Error, Result};

/// Steps of the teacher, whose timesteps alone the model learned.
const TEACHER: usize = 50;
/// How clean latents vary, and how much a timestep weighs against it.
const DATA: f64 = 0.5;
const TIME: f64 = 10.0;

/// With s = 10 t: x₀' = s/√(s² + ¼) x₀ + ¼/(s² + ¼) x, and x' = √ᾱ' x₀' + √(1−ᾱ') n; the last step ends at x₀'.
pub(super) fn plan(way: &Way<'_>) -> Result<Plan> {
    if way.steps > TEACHER {
        return Err(Error::Scheduler(format!(
            "{} steps of lcm; choose 1 to {TEACHER}, such as 6",
            way.steps
        )));
    }
    let stride = way.schedule.timesteps() / TEACHER;
    let timestep = |i: usize| ((TEACHER - i * TEACHER / way.steps) * stride).saturating_sub(1);
    let timesteps: Vec<usize> = (way.begin..way.steps).map(timestep).collect();
    let mut planner = Planner::new(way.schedule.prediction_type());
    for (i, &t) in timesteps.iter().enumerate() {
        let told = planner.call(t as f64, Level::of_alpha(way.schedule.alpha_cumprod(t)?), 1.0);
        let square = (t as f64 * TIME).powi(2) + DATA * DATA;
        let clean = told.x0 * (t as f64 * TIME / square.sqrt()) + told.x * (DATA * DATA / square);
        planner.land(match timesteps.get(i + 1) {
            Some(&next) => {
                let next = Level::of_alpha(way.schedule.alpha_cumprod(next)?);
                clean * next.signal + Sum::noise(i) * next.noise
            }
            None => clean,
        });
    }
    Ok(planner.finish(1.0, way.schedule.add_noise(timesteps[0])?))
}
