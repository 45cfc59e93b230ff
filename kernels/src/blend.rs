//! A weighted sum of two tensors, with weights row by row: how a LoRA's attention is kept to a part of the picture.

use itertools::iproduct;
use strata_engine::{DType, Error, Launch, Result, Shader, Tape, Tensor, params};

use crate::bodies::{Bodies, chosen};
use crate::variants::{BODIES, BOTH, Defs, FLOATS, INDEX, Variant, variant};

static SHADER: Shader = Shader {
    name: "blend",
    source: include_str!("blend.wgsl"),
    includes: &[INDEX, ("vec", include_str!("include/vec.wgsl"))],
    extensions: &[],
};

params! { struct BlendParams { count: u32, n: u32 } }

fn defs(dtype: DType, pair: bool, vec: bool, bodies: Bodies) -> Defs {
    vec![
        ("T", dtype.into()),
        ("PAIR", pair.into()),
        ("V", if vec { 4_u32 } else { 1 }.into()),
        ("WG", bodies.workgroup().into()),
    ]
}

/// A tensor and the weights of its rows.
type Weighted<'a> = (&'a Tensor, &'a Tensor);

fn run((x, wx): Weighted<'_>, second: Option<Weighted<'_>>) -> Result<Tensor> {
    let out = Tensor::empty(x.gpu(), x.shape(), x.dtype())?;
    let vec = x.last().is_multiple_of(4);
    let width = if vec { 4 } else { 1 };
    let params = BlendParams { count: (x.len() / width) as u32, n: (x.last() / width) as u32 };
    let bodies = chosen(x.gpu())?;
    Launch::new(x.gpu(), &SHADER)
        .defs(defs(x.dtype(), second.is_some(), vec, bodies))
        .read(0, x)
        .read(1, wx)
        .read_opt(2, second.map(|(y, _)| y))
        .read_opt(3, second.map(|(_, wy)| wy))
        .write(4, &out)
        .params(&params)
        .grid(bodies.invocations(params.count))
        .run()?;
    Ok(out)
}

/// Row m of the result is wx\[m\] · row m of x + wy\[m\] · row m of y: x and y `[…, N]` of one shape and type, the frozen
/// weights f32 with one entry per row.
///
/// # Errors
/// Shapes or types that do not fit.
pub fn blend(tape: &Tape, [x, y]: [&Tensor; 2], [wx, wy]: [&Tensor; 2]) -> Result<Tensor> {
    if x.shape() != y.shape() || x.dtype() != y.dtype() {
        return Err(Error::op("blend", format!("{x:?} and {y:?} differ")));
    }
    if let Some(w) = [wx, wy].into_iter().find(|w| w.len() != x.rows() || w.dtype() != DType::F32) {
        return Err(Error::op("blend", format!("weights {w:?} for the {} rows of {x:?}", x.rows())));
    }
    let out = run((x, wx), Some((y, wy)))?;
    let parts = [(x.id(), wx.clone()), (y.id(), wy.clone())];
    tape.record(&[x, y], &out, move |grad_out, grads| {
        for (id, weights) in &parts {
            if grads.wants(*id) {
                grads.add_id(*id, run((grad_out, weights), None)?)?;
            }
        }
        Ok(())
    });
    Ok(out)
}

/// The specification; x and y are rows of n values.
pub fn reference([x, y]: [&[f64]; 2], [wx, wy]: [&[f64]; 2], n: usize) -> Vec<f64> {
    let value = |i: usize| wx[i / n] * x[i] + wy[i / n] * y[i];
    (0..x.len()).map(value).collect()
}

pub(crate) fn variants(out: &mut Vec<Variant>) {
    for (bodies, dtype, pair, vec) in iproduct!(BODIES, FLOATS, BOTH, BOTH) {
        variant::<BlendParams>(out, &SHADER, defs(dtype, pair, vec, bodies));
    }
}
