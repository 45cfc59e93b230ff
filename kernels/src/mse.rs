//! Mean squared error with a weight per sample: the loss of diffusion training.

use itertools::iproduct;
use strata_engine::{DType, Error, Launch, Result, Shader, Tape, Tensor, params};

use crate::bodies::{Bodies, chosen};
use crate::variants::{BODIES, Defs, FLOATS, INDEX, REDUCE, Variant, variant};

static SHADER: Shader =
    Shader { name: "mse", source: include_str!("mse.wgsl"), includes: &[INDEX, REDUCE], extensions: &[] };

params! { struct MseParams { batch: u32, n: u32, slices: u32 } }

/// Values of a sample that one workgroup sums; see `mse.wgsl`.
const SLICE: u32 = 16_384;

fn defs(pass: &'static str, dtype: DType, bodies: Bodies) -> Defs {
    vec![
        ("PASS", pass.into()),
        ("T", dtype.into()),
        ("LANE", bodies.lane().into()),
        ("WG", bodies.workgroup().into()),
    ]
}

/// `1/B Σ_b w_b · mean((pred_b − target_b)²)`, f32 `[1]`: pred and target `[B, …]` of one type, weights f32 `[B]`.
/// The gradient reaches `pred` alone; both are kept where it is tracked.
///
/// # Errors
/// Shapes that do not fit.
pub fn mse(tape: &Tape, pred: &Tensor, target: &Tensor, weights: &Tensor) -> Result<Tensor> {
    let batch = weights.len();
    let fits = pred.shape() == target.shape()
        && pred.dtype() == target.dtype()
        && pred.shape().first() == Some(&batch);
    if !fits || weights.dtype() != DType::F32 {
        return Err(Error::op("mse", format!("pred {pred:?}, target {target:?}, weights {weights:?}")));
    }
    let gpu = pred.gpu();
    let bodies = chosen(gpu)?;
    let n = (pred.len() / batch.max(1)) as u32;
    let params = MseParams { batch: batch as u32, n, slices: n.div_ceil(SLICE) };
    let slices = params.batch * params.slices;
    let launch = |pass| Launch::new(gpu, &SHADER).defs(defs(pass, pred.dtype(), bodies)).params(&params);

    let parts = Tensor::empty(gpu, &[slices as usize], DType::F32)?;
    launch("samples")
        .read(0, pred)
        .read(1, target)
        .read(2, weights)
        .write(4, &parts)
        .grid(bodies.rows(slices))
        .run()?;
    let loss = Tensor::empty(gpu, &[1], DType::F32)?;
    launch("total").read(0, &parts).write(4, &loss).run()?;

    let (pred, target, weights) = (pred.clone(), target.clone(), weights.clone());
    tape.record(&[&pred.clone()], &loss, move |grad_out, grads| {
        let gpu = pred.gpu();
        let dpred = Tensor::empty(gpu, pred.shape(), pred.dtype())?;
        Launch::new(gpu, &SHADER)
            .defs(defs("grad", pred.dtype(), bodies))
            .read(0, &pred)
            .read(1, &target)
            .read(2, &weights)
            .read(3, grad_out)
            .write(4, &dpred)
            .params(&params)
            .grid(bodies.invocations(pred.len() as u32))
            .run()?;
        grads.add_id(pred.id(), dpred)
    });
    Ok(loss)
}

/// The specification.
pub fn reference(pred: &[f64], target: &[f64], weights: &[f64]) -> Vec<f64> {
    let (batch, n) = (weights.len(), pred.len() / weights.len());
    let sample =
        |b: usize| (0..n).map(|i| (pred[b * n + i] - target[b * n + i]).powi(2)).sum::<f64>() / n as f64;
    vec![weights.iter().enumerate().map(|(b, w)| w * sample(b)).sum::<f64>() / batch as f64]
}

pub(crate) fn variants(out: &mut Vec<Variant>) {
    for (bodies, dtype, pass) in iproduct!(BODIES, FLOATS, ["samples", "total", "grad"]) {
        variant::<MseParams>(out, &SHADER, defs(pass, dtype, bodies));
    }
}
