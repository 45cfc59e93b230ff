//! Reductions over tokens: the gradients of LoRA factors, and sums over the pixels of a sample.

use itertools::iproduct;
use strata_engine::{DType, Error, Launch, Result, Shader, Tensor, params};

use crate::bodies::{Bodies, chosen, is_cpu};
use crate::gemm::Conv;
use crate::variants::{BODIES, BOTH, CONV, Defs, FLOATS, INDEX, Variant, variant};

static SHADER: Shader = Shader {
    name: "tokens",
    source: include_str!("tokens.wgsl"),
    includes: &[INDEX, CONV, ("vec", include_str!("include/vec.wgsl"))],
    extensions: &[],
};

params! {
    #[derive(Default)]
    struct TokensParams {
        m: u32, i: u32, j: u32, splits: u32, rows_per_split: u32, c: u32,
        src_h: u32, src_w: u32, dst_h: u32, dst_w: u32, kw: u32, stride: u32, pad: u32,
    }
}

/// Rows that one invocation sums before the work is split: on CPUs, and on GPUs, which want many invocations.
const ROWS_PER_SPLIT: [usize; 2] = [512, 128];

fn defs(
    op: &'static str,
    [u, v]: [DType; 2],
    to: DType,
    vec: bool,
    add: bool,
    conv: bool,
    bodies: Bodies,
) -> Defs {
    vec![
        ("OP", op.into()),
        ("T", u.into()),
        ("TV", v.into()),
        ("TO", to.into()),
        ("V", vec.into()),
        ("ADD", add.into()),
        ("CONV", conv.into()),
        ("TRANSPOSED", false.into()),
        ("WG", bodies.workgroup().into()),
    ]
}

/// `sum += uᵀ v` for u `[M, I]`, v `[M, J]`, sum f32 `[I, J]`: how dA and dB come about. With a convolution v is the
/// image that it reads, sum `[I, tap, C]`, and row m of u goes with the pixel that each tap reads for output pixel m.
///
/// # Errors
/// Shapes that do not fit.
pub(crate) fn accumulate_product(u: &Tensor, v: &Tensor, sum: &Tensor, conv: Option<&Conv>) -> Result<()> {
    let (m, i, c) = (u.rows(), u.last(), v.last());
    let taps = conv.map_or(1, |conv| conv.kernel.iter().product());
    let pixels = |[h, w]: [usize; 2]| h * w;
    let fits = match conv {
        None => v.rows() == m,
        Some(conv) => v.rows() * pixels(conv.dst) == m * pixels(conv.src),
    };
    let j = taps * c;
    if !fits || sum.len() != i * j || sum.dtype() != DType::F32 {
        return Err(Error::op("gradient of a product", format!("{u:?} transposed times {v:?} into {sum:?}")));
    }
    let gpu = u.gpu();
    let rows_per_split = ROWS_PER_SPLIT[usize::from(!is_cpu(gpu.caps()))];
    let splits = m.div_ceil(rows_per_split);
    let partial = if splits > 1 { Some(Tensor::empty(gpu, &[splits, i, j], DType::F32)?) } else { None };
    let mut params = TokensParams {
        m: m as u32,
        i: i as u32,
        j: j as u32,
        splits: splits as u32,
        rows_per_split: rows_per_split as u32,
        c: c as u32,
        ..TokensParams::default()
    };
    if let Some(conv) = conv {
        [params.src_h, params.src_w] = conv.src.map(|side| side as u32);
        [params.dst_h, params.dst_w] = conv.dst.map(|side| side as u32);
        [params.kw, params.stride, params.pad] = [conv.kernel[1], conv.stride, conv.pad].map(|x| x as u32);
    }
    let bodies = chosen(gpu)?;
    // four neighbours of (tap, c) then share a tap
    let vec = i.is_multiple_of(4) && c.is_multiple_of(4);
    let blocks = i.div_ceil(4) * j.div_ceil(4) * splits;
    let types = [u.dtype(), v.dtype()];
    Launch::new(gpu, &SHADER)
        .defs(defs("product", types, DType::F32, vec, partial.is_none(), conv.is_some(), bodies))
        .read(0, u)
        .read(1, v)
        .write(2, partial.as_ref().unwrap_or(sum))
        .params(&params)
        .grid(bodies.invocations(blocks as u32))
        .flops(2 * (m * i * j) as u64)
        .run()?;
    if let Some(partial) = &partial {
        Launch::new(gpu, &SHADER)
            .defs(defs("gather", [DType::F32; 2], DType::F32, false, true, false, bodies))
            .read(0, partial)
            .write(2, sum)
            .params(&params)
            .grid(bodies.invocations((i * j) as u32))
            .run()?;
    }
    Ok(())
}

/// `[B, tokens, C]` to `[B, C]`: the sum over the tokens of each sample.
pub(crate) fn sum_tokens(x: &Tensor, batch: usize) -> Result<Tensor> {
    let c = x.last();
    let y = Tensor::empty(x.gpu(), &[batch, c], x.dtype())?;
    let params = TokensParams {
        m: (x.rows() / batch) as u32,
        i: batch as u32,
        j: c as u32,
        splits: 1,
        ..TokensParams::default()
    };
    let bodies = chosen(x.gpu())?;
    Launch::new(x.gpu(), &SHADER)
        .defs(defs("sum", [x.dtype(); 2], x.dtype(), false, false, false, bodies))
        .read(0, x)
        .write(2, &y)
        .params(&params)
        .grid(bodies.invocations((batch * c) as u32))
        .run()?;
    Ok(y)
}

pub(crate) fn variants(out: &mut Vec<Variant>) {
    for (bodies, u, v, vec, add, conv) in iproduct!(BODIES, FLOATS, FLOATS, BOTH, BOTH, BOTH) {
        let defs = defs("product", [u, v], DType::F32, vec, add, conv, bodies);
        variant::<TokensParams>(out, &SHADER, defs);
    }
    for (bodies, dtype) in iproduct!(BODIES, FLOATS) {
        let defs = defs("sum", [dtype; 2], dtype, false, false, false, bodies);
        variant::<TokensParams>(out, &SHADER, defs);
    }
    for bodies in BODIES {
        let defs = defs("gather", [DType::F32; 2], DType::F32, false, true, false, bodies);
        variant::<TokensParams>(out, &SHADER, defs);
    }
}
