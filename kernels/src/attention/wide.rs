//! Attention of one wide head, the VAE's, forward alone: two GEMMs with the scores between them in memory. Flash attention
//! has to share such a head among invocations, each of which computes all of its scores again.

use itertools::iproduct;
use strata_engine::{DType, Launch, Result, Shader, Tensor, params};

use super::AttentionParams;
use crate::bodies::{Bodies, chosen};
use crate::gemm::{Gemm, Layout};
use crate::variants::{BODIES, Defs, FLOATS, INDEX, REDUCE, ROW, Variant, variant};

static SOFTMAX: Shader = Shader {
    name: "attention_softmax",
    source: include_str!("../attention_softmax.wgsl"),
    includes: &[INDEX, REDUCE, ROW],
    extensions: &[],
};

params! { struct SoftmaxParams { rows: u32, c: u32 } }

/// Bytes of scores in memory at once, at most.
const SCORES_BYTES: usize = 16 << 20;
/// Keys at most: a CPU adapter's invocation goes through them three times; see the limit of 65,535 in ARCHITECTURE.md.
const MAX_KEYS: u32 = 20_000;

/// Whether this is an attention for [`forward`]: views of its rows have to begin at multiples of 256 bytes.
pub(super) fn suits(p: &AttentionParams, dtype: DType) -> bool {
    p.heads == 1 && p.tk <= MAX_KEYS && (u64::from(p.d) * dtype.bytes()).is_multiple_of(256)
}

/// softmax(q kᵀ scale) v, sample by sample.
pub(super) fn forward([q, k, v]: [&Tensor; 3], p: &AttentionParams) -> Result<Tensor> {
    let y = Tensor::empty(q.gpu(), q.shape(), q.dtype())?;
    let [tq, tk, d] = [p.tq, p.tk, p.d].map(|n| n as usize);
    let rows = (SCORES_BYTES / (4 * tk)).min(tq).max(1);
    for sample in 0..p.batch as usize {
        let [k, v] = [k.view(sample * tk * d, &[tk, d])?, v.view(sample * tk * d, &[tk, d])?];
        for first in (0..tq).step_by(rows) {
            let (start, rows) = ((sample * tq + first) * d, rows.min(tq - first));
            let queries = q.view(start, &[rows, d])?;
            let product = Gemm::new(&queries, &k, Layout::Nt, [rows, tk, d]);
            let scores = Gemm { alpha: p.scale, out: DType::F32, ..product }.run("attention", &[rows, tk])?;
            let shares = softmax(&scores, q.dtype())?;
            let part = y.view(start, &[rows, d])?;
            Gemm::new(&shares, &v, Layout::Nn, [rows, d, tk]).write("attention", &part)?;
        }
    }
    Ok(y)
}

fn softmax(x: &Tensor, out: DType) -> Result<Tensor> {
    let (gpu, bodies) = (x.gpu(), chosen(x.gpu())?);
    let y = Tensor::empty(gpu, x.shape(), out)?;
    let params = SoftmaxParams { rows: x.rows() as u32, c: x.last() as u32 };
    Launch::new(gpu, &SOFTMAX)
        .defs(defs(out, bodies))
        .read(0, x)
        .write(1, &y)
        .params(&params)
        .grid(bodies.rows(params.rows))
        .run()?;
    Ok(y)
}

fn defs(out: DType, bodies: Bodies) -> Defs {
    vec![("T", out.into()), ("LANE", bodies.lane().into()), ("WG", bodies.workgroup().into())]
}

pub(super) fn variants(out: &mut Vec<Variant>) {
    for (bodies, dtype) in iproduct!(BODIES, FLOATS) {
        variant::<SoftmaxParams>(out, &SOFTMAX, defs(dtype, bodies));
    }
}
