//! Layer norm (arXiv 1607.06450) over the last axis with frozen affine weights.
//!
//! Saved for the way back: x, and mean and rstd per row.

use itertools::iproduct;
use strata_engine::{DType, Error, Launch, Result, Shader, Tape, Tensor, params};

use crate::bodies::{Bodies, chosen};
use crate::variants::{BODIES, Defs, INDEX, REDUCE, ROW, Variant, variant};

static SHADER: Shader = Shader {
    name: "layer_norm",
    source: include_str!("layer_norm.wgsl"),
    includes: &[INDEX, REDUCE, ROW],
    extensions: &[],
};

params! { struct LayerNormParams { rows: u32, c: u32, eps: f32 } }

fn defs(grad: bool, before: bool, [x, y]: [DType; 2], bodies: Bodies) -> Defs {
    vec![
        ("GRAD", grad.into()),
        ("BEFORE", before.into()),
        ("TX", x.into()),
        ("T", y.into()),
        ("LANE", bodies.lane().into()),
        ("WG", bodies.workgroup().into()),
    ]
}

fn launch<'a>(
    x: &'a Tensor,
    gamma: &'a Tensor,
    out: DType,
    params: &LayerNormParams,
    grad: bool,
    before: bool,
) -> Result<Launch<'a>> {
    let bodies = chosen(x.gpu())?;
    let launch = Launch::new(x.gpu(), &SHADER)
        .defs(defs(grad, before, [x.dtype(), out], bodies))
        .read(0, x)
        .read(1, gamma)
        .params(params)
        .grid(bodies.rows(params.rows));
    Ok(launch)
}

/// Normalises each row of `[…, C]`, with gamma and beta f32 `[C]`: y = gamma (x − mean) / √(variance + eps) + beta, in
/// the type `out`.
///
/// # Errors
/// Shapes that do not fit.
pub fn layer_norm(
    tape: &Tape,
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    eps: f32,
    out: DType,
) -> Result<Tensor> {
    let (rows, c) = (x.rows(), x.last());
    if gamma.len() != c || beta.len() != c {
        return Err(Error::op("layer_norm", format!("x {x:?} with gamma {gamma:?} and beta {beta:?}")));
    }
    let params = LayerNormParams { rows: rows as u32, c: c as u32, eps };
    let stats = Tensor::empty(x.gpu(), &[rows, 2], DType::F32)?;
    let y = Tensor::empty(x.gpu(), x.shape(), out)?;
    launch(x, gamma, out, &params, false, false)?.read(2, beta).write(3, &stats).write(6, &y).run()?;
    let (saved, gamma) = (x.clone(), gamma.clone());
    tape.record(&[x], &y, move |grad_out, grads| {
        let before = grads.take(saved.id());
        let dx = Tensor::empty(saved.gpu(), saved.shape(), saved.dtype())?;
        launch(&saved, &gamma, out, &params, true, before.is_some())?
            .read(3, &stats)
            .read(4, grad_out)
            .read_opt(5, before.as_ref())
            .write(6, &dx)
            .run()?;
        grads.add_id(saved.id(), dx)
    });
    Ok(y)
}

/// The specification, for rows of c values.
pub fn reference(x: &[f64], gamma: &[f64], beta: &[f64], c: usize, eps: f64) -> Vec<f64> {
    let normal = |row: &[f64]| {
        let mean = row.iter().sum::<f64>() / c as f64;
        let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / c as f64;
        let affine = |i: usize| gamma[i] * (row[i] - mean) / (variance + eps).sqrt() + beta[i];
        (0..c).map(affine).collect::<Vec<f64>>()
    };
    x.chunks_exact(c).flat_map(normal).collect()
}

pub(crate) fn variants(out: &mut Vec<Variant>) {
    let passes = [(false, false), (true, false), (true, true)];
    for (bodies, types, (grad, before)) in iproduct!(BODIES, crate::NORM_TYPES, passes) {
        variant::<LayerNormParams>(out, &SHADER, defs(grad, before, types, bodies));
    }
}
