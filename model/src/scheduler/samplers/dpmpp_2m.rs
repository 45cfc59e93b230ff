//! DPM-Solver++ of second order from the last two steps (arXiv 2211.01095), and its stochastic form.

use super::Way;
use crate::Result;
use crate::scheduler::ladder::Ladder;
use crate::scheduler::plan::{Level, Planner, Sum};
use crate::scheduler::{Mix, Plan};

/// With h = λ' − λ and D = x₀ + h/(2 h₋₁) (x₀ − x₀₋₁): x' = (noise'/noise) x − signal' (e⁻ʰ − 1) D.
pub(super) fn plan(way: &Way<'_>) -> Result<Plan> {
    steps(way, |_, h, [here, next], x, d| x * (next.noise / here.noise) + d * -(next.signal * (-h).exp_m1()))
}

/// x' = (noise'/noise) e⁻ʰ x + signal' (1 − e⁻²ʰ) D + noise' √(1 − e⁻²ʰ) n.
pub(super) fn sde(way: &Way<'_>) -> Result<Plan> {
    steps(way, |i, h, [here, next], x, d| {
        let grown = -(-2.0 * h).exp_m1();
        let mean = x * (next.noise / here.noise * (-h).exp()) + d * (next.signal * grown);
        mean + Sum::noise(i) * (next.noise * grown.sqrt())
    })
}

fn steps(way: &Way<'_>, step: impl Fn(usize, f64, [Level; 2], Sum, Sum) -> Sum) -> Result<Plan> {
    let ladder = way.multistep()?;
    let levels = ladder.levels();
    let mut planner = Planner::new(way.schedule.prediction_type());
    let mut before: Option<(Sum, f64)> = None;
    for (i, t) in ladder.timesteps.iter().enumerate() {
        let (here, next) = (levels[i], levels[i + 1]);
        let h = next.lambda() - here.lambda();
        let told = planner.call(*t, here, 1.0);
        // the first step knows no other, and the last has no finite h
        let d = match before.filter(|_| h.is_finite()) {
            Some((x0, h_before)) => {
                let ratio = h / h_before;
                told.x0.clone() + (told.x0.clone() - x0) * (ratio / 2.0)
            }
            None => told.x0.clone(),
        };
        planner.land(step(i, h, [here, next], told.x, d));
        before = Some((told.x0, h));
    }
    Ok(ladder.finish(planner))
}

impl Ladder {
    /// What the sample is made of at each σ.
    pub(super) fn levels(&self) -> Vec<Level> {
        self.sigmas.iter().map(|sigma| Level::of_sigma(*sigma)).collect()
    }

    /// The plan of a multistep sampler.
    pub(super) fn finish(&self, planner: Planner) -> Plan {
        let first = Level::of_sigma(self.sigmas[0]);
        planner.finish(1.0, Mix { x0: first.signal as f32, noise: first.noise as f32 })
    }
}
