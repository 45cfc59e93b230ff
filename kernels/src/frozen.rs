//! A product with frozen weights and LoRA branches, which a linear layer and a convolution are:
//! `y = act(x ⋆ w + b + Σᵢ gateᵢ · scaleᵢ · (x ⋆ downᵢ) upᵢᵀ) + residual`, where ⋆ is x wᵀ or a convolution.
//!
//! A LoRA costs a product with r columns (a convolution like w's own) and r more steps in the main loop (K-extension); W
//! is never merged. Saved for the way back: x where a `down` is trained, S = gate · scale · x ⋆ down where an `up` is.
//! Never dW.

use strata_engine::{DType, Error, Grads, Result, Tape, Tensor};

use crate::gemm::{Conv, Ext, Gemm, Layout};
use crate::linear::LinearArgs;
use crate::tokens::accumulate_product;
use crate::winograd::{Additions, Winograd};
use crate::{Weight, concat};

/// What a LoRA's output is multiplied with on top of its scale.
#[derive(Clone, Debug)]
pub enum Gate {
    /// One factor for all rows. At 0 the branch is not launched at all.
    Scalar(f32),
    /// f32 `[G]`: row m of the M rows of the output takes entry m / (M / G), so G is the batch (a gate per sample) or
    /// batch · tokens.
    Rows(Tensor),
}

/// A low-rank branch of a linear layer or a convolution.
#[derive(Clone, Debug)]
pub struct Lora<'a> {
    /// lora_A, `[r, in]`; of a convolution `[r, KH, KW, in]`.
    pub down: &'a Tensor,
    /// lora_B, `[out, r]`.
    pub up: &'a Tensor,
    /// alpha / r.
    pub scale: f32,
    /// When the branch is on.
    pub gate: Gate,
}

/// A LoRA as references take it: `down`, `up`, and scale · gate of each row of the output.
pub type LoraFactors<'a> = (&'a [f64], &'a [f64], &'a dyn Fn(usize) -> f64);

impl Lora<'_> {
    /// Whether the branch is launched.
    pub(crate) fn is_on(&self) -> bool {
        !matches!(self.gate, Gate::Scalar(0.0))
    }
}

/// What is multiplied with what.
#[derive(Clone)]
pub(crate) struct Product {
    pub op: &'static str,
    /// Rows of x and of y.
    pub rows: [usize; 2],
    /// Channels of x and of y.
    pub channels: [usize; 2],
    /// How rows of y read rows of x, unless each reads its own.
    pub conv: Option<Conv>,
    /// How the product with the frozen weights is made, if not as one GEMM.
    pub winograd: Option<Winograd>,
}

/// A LoRA as the way back needs it.
struct Branch {
    down: Tensor,
    up: Tensor,
    scale: f32,
    gate: Option<Tensor>,
    /// gate · scale · x ⋆ down, `[rows of y, r]`; kept where `up` is trained.
    s: Option<Tensor>,
    /// Kept where `down` is trained.
    x: Option<Tensor>,
}

/// y of the given shape and type. No activation may be asked for where the tape tracks anything.
pub(crate) fn frozen(
    tape: &Tape,
    x: &Tensor,
    w: &Weight,
    product: Product,
    args: &LinearArgs<'_>,
    shape: &[usize],
    out: DType,
) -> Result<Tensor> {
    product.check(x, w, args, shape, out)?;
    let Product { op, rows: [_, m], channels: [k, n], conv, .. } = product;
    let mut branches = Vec::new();
    for lora in args.loras.iter().filter(|lora| lora.is_on()) {
        let (scale, gate) = match &lora.gate {
            Gate::Scalar(g) => (lora.scale * g, None),
            Gate::Rows(t) => (lora.scale, Some(t)),
        };
        let r = lora.up.last();
        let s = Gemm { conv, alpha: scale, gate, ..Gemm::new(x, lora.down, Layout::Nt, [m, r, k]) }
            .run(op, &[m, r])?;
        branches.push((lora, scale, gate, s));
    }
    let sum = side_by_side(branches.iter().map(|(lora, _, _, s)| (s, lora.up)))?;
    let ext = sum.as_ref().map(|(s, u)| Ext { s, u });
    let &LinearArgs { bias, residual, act, .. } = args;
    let y = match &product.winograd {
        Some(winograd) => winograd.forward(x, &Additions { ext, bias, residual }, shape, out)?,
        None => Gemm { conv, ext, bias, residual, act, out, ..Gemm::new(x, w.data(), Layout::Nt, [m, n, k]) }
            .run(op, shape)?,
    };

    let mut inputs = vec![x];
    inputs.extend(args.residual);
    inputs.extend(branches.iter().flat_map(|(lora, ..)| [lora.down, lora.up]));
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
        let (id, w, x_shape, x_type) = (x.id(), w.data().clone(), x.shape().to_vec(), x.dtype());
        tape.record(&inputs, &y, move |grad_out, grads| {
            if let Some(residual) = residual.filter(|r| grads.wants(*r)) {
                grads.add_id(residual, grad_out.clone())?;
            }
            let wants_x = grads.wants(id);
            let mut terms = Vec::new();
            for branch in &branches {
                terms.push(branch.backward(&product, grad_out, wants_x, grads)?);
            }
            if wants_x {
                let mut terms = terms.iter().zip(&branches).filter_map(|(t, b)| Some((t.as_ref()?, b)));
                let back = |g: &Tensor, w: &Tensor, ext: Option<Ext<'_>>, onto: Option<Tensor>| {
                    product.input_gradient(g, w, ext, onto.as_ref(), &x_shape, x_type)
                };
                let before = grads.take(id);
                let dx = if let Some(winograd) = &product.winograd {
                    let mut onto = before;
                    for (t, b) in terms {
                        onto = Some(back(t, &b.down, None, onto)?);
                    }
                    winograd.backward(grad_out, onto.as_ref(), &x_shape, x_type)?
                } else {
                    let first = terms.next().map(|(t, b)| Ext { s: t, u: &b.down });
                    terms.try_fold(back(grad_out, &w, first, before)?, |dx, (t, b)| {
                        back(t, &b.down, None, Some(dx))
                    })?
                };
                grads.add_id(id, dx)?;
            }
            Ok(())
        });
    }
    Ok(y)
}

impl Product {
    /// grad_out ⋆ w the other way round, and the same of an S and its U, onto a residual.
    fn input_gradient(
        &self,
        grad_out: &Tensor,
        w: &Tensor,
        ext: Option<Ext<'_>>,
        residual: Option<&Tensor>,
        shape: &[usize],
        out: DType,
    ) -> Result<Tensor> {
        let conv = self.conv.map(|c| Conv { src: c.dst, dst: c.src, transposed: true, ..c });
        let size = [self.rows[0], self.channels[0], grad_out.last()];
        Gemm { conv, ext, residual, out, ..Gemm::new(grad_out, w, Layout::Nn, size) }.run(self.op, shape)
    }

    fn check(
        &self,
        x: &Tensor,
        w: &Weight,
        args: &LinearArgs<'_>,
        shape: &[usize],
        out: DType,
    ) -> Result<()> {
        let fail = |message: String| Err(Error::op(self.op, message));
        let (n, dtype) = (self.channels[1], w.storage().dtype());
        if !matches!((x.dtype(), dtype), (DType::F32, DType::F32 | DType::F16) | (DType::F16, DType::F16)) {
            return fail(format!("x is {:?}, w {dtype:?}; x must have w's type or f32", x.dtype()));
        }
        if let Some(b) = args.bias.filter(|b| b.len() != n) {
            return fail(format!("bias {:?} for {n} channels out", b.shape()));
        }
        if let Some(r) = args.residual.filter(|r| r.shape() != shape || r.dtype() != out) {
            return fail(format!("residual {r:?} is added to an output {shape:?} {}", out.wgsl()));
        }
        for Lora { down, up, .. } in args.loras {
            let fits = down.shape().len() == w.shape().len()
                && down.shape()[1..] == w.shape()[1..]
                && *up.shape() == [n, down.shape()[0]];
            if !fits {
                return fail(format!("LoRA down {down:?} and up {up:?} on weights {:?}", w.shape()));
            }
            if [down, up].iter().any(|t| t.dtype() != dtype) {
                return fail(format!(
                    "LoRA down {down:?} and up {up:?} for weights {:?}; all must have one type",
                    w.data()
                ));
            }
        }
        Ok(())
    }
}

impl Branch {
    /// Gradients of `up` and `down`; returns T = gate · scale · (grad_out up), the LoRA's share of dx = T ⋆ down.
    fn backward(
        &self,
        product: &Product,
        grad_out: &Tensor,
        wants_x: bool,
        grads: &mut Grads,
    ) -> Result<Option<Tensor>> {
        if let Some(s) = &self.s {
            accumulate_product(grad_out, s, &grads.sink(&self.up)?, None)?;
        }
        if self.x.is_none() && !wants_x {
            return Ok(None);
        }
        let (m, r) = (product.rows[1], self.up.last());
        let (alpha, gate) = (self.scale, self.gate.as_ref());
        let narrow = Gemm::new(grad_out, &self.up, Layout::Nn, [m, r, product.channels[1]]);
        let t = Gemm { alpha, gate, ..narrow }.run(product.op, &[m, r])?;
        if let Some(x) = &self.x {
            accumulate_product(&t, x, &grads.sink(&self.down)?, product.conv.as_ref())?;
        }
        Ok(Some(t))
    }
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
