//! PNDM (arXiv 2202.09778) without Runge-Kutta steps: what Stable Diffusion came with, also known as PLMS.

use super::Way;
use crate::Result;
use crate::scheduler::Plan;
use crate::scheduler::plan::{Level, Planner, Sum};

/// DDIM's step with a mean of the last outputs (Adams-Bashforth) in place of the last one. The second timestep is called twice:
/// the first step is taken again with the mean of the outputs at both its ends.
pub(super) fn plan(way: &Way<'_>) -> Result<Plan> {
    let prediction = way.schedule.prediction_type();
    let mut planner = Planner::new(prediction);
    let timesteps = way.timesteps();
    // from timestep t, one stride back
    let land = |t: usize, x: &Sum, output: &Sum| -> Result<Sum> {
        let here = Level::of_alpha(way.schedule.alpha_cumprod(t)?);
        let next = Level::of_alpha(way.alpha_before(t, way.stride()));
        let (x0, eps) = here.split(prediction, x, output);
        Ok(x0 * next.signal + eps * next.noise)
    };
    let mut outputs: Vec<Sum> = Vec::new();
    for (i, &t) in timesteps.iter().enumerate() {
        let level = Level::of_alpha(way.schedule.alpha_cumprod(t)?);
        let mut told = planner.call(t as f64, level, 1.0);
        if i == 1 {
            let (x, first) = (planner.sample(0), outputs[0].clone());
            planner.land(land(t + way.stride(), &x, &((told.output + first) * 0.5))?);
            told = planner.call(t as f64, level, 1.0);
        }
        outputs.push(told.output);
        let weights: &[f64] = match i {
            0 => &[1.0],
            1 => &[3.0 / 2.0, -1.0 / 2.0],
            2 => &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
            _ => &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
        };
        let last = outputs.iter().rev().zip(weights);
        let mean = last.fold(Sum::default(), |sum, (output, weight)| sum + output * *weight);
        planner.land(land(t, &told.x, &mean)?);
    }
    Ok(planner.finish(1.0, way.schedule.add_noise(timesteps[0])?))
}
