//! What turns gradients into an update: their norm, and AdamW (arXiv 1711.05101) over flat f32 buffers.

use itertools::iproduct;
use strata_engine::{DType, Error, Launch, Result, Shader, Tensor, params};

use crate::bodies::{Bodies, chosen};
use crate::variants::{BODIES, BOTH, Defs, INDEX, Variant, variant};

static SHADER: Shader =
    Shader { name: "optimizer", source: include_str!("optimizer.wgsl"), includes: &[INDEX], extensions: &[] };

params! { struct NormParams { count: u32, infinity: f32 } }
params! {
    struct AdamWParams {
        count: u32, lr: f32, beta1: f32, beta2: f32, eps: f32, weight_decay: f32,
        step_size: f32, root2: f32, grad_scale: f32, max_norm: f32,
    }
}

/// Settings of one update.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f32,
    /// Decay of the mean of gradients.
    pub beta1: f32,
    /// Decay of the mean of squared gradients.
    pub beta2: f32,
    /// Added to the root of that mean.
    pub eps: f32,
    /// Weights shrink by lr · weight_decay, apart from the gradient.
    pub weight_decay: f32,
    /// Which update this is, from 1: corrects the bias of both means.
    pub step: u32,
    /// Gradients are multiplied by it: 1 / (loss scale · accumulated batches).
    pub grad_scale: f32,
    /// Gradients whose norm, scaled, is longer are shortened to it; 0 = never.
    pub max_norm: f32,
}

fn defs(pass: &'static str, shadow: bool, bodies: Bodies) -> Defs {
    let shadow = shadow.then_some(DType::F16);
    vec![("PASS", pass.into()), ("SHADOW", shadow.into()), ("WG", bodies.workgroup().into())]
}

/// √Σ g², f32 `[1]`; infinite if any element is not finite.
///
/// # Errors
/// Gradients that are not f32.
pub fn grad_norm(grads: &Tensor) -> Result<Tensor> {
    if grads.dtype() != DType::F32 {
        return Err(Error::op("grad_norm", format!("{grads:?} must be f32")));
    }
    let (gpu, bodies) = (grads.gpu(), chosen(grads.gpu())?);
    let chunks = grads.len().div_ceil(4096);
    let parts = Tensor::empty(gpu, &[chunks], DType::F32)?;
    let norm = Tensor::empty(gpu, &[1], DType::F32)?;
    for (pass, from, to, count) in [("squares", grads, &parts, grads.len()), ("norm", &parts, &norm, chunks)]
    {
        Launch::new(gpu, &SHADER)
            .defs(defs(pass, false, bodies))
            .read(0, from)
            .write(1, to)
            .params(&NormParams { count: count as u32, infinity: f32::INFINITY })
            .grid(bodies.invocations(to.len() as u32))
            .run()?;
    }
    Ok(norm)
}

/// One update of `weights` from `grads`, in place; see `optimizer.wgsl` for the formula. All are f32 and equally long;
/// `norm` is [`grad_norm`]'s of all gradients of the step; `shadow` (f16) receives the new weights rounded.
/// Where `norm` is not finite nothing changes.
///
/// # Errors
/// Lengths or types that differ.
pub fn adamw(
    weights: &Tensor,
    exp_avg: &Tensor,
    exp_avg_sq: &Tensor,
    grads: &Tensor,
    norm: &Tensor,
    shadow: Option<&Tensor>,
    args: &AdamW,
) -> Result<()> {
    let n = weights.len();
    let same = [weights, exp_avg, exp_avg_sq, grads].iter().all(|t| t.len() == n && t.dtype() == DType::F32);
    if !same || shadow.is_some_and(|s| s.len() != n || s.dtype() != DType::F16) || args.step == 0 {
        let message = format!(
            "weights {weights:?}, moments {exp_avg:?}, {exp_avg_sq:?}, gradients {grads:?}, shadow {shadow:?}, step {}",
            args.step
        );
        return Err(Error::op("adamw", message));
    }
    let correction = |beta: f32| 1.0 - f64::from(beta).powi(args.step as i32);
    let params = AdamWParams {
        count: n as u32,
        lr: args.lr,
        beta1: args.beta1,
        beta2: args.beta2,
        eps: args.eps,
        weight_decay: args.weight_decay,
        step_size: (f64::from(args.lr) / correction(args.beta1)) as f32,
        root2: correction(args.beta2).sqrt() as f32,
        grad_scale: args.grad_scale,
        max_norm: args.max_norm,
    };
    let (gpu, bodies) = (weights.gpu(), chosen(weights.gpu())?);
    let launch = Launch::new(gpu, &SHADER)
        .defs(defs("adamw", shadow.is_some(), bodies))
        .read(0, grads)
        .read(1, norm)
        .write(2, weights)
        .write(3, exp_avg)
        .write(4, exp_avg_sq)
        .params(&params)
        .grid(bodies.invocations(n as u32));
    match shadow {
        Some(shadow) => launch.write(5, shadow).run(),
        None => launch.run(),
    }
}

/// The specification of one update, in place on `[weights, exp_avg, exp_avg_sq]`; `norm` is of the unscaled gradients.
pub fn reference(state: [&mut [f64]; 3], grads: &[f64], norm: f64, args: &AdamW) {
    if !norm.is_finite() {
        return;
    }
    let [weights, exp_avg, exp_avg_sq] = state;
    let (lr, b1, b2, eps) =
        (f64::from(args.lr), f64::from(args.beta1), f64::from(args.beta2), f64::from(args.eps));
    let (scale, max) = (f64::from(args.grad_scale), f64::from(args.max_norm));
    let clip = if max > 0.0 { (max / (norm * scale + 1e-6)).min(1.0) } else { 1.0 };
    let step = args.step as i32;
    for (i, g) in grads.iter().enumerate() {
        let g = g * scale * clip;
        exp_avg[i] = b1 * exp_avg[i] + (1.0 - b1) * g;
        exp_avg_sq[i] = b2 * exp_avg_sq[i] + (1.0 - b2) * g * g;
        let denominator = (exp_avg_sq[i] / (1.0 - b2.powi(step))).sqrt() + eps;
        weights[i] *= 1.0 - lr * f64::from(args.weight_decay);
        weights[i] -= lr / (1.0 - b1.powi(step)) * exp_avg[i] / denominator;
    }
}

pub(crate) fn variants(out: &mut Vec<Variant>) {
    for (bodies, pass) in iproduct!(BODIES, ["squares", "norm"]) {
        variant::<NormParams>(out, &SHADER, defs(pass, false, bodies));
    }
    for (bodies, shadow) in iproduct!(BODIES, BOTH) {
        variant::<AdamWParams>(out, &SHADER, defs("adamw", shadow, bodies));
    }
}
