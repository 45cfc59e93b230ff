//! Embeddings: of tokens with their positions (CLIP), and of timesteps (U-Net). Both frozen.

use itertools::iproduct;
use strata_engine::{DType, Error, Gpu, Launch, Result, Shader, Tensor, params};

use crate::bodies::{Bodies, chosen};
use crate::variants::{BODIES, Defs, FLOATS, INDEX, Variant, variant};

static SHADER: Shader =
    Shader { name: "embedding", source: include_str!("embedding.wgsl"), includes: &[INDEX], extensions: &[] };

params! { struct EmbeddingParams { count: u32, tokens: u32, c: u32, vocab: u32, first: u32, rows: u32 } }

fn defs(dtype: DType, bodies: Bodies) -> Defs {
    vec![("T", dtype.into()), ("WG", bodies.workgroup().into())]
}

/// Rows of the vocabulary that a binding holds are a multiple of this, so that the next part starts where one may.
const ROWS: usize = 128;

/// `tokens[ids[b, t]] + positions[t]`: ids u32 `[B, T]`, tokens `[V, C]`, positions `[≥ T, C]`, to `[B, T, C]`.
///
/// # Errors
/// Shapes that do not fit, or more tokens than positions.
pub fn embedding(ids: &Tensor, tokens: &Tensor, positions: &Tensor) -> Result<Tensor> {
    let (t, c) = (ids.last(), tokens.last());
    if ids.dtype() != DType::U32
        || positions.last() != c
        || positions.rows() < t
        || tokens.dtype() != positions.dtype()
    {
        return Err(Error::op(
            "embedding",
            format!("ids {ids:?}, tokens {tokens:?}, positions {positions:?}"),
        ));
    }
    let mut shape = ids.shape().to_vec();
    shape.push(c);
    let y = Tensor::empty(ids.gpu(), &shape, tokens.dtype())?;
    let (vocab, bodies) = (tokens.rows(), chosen(ids.gpu())?);
    let fit = (ids.gpu().caps().max_binding / (c as u64 * tokens.dtype().bytes()).max(1)) as usize;
    let part = if vocab <= fit { vocab } else { (fit / ROWS * ROWS).max(ROWS) };
    for first in (0..vocab).step_by(part.max(1)) {
        let rows = part.min(vocab - first);
        let params = EmbeddingParams {
            count: ids.len() as u32,
            tokens: t as u32,
            c: c as u32,
            vocab: vocab as u32,
            first: first as u32,
            rows: rows as u32,
        };
        Launch::new(ids.gpu(), &SHADER)
            .defs(defs(tokens.dtype(), bodies))
            .read(0, ids)
            .read(1, &tokens.view(first * c, &[rows, c])?)
            .read(2, positions)
            .write(3, &y)
            .params(&params)
            .grid(bodies.invocations(y.len() as u32))
            .run()?;
    }
    Ok(y)
}

/// Sinusoids of timesteps, `[B, dim]`: sin and cos of t · 10000^(−i / (dim/2 − freq_shift)), i = 0 … dim/2 − 1; cosines
/// first where `flip_sin_to_cos`. Steps are taken in f32 as diffusers' `get_timestep_embedding` does, since at
/// t = 999 the rounding of t · frequency is worth 6e-5; made on the host, because sines of large arguments differ
/// between GPUs by more than that.
///
/// # Errors
/// An odd `dim`.
pub fn timestep_embedding(
    gpu: &Gpu,
    timesteps: &[f32],
    dim: usize,
    flip_sin_to_cos: bool,
    freq_shift: f32,
    dtype: DType,
) -> Result<Tensor> {
    if dim == 0 || !dim.is_multiple_of(2) {
        return Err(Error::op(
            "timestep_embedding",
            format!("{dim} channels; sines and cosines need an even number"),
        ));
    }
    let half = dim / 2;
    let frequency = |i: usize| {
        let exponent = -(10000_f64.ln() as f32) * i as f32 / (half as f32 - freq_shift);
        f64::from(exponent).exp() as f32
    };
    let frequencies: Vec<f32> = (0..half).map(frequency).collect();
    let mut values = Vec::with_capacity(timesteps.len() * dim);
    for t in timesteps {
        let angles = frequencies.iter().map(|f| f64::from(t * f));
        let (sin, cos): (Vec<f32>, Vec<f32>) = angles.map(|a| (a.sin() as f32, a.cos() as f32)).unzip();
        let (first, second) = if flip_sin_to_cos { (cos, sin) } else { (sin, cos) };
        values.extend(first);
        values.extend(second);
    }
    Tensor::from_f32(gpu, &values, &[timesteps.len(), dim], dtype)
}

pub(crate) fn variants(out: &mut Vec<Variant>) {
    for (bodies, dtype) in iproduct!(BODIES, FLOATS) {
        variant::<EmbeddingParams>(out, &SHADER, defs(dtype, bodies));
    }
}
