//! Reductions over tokens: the gradients of LoRA factors, and sums over the pixels of a sample.

use strata_engine::{DType, Error, Launch, Result, Shader, Tensor, fold_grid, params};

use crate::variants::{Defs, INDEX, Variant, variant};
use crate::workgroup;

static SHADER: Shader = Shader {
    name: "tokens",
    source: include_str!("tokens.wgsl"),
    includes: &[INDEX, ("vec", include_str!("include/vec.wgsl"))],
};

params! { struct TokensParams { m: u32, i: u32, j: u32, splits: u32, rows_per_split: u32 } }

/// Rows that one invocation sums before the work is split.
const ROWS_PER_SPLIT: usize = 512;

fn defs(op: &'static str, [u, v]: [DType; 2], to: DType, vec: bool, add: bool, wg: u32) -> Defs {
    vec![
        ("OP", op.into()),
        ("T", u.wgsl().into()),
        ("TV", v.wgsl().into()),
        ("TO", to.wgsl().into()),
        ("V", vec.into()),
        ("ADD", add.into()),
        ("WG", wg.into()),
    ]
}

/// `sum += uᵀ v` for u `[M, I]`, v `[M, J]`, sum f32 `[I, J]`: how dA and dB come about.
///
/// # Errors
/// Shapes that do not fit.
pub(crate) fn accumulate_product(u: &Tensor, v: &Tensor, sum: &Tensor) -> Result<()> {
    let (m, i, j) = (u.rows(), u.last(), v.last());
    if v.rows() != m || sum.len() != i * j || sum.dtype() != DType::F32 {
        return Err(Error::op("gradient of a product", format!("{u:?} transposed times {v:?} into {sum:?}")));
    }
    let gpu = u.gpu();
    let splits = m.div_ceil(ROWS_PER_SPLIT);
    let partial = if splits > 1 { Some(Tensor::empty(gpu, &[splits, i, j], DType::F32)?) } else { None };
    let params = TokensParams {
        m: m as u32,
        i: i as u32,
        j: j as u32,
        splits: splits as u32,
        rows_per_split: ROWS_PER_SPLIT as u32,
    };
    let wg = workgroup(gpu);
    let vec = i.is_multiple_of(4) && j.is_multiple_of(4);
    let blocks = i.div_ceil(4) * j.div_ceil(4) * splits;
    Launch::new(gpu, &SHADER)
        .defs(defs("product", [u.dtype(), v.dtype()], DType::F32, vec, partial.is_none(), wg))
        .read(0, u)
        .read(1, v)
        .write(2, partial.as_ref().unwrap_or(sum))
        .params(&params)
        .grid(fold_grid((blocks as u32).div_ceil(wg)))
        .flops(2 * (m * i * j) as u64)
        .run()?;
    if let Some(partial) = &partial {
        Launch::new(gpu, &SHADER)
            .defs(defs("gather", [DType::F32; 2], DType::F32, false, true, wg))
            .read(0, partial)
            .write(2, sum)
            .params(&params)
            .grid(fold_grid(((i * j) as u32).div_ceil(wg)))
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
        rows_per_split: 0,
    };
    let wg = workgroup(x.gpu());
    Launch::new(x.gpu(), &SHADER)
        .defs(defs("sum", [x.dtype(); 2], x.dtype(), false, false, wg))
        .read(0, x)
        .write(2, &y)
        .params(&params)
        .grid(fold_grid(((batch * c) as u32).div_ceil(wg)))
        .run()?;
    Ok(y)
}

pub(crate) fn variants(out: &mut Vec<Variant>) -> Result<()> {
    for wg in crate::WORKGROUPS {
        let types = [DType::F32, DType::F16];
        for (u, v) in types.into_iter().flat_map(|u| types.map(|v| (u, v))) {
            for (vec, add) in [(false, false), (false, true), (true, false), (true, true)] {
                variant::<TokensParams>(out, &SHADER, defs("product", [u, v], DType::F32, vec, add, wg))?;
            }
        }
        for dtype in types {
            variant::<TokensParams>(out, &SHADER, defs("sum", [dtype; 2], dtype, false, false, wg))?;
        }
        variant::<TokensParams>(out, &SHADER, defs("gather", [DType::F32; 2], DType::F32, false, true, wg))?;
    }
    Ok(())
}
