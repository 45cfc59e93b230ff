//! Attention on cooperative matrices: how much a workgroup holds, and whether it gives what the other body gives.

use itertools::iproduct;
use strata_engine::{DType, Extension, Gpu, Launch, Result, Shader, Tensor, fold_grid};

use super::{AttentionParams, Call, Pass, run};
use crate::bodies::{Matrices, chosen};
use crate::gemm;
use crate::variants::{BOTH, Defs, Variant, variant};

static COOP: Shader = Shader {
    name: "attention_coop",
    source: include_str!("../attention_coop.wgsl"),
    includes: &[
        ("vec", include_str!("../include/vec.wgsl")),
        ("attention_tiles", include_str!("../include/attention_tiles.wgsl")),
    ],
    extensions: &[Extension::F16, Extension::CooperativeMatrices],
};

const PASSES: [Pass; 5] = [Pass::Lse, Pass::Forward, Pass::Delta, Pass::Queries, Pass::Keys];

impl Pass {
    /// Products that make its scores, q kᵀ and do vᵀ; tiles of columns in workgroup memory; outputs that are summed over the
    /// columns, each with weights of its own.
    fn kept(self) -> [u32; 3] {
        match self {
            Self::Lse => [1, 1, 0],
            Self::Forward => [1, 2, 1],
            Self::Delta => [2, 2, 0],
            Self::Queries => [2, 2, 1],
            Self::Keys => [2, 2, 2],
        }
    }
}

/// How a workgroup shares its tokens.
#[derive(Clone, Copy)]
struct Shape {
    /// Subgroups over tokens, and over what belongs to one: scores, channels.
    subgroups: [u32; 2],
    /// Rows of tiles of each.
    tiles: u32,
    /// Tokens on the other side at once.
    columns: u32,
}

const fn shape(subgroups: [u32; 2], tiles: u32, columns: u32) -> Shape {
    Shape { subgroups, tiles, columns }
}

/// So many workgroups keep a large GPU busy; on a CPU few are enough for a test to see the first shape.
const BUSY: [u32; 2] = [128, 4];

/// Bytes of workgroup memory, at most, also where there is more: a processor should have room for several workgroups.
const MOST_MEMORY: u32 = 48 << 10;

/// Numbers that an invocation may hold in matrices: of 255 registers, and on a CPU such that a kernel compiles in seconds.
const HELD: [u32; 2] = [160, 480];

/// The shapes for matrices of this side, from few loads to little memory. On a CPU they are there to be tested, and what counts is
/// the time to compile.
fn shapes(side: u32, cpu: bool) -> &'static [Shape] {
    match (side, cpu) {
        (_, true) => const { &[shape([2, 2], 2, 32), shape([1, 2], 1, 16)] },
        (8, false) => const { &[shape([4, 1], 2, 32), shape([4, 1], 1, 32), shape([4, 1], 1, 16)] },
        _ => const { &[shape([8, 1], 1, 32), shape([4, 1], 1, 32), shape([2, 2], 1, 32)] },
    }
}

impl Shape {
    fn rows(self, on: Matrices) -> u32 {
        self.subgroups[0] * self.tiles * on.side
    }

    fn invocations(self, on: Matrices) -> u32 {
        self.subgroups[0] * self.subgroups[1] * on.subgroup
    }

    /// Channels of a head, with zeros.
    fn padded(self, on: Matrices, d: u32) -> u32 {
        d.next_multiple_of(self.subgroups[1] * on.side)
    }

    /// Bytes of workgroup memory: rows or columns and weights; scores; what belongs to a token.
    fn memory(self, on: Matrices, pass: Pass, d: u32) -> u32 {
        let [products, columns, sums] = pass.kept();
        let (rows, line) = (self.rows(on), self.padded(on, d) + 8);
        let used = columns * self.columns * line + sums * rows * (self.columns + 8);
        let tokens = if sums == 0 { self.invocations(on) } else { self.columns };
        2 * used.max(rows * line) + 4 * products * rows * (self.columns + 4) + 8 * tokens
    }

    /// Numbers of rows and of sums that an invocation holds in matrices; two of f16 count one.
    fn held(self, on: Matrices, pass: Pass, d: u32) -> u32 {
        let ([products, _, sums], padded) = (pass.kept(), self.padded(on, d));
        (products * padded / 2 + sums * padded / self.subgroups[1]) * self.tiles * on.side / on.subgroup
    }

    fn fits(self, on: Matrices, pass: Pass, d: u32) -> bool {
        // each invocation has the same part of a row: some vectors of four
        let (invocations, rows) = (self.invocations(on), self.rows(on));
        invocations.is_multiple_of(rows)
            && self.columns.is_multiple_of(4 * (invocations / rows))
            && self.memory(on, pass, d) <= on.memory.min(MOST_MEMORY)
            && self.held(on, pass, d) <= HELD[usize::from(on.cpu)]
    }

    fn defs(self, on: Matrices, pass: Pass, d: u32, causal: bool) -> Defs {
        vec![
            ("PASS", pass.name().into()),
            ("CAUSAL", causal.into()),
            ("SIDE", on.side.into()),
            ("SM", self.subgroups[0].into()),
            ("SN", self.subgroups[1].into()),
            ("FM", self.tiles.into()),
            ("BC", self.columns.into()),
            ("DP", self.padded(on, d).into()),
            ("V", if d.is_multiple_of(4) { 4_u32 } else { 1 }.into()),
            ("SV", if on.quads { 4_u32 } else { 1 }.into()),
            ("WG", self.invocations(on).into()),
        ]
    }
}

/// How the passes of an attention run on an adapter.
#[derive(Clone, Copy)]
pub(super) struct Shapes {
    on: Matrices,
    shapes: [Shape; 5],
}

impl Shapes {
    /// Of the shapes that fit a pass, the first that `pick` takes, or the last. `None` where some pass has none.
    fn new(on: Matrices, d: u32, pick: impl Fn(Pass, Shape) -> bool) -> Option<Self> {
        let [lse, forward, delta, queries, keys] = PASSES.map(|pass| {
            let mut fit = shapes(on.side, on.cpu).iter().copied().filter(|shape| shape.fits(on, pass, d));
            fit.clone().find(|shape| pick(pass, *shape)).or(fit.next_back())
        });
        Some(Self { on, shapes: [lse?, forward?, delta?, queries?, keys?] })
    }

    pub(super) fn launch<'a>(
        self,
        x: &'a Tensor,
        p: &AttentionParams,
        pass: Pass,
        causal: bool,
    ) -> Launch<'a> {
        let shape = self.shapes[pass as usize];
        let blocks = p.tokens(pass).div_ceil(shape.rows(self.on));
        Launch::new(x.gpu(), &COOP)
            .defs(shape.defs(self.on, pass, p.d, causal))
            .grid(fold_grid(p.batch * p.heads * blocks))
    }
}

/// The shapes for this attention in f16, where the adapter has cooperative matrices that do what they should, and memory for them.
pub(super) fn shapes_for(gpu: &Gpu, p: &AttentionParams) -> Result<Option<Shapes>> {
    let Some(on) = Matrices::chosen(gpu)?.filter(|_| gemm::trusted(gpu)) else { return Ok(None) };
    if !gpu.once(|gpu| Works(works(gpu, on))).0 {
        return Ok(None);
    }
    let busy = |pass, shape: Shape| {
        let workgroups = p.batch * p.heads * p.tokens(pass).div_ceil(shape.rows(on));
        workgroups >= BUSY[usize::from(on.cpu)]
    };
    Ok(Shapes::new(on, p.d, busy))
}

/// What [`works`] found the first time. Products can be right where this is not.
#[derive(Clone, Copy)]
struct Works(bool);

/// Whether attention on cooperative matrices gives what the other body gives, there and back, twice, in the shapes that load least
/// and in those that need least memory.
fn works(gpu: &Gpu, on: Matrices) -> bool {
    // a tile and a half: one of the next is zeros
    let d = on.side * 3 / 2;
    let both = [true, false].map(|first| Shapes::new(on, d, |_, _| first));
    both.into_iter().flatten().all(|shapes| agrees(gpu, shapes, d).unwrap_or(false))
}

/// Compares with the other body on numbers without any symmetry, in two heads of d channels.
fn agrees(gpu: &Gpu, shapes: Shapes, d: u32) -> Result<bool> {
    // f16 rounds p, its gradients and the results, by 0.0003 each
    const BOUND: f64 = 5e-3;
    let p = AttentionParams { batch: 1, heads: 2, tq: 150, tk: 77, d, scale: 0.25 };
    let tensor = |tokens: usize, step: usize| {
        let shape = [1, tokens, 2 * d as usize];
        let values: Vec<f32> =
            (0..tokens * shape[2]).map(|i| (i * step % 1021) as f32 / 255.0 - 2.0).collect();
        Tensor::from_f32(gpu, &values, &shape, DType::F16)
    };
    let (q, k, v, upstream) = (tensor(150, 7919)?, tensor(77, 104_729)?, tensor(77, 613)?, tensor(150, 431)?);
    let bodies = chosen(gpu)?;
    let results = |shapes| -> Result<Vec<Vec<f32>>> {
        let tape = crate::tape();
        [&q, &k, &v].into_iter().for_each(|t| tape.track(t));
        let y = run(&tape, [&q, &k, &v], Call { p, causal: true, bodies, shapes })?;
        let grads = tape.backward(&y, upstream.clone())?;
        [&q, &k, &v].into_iter().filter_map(|t| grads.get(t)).chain([&y]).map(Tensor::to_f32).collect()
    };
    let expected = results(None)?;
    for _ in 0..2 {
        for (found, expected) in results(Some(shapes))?.iter().zip(&expected) {
            let norm: f64 = expected.iter().map(|v| f64::from(*v).powi(2)).sum();
            let square = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)).powi(2);
            let error: f64 = found.iter().zip(expected).map(square).sum();
            // false for NaN
            let same = (error / norm).sqrt() <= BOUND;
            if !same {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

pub(super) fn variants(out: &mut Vec<Variant>) {
    for (on, d, pass, causal) in iproduct!(Matrices::KINDS, [40, 80, 160, 64, 5], PASSES, BOTH) {
        for shape in shapes(on.side, on.cpu).iter().filter(|shape| shape.fits(on, pass, d)) {
            variant::<AttentionParams>(out, &COOP, shape.defs(on, pass, d, causal));
        }
    }
}
