//! A frozen linear layer with LoRA branches: `y = act(x wᵀ + b + Σᵢ gateᵢ · scaleᵢ · (x downᵢᵀ) upᵢᵀ) + residual`.
//!
//! LoRAs cost a product with r columns each and Σ r more steps in the main loop (K-extension); W is never merged.
//! Saved for the way back: x where a `down` is trained, S = gate · scale · x downᵀ where an `up` is. Never dW.

use strata_engine::{DType, Error, Grads, Result, Tape, Tensor};

use crate::gemm::{Ext, Gemm, Layout};
use crate::tokens::accumulate_product;
use crate::{Act, activation, concat};

/// What a LoRA's output is multiplied with on top of its scale.
#[derive(Clone, Copy, Debug)]
pub enum Gate<'a> {
    /// One factor for all rows. At 0 the branch is not launched at all.
    Scalar(f32),
    /// f32 `[G]`: row m of M takes entry m / (M / G), so G is the batch (a gate per sample) or batch · tokens.
    Rows(&'a Tensor),
}

/// A low-rank branch of a linear layer.
#[derive(Clone, Copy, Debug)]
pub struct Lora<'a> {
    /// lora_A, `[r, in]`.
    pub down: &'a Tensor,
    /// lora_B, `[out, r]`.
    pub up: &'a Tensor,
    /// alpha / r.
    pub scale: f32,
    /// When the branch is on.
    pub gate: Gate<'a>,
}

/// What a linear layer does besides x wᵀ.
#[derive(Clone, Copy, Default, Debug)]
pub struct LinearArgs<'a> {
    /// f32 `[out]`, frozen.
    pub bias: Option<&'a Tensor>,
    /// Added last; of the output's shape and type.
    pub residual: Option<&'a Tensor>,
    /// Applied before the residual is added.
    pub act: Act,
    /// Type of the output; default the residual's, and without one the weights'.
    pub out: Option<DType>,
    /// Branches; those whose gate is [`Gate::Scalar`] 0 are skipped.
    pub loras: &'a [Lora<'a>],
}

/// A LoRA as the way back needs it.
struct Branch {
    down: Tensor,
    up: Tensor,
    scale: f32,
    gate: Option<Tensor>,
    /// gate · scale · x downᵀ, `[m, r]`; kept where `up` is trained.
    s: Option<Tensor>,
    /// Kept where `down` is trained.
    x: Option<Tensor>,
}

/// `[…, in]` to `[…, out]` with frozen weights `[out, in]`; see the module's formula. A 1×1 convolution is this too.
///
/// # Errors
/// Shapes that do not fit.
pub fn linear(tape: &Tape, x: &Tensor, w: &Tensor, args: &LinearArgs<'_>) -> Result<Tensor> {
    let (m, k, n) = (x.rows(), x.last(), w.rows());
    let mut shape = x.shape().to_vec();
    *shape.last_mut().ok_or_else(|| Error::op("linear", "x has no axis"))? = n;
    let out = args.out.or(args.residual.map(Tensor::dtype)).unwrap_or(w.dtype());
    check(x, w, args, &shape, out)?;
    let loras: Vec<&Lora<'_>> = args.loras.iter().filter(|l| !matches!(l.gate, Gate::Scalar(0.0))).collect();

    let mut inputs = vec![x];
    inputs.extend(args.residual);
    inputs.extend(loras.iter().flat_map(|l| [l.down, l.up]));
    if args.act != Act::None && inputs.iter().any(|t| tape.tracks(t)) {
        // the way back needs the value before the activation, which the epilogue would not leave behind
        let plain =
            linear(tape, x, w, &LinearArgs { act: Act::None, residual: None, out: Some(out), ..*args })?;
        let y = activation(tape, &plain, args.act)?;
        return args.residual.map_or(Ok(y.clone()), |r| crate::add(tape, &y, r));
    }

    let mut branches = Vec::new();
    for lora in &loras {
        let (scale, gate) = match lora.gate {
            Gate::Scalar(g) => (lora.scale * g, None),
            Gate::Rows(t) => (lora.scale, Some(t)),
        };
        let s = narrow(x, lora.down, Layout::Nt, k, scale, gate)?;
        branches.push((lora, scale, gate, s));
    }
    let sum = side_by_side(branches.iter().map(|(lora, _, _, s)| (s, lora.up)))?;
    let y = Gemm {
        ext: sum.as_ref().map(|(s, u)| Ext { s, u }),
        bias: args.bias,
        residual: args.residual,
        act: args.act,
        out,
        ..Gemm::new(x, w, Layout::Nt, [m, n, k])
    }
    .run("linear", &shape)?;

    if inputs.iter().any(|t| tape.tracks(t)) {
        let branches: Vec<Branch> = branches
            .into_iter()
            .map(|(lora, scale, gate, s)| Branch {
                s: tape.tracks(lora.up).then_some(s),
                x: tape.tracks(lora.down).then(|| x.clone()),
                down: lora.down.clone(),
                up: lora.up.clone(),
                scale,
                gate: gate.cloned(),
            })
            .collect();
        let residual = args.residual.map(Tensor::id);
        let (id, w, x_shape, x_type) = (x.id(), w.clone(), x.shape().to_vec(), x.dtype());
        tape.record(&inputs, &y, move |grad_out, grads| {
            if let Some(residual) = residual.filter(|r| grads.wants(*r)) {
                grads.add_id(residual, grad_out.clone())?;
            }
            let wants_x = grads.wants(id);
            let mut terms = Vec::new();
            for branch in &branches {
                terms.push(branch.backward(grad_out, wants_x, grads)?);
            }
            if wants_x {
                let mut terms = terms.iter().zip(&branches).filter_map(|(t, b)| Some((t.as_ref()?, b)));
                let before = grads.take(id);
                let mut dx = Gemm {
                    ext: terms.next().map(|(t, b)| Ext { s: t, u: &b.down }),
                    residual: before.as_ref(),
                    out: x_type,
                    ..Gemm::new(grad_out, &w, Layout::Nn, [m, k, n])
                }
                .run("linear backward", &x_shape)?;
                for (t, b) in terms {
                    let low_rank = Gemm::new(t, &b.down, Layout::Nn, [m, k, t.last()]);
                    dx = Gemm { residual: Some(&dx), out: x_type, ..low_rank }
                        .run("linear backward", &x_shape)?;
                }
                grads.add_id(id, dx)?;
            }
            Ok(())
        });
    }
    Ok(y)
}

impl Branch {
    /// Gradients of `up` and `down`; returns T = gate · scale · (grad_out up), the LoRA's share of dx = T down.
    fn backward(&self, grad_out: &Tensor, wants_x: bool, grads: &mut Grads) -> Result<Option<Tensor>> {
        if let Some(s) = &self.s {
            accumulate_product(grad_out, s, &grads.sink(&self.up)?)?;
        }
        if self.x.is_none() && !wants_x {
            return Ok(None);
        }
        let t = narrow(grad_out, &self.up, Layout::Nn, grad_out.last(), self.scale, self.gate.as_ref())?;
        if let Some(x) = &self.x {
            accumulate_product(&t, x, &grads.sink(&self.down)?)?;
        }
        Ok(Some(t))
    }
}

/// Whether a kernel multiplies values of x's type with weights of w's: one type, or x in f32 beside weights in f16.
pub(crate) fn pairs(x: &Tensor, w: &Tensor) -> bool {
    x.dtype() == w.dtype() || (x.dtype(), w.dtype()) == (DType::F32, DType::F16)
}

/// gate · scale · x bᵀ or x b: from c channels to the rank.
fn narrow(
    x: &Tensor,
    b: &Tensor,
    layout: Layout,
    c: usize,
    scale: f32,
    gate: Option<&Tensor>,
) -> Result<Tensor> {
    let (m, r) = (x.rows(), if layout == Layout::Nt { b.rows() } else { b.last() });
    Gemm { alpha: scale, gate, ..Gemm::new(x, b, layout, [m, r, c]) }.run("linear", &[m, r])
}

/// All S `[m, r]` as one, and all `up` `[n, r]`: one launch then sums every LoRA in f32, in one order whatever else is
/// on, so that a row's bits do not depend on LoRAs that are off in it.
fn side_by_side<'a>(
    branches: impl Iterator<Item = (&'a Tensor, &'a Tensor)>,
) -> Result<Option<(Tensor, Tensor)>> {
    let off = Tape::off();
    let mut sum = None;
    for (s, u) in branches {
        sum = Some(match sum {
            None => (s.clone(), u.clone()),
            Some((all_s, all_u)) => (concat(&off, &all_s, s)?, concat(&off, &all_u, u)?),
        });
    }
    Ok(sum)
}

fn check(x: &Tensor, w: &Tensor, args: &LinearArgs<'_>, shape: &[usize], out: DType) -> Result<()> {
    let fail = |message: String| Err(Error::op("linear", message));
    let (k, n) = (x.last(), w.rows());
    if w.shape().len() != 2 || w.last() != k {
        return fail(format!("x {:?} has {k} channels, w {:?} takes [out, {k}]", x.shape(), w.shape()));
    }
    if !pairs(x, w) {
        return fail(format!("x is {:?}, w {:?}; x must have w's type or f32", x.dtype(), w.dtype()));
    }
    if let Some(b) = args.bias.filter(|b| b.len() != n) {
        return fail(format!("bias {:?} for {n} channels out", b.shape()));
    }
    if let Some(r) = args.residual.filter(|r| r.shape() != shape || r.dtype() != out) {
        return fail(format!("residual {r:?} is added to an output {shape:?} {}", out.wgsl()));
    }
    for lora in args.loras {
        let (down, up) = (lora.down, lora.up);
        if down.last() != k || up.rows() != n || up.last() != down.rows() {
            return fail(format!("LoRA down {down:?} and up {up:?} on weights {:?}", w.shape()));
        }
        if down.dtype() != w.dtype() || up.dtype() != w.dtype() {
            return fail(format!(
                "LoRA down {down:?} and up {up:?} for weights {w:?}; all must have one type"
            ));
        }
    }
    Ok(())
}

/// The specification, for one LoRA `(down, up, scale · gate per row)`; x `[m, k]`, w `[n, k]`.
#[allow(clippy::type_complexity)]
pub fn reference(
    x: &[f64],
    w: &[f64],
    bias: Option<&[f64]>,
    residual: Option<&[f64]>,
    act: Act,
    loras: &[(&[f64], &[f64], &dyn Fn(usize) -> f64)],
    [m, n, k]: [usize; 3],
) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let mut y = vec![0.0; m * n];
    for i in 0..m {
        let xi = &x[i * k..][..k];
        for j in 0..n {
            let mut sum = dot(xi, &w[j * k..][..k]) + bias.map_or(0.0, |b| b[j]);
            for (down, up, scale) in loras {
                let r = down.len() / k;
                for q in 0..r {
                    sum += scale(i) * dot(xi, &down[q * k..][..k]) * up[j * r + q];
                }
            }
            y[i * n + j] = act.of(sum) + residual.map_or(0.0, |r| r[i * n + j]);
        }
    }
    y
}
