//! Projection of rows of parameters onto what a basis leaves, after an update.

use std::ops::Range;

use itertools::iproduct;
use strata_engine::{DType, Error, Gpu, Launch, Result, Shader, Tensor, params};

use crate::bodies::{Bodies, chosen};
use crate::variants::{BODIES, BOTH, Defs, INDEX, REDUCE, ROW, Variant, variant};

static SHADER: Shader = Shader {
    name: "project",
    source: include_str!("project.wgsl"),
    includes: &[INDEX, REDUCE, ROW],
    extensions: &[],
};

params! { struct ProjectParams { rows: u32, c: u32, first: u32, last: u32 } }

/// Times the basis is gone through: the second takes what rounding left of the first.
const PASSES: usize = 2;

/// Iterations of all loops of one `lane` invocation; see the limit of 65,535 in ARCHITECTURE.md.
const LANE_ITERATIONS: usize = 60_000;

fn defs(shadow: bool, bodies: Bodies) -> Defs {
    let shadow = shadow.then_some(DType::F16);
    vec![("SHADOW", shadow.into()), ("LANE", bodies.lane().into()), ("WG", bodies.workgroup().into())]
}

/// Rows of equal length in a flat buffer: the matrices of several layers, which one launch then projects.
#[derive(Debug, Clone)]
pub struct RowSet {
    /// Where each begins.
    starts: Tensor,
    channels: usize,
    /// Elements that the buffer must have.
    end: usize,
}

impl RowSet {
    /// The rows of row-major matrices [rᵢ, `channels`] that lie at these ranges.
    ///
    /// # Errors
    /// There is no row, a range is no whole number of rows, or two overlap.
    pub fn new(gpu: &Gpu, matrices: &[Range<usize>], channels: usize) -> Result<Self> {
        let mut sorted: Vec<&Range<usize>> = matrices.iter().collect();
        sorted.sort_by_key(|range| range.start);
        let whole = |range: &&Range<usize>| channels > 0 && range.len().is_multiple_of(channels);
        let apart = sorted.windows(2).all(|pair| pair[0].end <= pair[1].start);
        let starts: Vec<u32> = match sorted.iter().all(whole) && apart {
            true => sorted.iter().flat_map(|r| (*r).clone().step_by(channels)).map(|s| s as u32).collect(),
            false => Vec::new(),
        };
        if starts.is_empty() {
            return Err(Error::op("project", format!("{matrices:?} are not rows of {channels} elements")));
        }
        let end = sorted.iter().map(|range| range.end).max().unwrap_or(0);
        Ok(Self { starts: Tensor::from_u32(gpu, &starts, &[starts.len()])?, channels, end })
    }
}

/// a ← a − Σⱼ (a · uⱼ) uⱼ for each of the `rows` of `weights` (flat f32), in place, with the uⱼ the orthonormal rows
/// of `basis`, f32 [k, channels]. `shadow` (f16, as long as `weights`) receives the new rows rounded.
///
/// # Errors
/// Lengths or types that differ.
pub fn project(weights: &Tensor, rows: &RowSet, basis: &Tensor, shadow: Option<&Tensor>) -> Result<()> {
    let &RowSet { ref starts, channels, end } = rows;
    let fits = weights.dtype() == DType::F32 && weights.len() >= end;
    let orthogonal = basis.dtype() == DType::F32 && basis.last() == channels && !basis.is_empty();
    let copied = shadow.is_none_or(|s| s.len() == weights.len() && s.dtype() == DType::F16);
    if !fits || !orthogonal || !copied {
        let message =
            format!("{} rows in weights {weights:?}, basis {basis:?}, shadow {shadow:?}", starts.len());
        return Err(Error::op("project", message));
    }
    let (gpu, bodies) = (weights.gpu(), chosen(weights.gpu())?);
    let (count, k) = (starts.len() as u32, basis.rows());
    let slab = if bodies.lane() { (LANE_ITERATIONS / (2 * channels + 1)).max(1) } else { k };
    for pass in 1..=PASSES {
        for first in (0..k).step_by(slab) {
            let last = (first + slab).min(k);
            let shadow = shadow.filter(|_| pass == PASSES && last == k);
            let params =
                ProjectParams { rows: count, c: channels as u32, first: first as u32, last: last as u32 };
            let launch = Launch::new(gpu, &SHADER)
                .defs(defs(shadow.is_some(), bodies))
                .read(0, starts)
                .read(1, basis)
                .write(2, weights)
                .params(&params)
                .grid(bodies.rows(count))
                .flops(4 * (starts.len() * (last - first) * channels) as u64);
            match shadow {
                Some(shadow) => launch.write(3, shadow).run()?,
                None => launch.run()?,
            }
        }
    }
    Ok(())
}

/// The specification, in place on rows of `channels` values: what each row has along each basis vector is taken away.
pub fn reference(rows: &mut [f64], basis: &[f64], channels: usize) {
    for row in rows.chunks_exact_mut(channels) {
        for u in basis.chunks_exact(channels) {
            let along: f64 = row.iter().zip(u).map(|(a, u)| a * u).sum();
            row.iter_mut().zip(u).for_each(|(a, u)| *a -= along * u);
        }
    }
}

pub(crate) fn variants(out: &mut Vec<Variant>) {
    for (bodies, shadow) in iproduct!(BODIES, BOTH) {
        variant::<ProjectParams>(out, &SHADER, defs(shadow, bodies));
    }
}
