//! UniPC of second order (arXiv 2302.04867, B(h) = eʰ − 1): a multistep predictor, and a corrector that needs no further call.

use super::Way;
use crate::Result;
use crate::scheduler::Plan;
use crate::scheduler::plan::{Level, Planner, Sum};

/// A prediction that the next call will correct.
struct Predicted {
    order: usize,
    /// −(e⁻ʰ − 1) times the signal at its end.
    weight: f64,
    h: f64,
    /// What its slope added to the sample, without `weight`.
    slope: Sum,
}

/// x' = (noise'/noise) x − signal' (e⁻ʰ − 1) (x₀ + D/2), with D = (x₀₋₁ − x₀)/r and r = (λ₋₁ − λ)/h; then, once x₀' is known,
/// D/2 is replaced by ρ₁ D + ρ₂ (x₀' − x₀), whose ρ make it exact for polynomials.
pub(super) fn plan(way: &Way<'_>) -> Result<Plan> {
    let ladder = way.multistep()?;
    let levels = ladder.levels();
    let lambda = |i: usize| levels[i].lambda();
    let steps = ladder.timesteps.len();
    let mut planner = Planner::new(way.schedule.prediction_type());
    let mut clean: Vec<Sum> = Vec::new();
    let mut predicted: Option<Predicted> = None;
    for (i, t) in ladder.timesteps.iter().enumerate() {
        let (here, next): (Level, Level) = (levels[i], levels[i + 1]);
        let told = planner.call(*t, here, 1.0);
        let x = match predicted.take() {
            Some(last) => {
                let change = told.x0.clone() - clean[i - 1].clone();
                let slope = match last.order {
                    1 => change * 0.5,
                    _ => {
                        let r = (lambda(i - 2) - lambda(i - 1)) / last.h;
                        let [first, second] = rho(-last.h, r);
                        (clean[i - 2].clone() - clean[i - 1].clone()) * (first / r) + change * second
                    }
                };
                told.x + (slope - last.slope) * last.weight
            }
            None => told.x,
        };
        clean.push(told.x0);
        let order = (i + 1).min(steps - i).min(2);
        let h = lambda(i + 1) - lambda(i);
        let slope = match order {
            1 => Sum::default(),
            _ => {
                let r = (lambda(i - 1) - lambda(i)) / h;
                (clean[i - 1].clone() - clean[i].clone()) * (0.5 / r)
            }
        };
        let weight = -(next.signal * (-h).exp_m1());
        planner.land(x * (next.noise / here.noise) + (clean[i].clone() + slope.clone()) * weight);
        predicted = Some(Predicted { order, weight, h, slope });
    }
    Ok(ladder.finish(planner))
}

/// The solution of ρ₁ + ρ₂ = b₁ and r ρ₁ + ρ₂ = b₂, where b are the integrals of 1 and 2 t under the exponential.
fn rho(h: f64, r: f64) -> [f64; 2] {
    let grown = h.exp_m1();
    let first = grown / h - 1.0;
    let b = [first / grown, 2.0 * (first / h - 0.5) / grown];
    let rho = (b[1] - b[0]) / (r - 1.0);
    [rho, b[0] - rho]
}
