//! A frozen linear layer with LoRA branches: `y = act(x wᵀ + b + Σᵢ gateᵢ · scaleᵢ · (x downᵢᵀ) upᵢᵀ) + residual`.

use strata_engine::{DType, Error, Result, Tape, Tensor};

use crate::frozen::{Lora, LoraFactors, Product, frozen};
use crate::{Act, Weight, activation};

/// What a linear layer does besides x wᵀ.
#[derive(Clone, Copy, Default, Debug)]
pub struct LinearArgs<'a> {
    /// f32 `[out]`, frozen.
    pub bias: Option<&'a Tensor>,
    /// Added last; of the output's shape and type.
    pub residual: Option<&'a Tensor>,
    /// Applied before the residual is added.
    pub act: Act,
    /// Type of the output; default the residual's, and without one x's.
    pub out: Option<DType>,
    /// Branches; those whose gate is [`Gate::Scalar`] 0 are skipped.
    pub loras: &'a [Lora<'a>],
}

/// `[…, in]` to `[…, out]` with frozen weights `[out, in]`; see the module's formula. A 1×1 convolution is this too.
///
/// # Errors
/// Shapes that do not fit.
pub fn linear(tape: &Tape, x: &Tensor, w: &Weight, args: &LinearArgs<'_>) -> Result<Tensor> {
    let (m, k) = (x.rows(), x.last());
    let &[n, inputs] = w.shape() else {
        return Err(Error::op("linear", format!("w {:?} must be [out, in]", w.shape())));
    };
    let mut shape = x.shape().to_vec();
    *shape.last_mut().ok_or_else(|| Error::op("linear", "x has no axis"))? = n;
    if inputs != k {
        let message = format!("x {:?} has {k} channels, w {:?} takes [out, {k}]", x.shape(), w.shape());
        return Err(Error::op("linear", message));
    }
    let out = args.out.or(args.residual.map(Tensor::dtype)).unwrap_or(x.dtype());
    let factors = args.loras.iter().filter(|l| l.is_on()).flat_map(|l| [l.down, l.up]);
    let tracked = [x].into_iter().chain(args.residual).chain(factors).any(|t| tape.tracks(t));
    if args.act != Act::None && tracked {
        // the way back needs the value before the activation, which the epilogue would not leave behind
        let plain =
            linear(tape, x, w, &LinearArgs { act: Act::None, residual: None, out: Some(out), ..*args })?;
        let y = activation(tape, &plain, args.act)?;
        return args.residual.map_or(Ok(y.clone()), |r| crate::add(tape, &y, r));
    }
    let product = Product { op: "linear", rows: [m, m], channels: [k, n], conv: None, winograd: None };
    frozen(tape, x, w, product, args, &shape, out)
}

/// The specification; x `[m, k]`, w `[n, k]`.
pub fn reference(
    x: &[f64],
    w: &[f64],
    bias: Option<&[f64]>,
    residual: Option<&[f64]>,
    act: Act,
    loras: &[LoraFactors<'_>],
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
