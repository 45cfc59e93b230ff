//! GEMMs on cooperative matrices: how much a workgroup makes, and whether the adapter can be trusted with it.

use strata_engine::{DType, Extension, Gpu, Result, Shader, Tensor};

use super::{ACT, Body, CONV, Conv, Gemm, IO, Layout, VEC};
use crate::bodies::Matrices;

const TILES: (&str, &str) = ("gemm_tiles", include_str!("../include/gemm_tiles.wgsl"));

pub(super) static COOP: Shader = Shader {
    name: "gemm_coop",
    source: include_str!("../gemm_coop.wgsl"),
    includes: &[VEC, IO, ACT, CONV, TILES],
    extensions: &[Extension::CooperativeMatrices],
};

/// How a workgroup makes its part of the output.
#[derive(Clone, Copy)]
struct Shape {
    /// Rows × columns.
    name: &'static str,
    /// Subgroups over rows and columns.
    subgroups: [u32; 2],
    /// Cooperative matrices of each, over rows and columns.
    matrices: [u32; 2],
    /// Values of k that are in workgroup memory at once.
    depth: u32,
    /// Fewer workgroups than these leave a large GPU idle, and a smaller shape is faster.
    least: u32,
}

/// The shapes for matrices of this side, from large to small, and last the one for few columns: the rank of a LoRA. Those of
/// 8 × 8 are so small that a workgroup has to have many; but on a CPU they are there to be tested, and what counts is the time
/// to compile. On an H200, in TFLOP/s (NT m×n×k; 3×3 convolutions of 4×64×64 320 to 320, 4×16×16 1280 to 1280, 1×16×16 likewise):
///
/// | shape   | 8192×8192×8192 | 64×64 | 16×16 | 1×16×16 |
/// |---------|----------------|-------|-------|---------|
/// | 256×128 | 234            | 149   | 82    | 21      |
/// | 128×128 | 176            | 189   | 159   | 41      |
/// | 128×64  | 158            | 180   | 115   | 65      |
/// | 64×64   | 90             | 118   | 88    | 81      |
fn shapes(side: u32, cpu: bool) -> &'static [Shape] {
    const fn shape(
        name: &'static str,
        subgroups: [u32; 2],
        matrices: [u32; 2],
        depth: u32,
        least: u32,
    ) -> Shape {
        Shape { name, subgroups, matrices, depth, least }
    }
    match (side, cpu) {
        (_, true) => const { &[shape("32×32", [2, 2], [2, 2], 32, 0), shape("64×8", [4, 1], [2, 1], 32, 0)] },
        (8, false) => {
            const { &[shape("64×64", [2, 2], [4, 4], 32, 0), shape("64×8", [4, 1], [2, 1], 32, 0)] }
        }
        _ => {
            const {
                &[
                    shape("256×128", [4, 4], [4, 2], 32, 512),
                    shape("128×128", [2, 4], [4, 2], 64, 64),
                    shape("128×64", [4, 2], [2, 2], 64, 64),
                    shape("64×64", [2, 2], [2, 2], 64, 0),
                    shape("64×16", [4, 1], [1, 1], 64, 0),
                ]
            }
        }
    }
}

impl Shape {
    fn tile(self, side: u32) -> [u32; 2] {
        [0, 1].map(|axis| self.subgroups[axis] * self.matrices[axis] * side)
    }

    fn workgroups(self, side: u32, [m, n]: [u32; 2]) -> u32 {
        let [rows, columns] = self.tile(side);
        m.div_ceil(rows) * n.div_ceil(columns)
    }

    /// Matrices of each subgroup that leave through workgroup memory at once: few where there are many subgroups.
    fn leaving(self) -> u32 {
        if self.subgroups[0] * self.subgroups[1] > 4 { 1 } else { self.matrices[1].min(2) }
    }

    /// Bytes of workgroup memory, at most: A and B, and the sums that leave.
    fn memory(self, side: u32) -> u32 {
        let [m, n] = self.tile(side);
        let b = (n * (self.depth + 8)).max(self.depth * (n + 8));
        let sums = self.subgroups[0] * self.subgroups[1] * side * side * self.leaving();
        2 * (m * (self.depth + 8) + b) + 4 * sums
    }

    fn fits(self, on: Matrices) -> bool {
        let invocations = self.subgroups[0] * self.subgroups[1] * on.subgroup;
        self.memory(on.side) <= on.memory && invocations <= on.invocations
    }

    fn body(self, on: Matrices) -> Body {
        let side = on.side;
        let ([sm, sn], [fm, fn_]) = (self.subgroups, self.matrices);
        let defs = vec![
            ("SIDE", side.into()),
            ("SM", sm.into()),
            ("SN", sn.into()),
            ("FM", fm.into()),
            ("FN", fn_.into()),
            ("FS", self.leaving().into()),
            ("BK", self.depth.into()),
            ("WG", (sm * sn * on.subgroup).into()),
            ("SV", if on.quads { 4_u32 } else { 1 }.into()),
        ];
        Body { name: self.name, shader: &COOP, tile: self.tile(side), defs }
    }
}

pub(super) fn is(body: &Body) -> bool {
    std::ptr::eq(body.shader, &COOP)
}

/// The body for a product of m × n, if the adapter has the memory for it.
pub(super) fn body(on: Matrices, [m, n]: [u32; 2]) -> Option<Body> {
    let (thin, wide) = shapes(on.side, on.cpu).split_last()?;
    let shape = match n <= on.side {
        true => Some(thin),
        false => {
            let mut fit = wide.iter().filter(|shape| shape.fits(on));
            fit.clone().find(|shape| shape.workgroups(on.side, [m, n]) >= shape.least).or(fit.next_back())
        }
    };
    shape.filter(|shape| shape.fits(on)).map(|shape| shape.body(on))
}

/// Bodies whose text is checked without a GPU.
pub(super) fn bodies() -> Vec<Body> {
    let of = |on: Matrices| shapes(on.side, on.cpu).iter().map(move |shape| shape.body(on));
    Matrices::KINDS.into_iter().flat_map(of).collect()
}

/// The bodies that the adapter has the memory for.
pub(super) fn fitting(on: Matrices) -> Vec<Body> {
    let shapes = shapes(on.side, on.cpu).iter().filter(|shape| shape.fits(on));
    shapes.map(|shape| shape.body(on)).collect()
}

/// What [`works`] found the first time.
#[derive(Clone, Copy)]
struct Works(bool);

/// Whether cooperative matrices do here what they should.
pub(crate) fn trusted(gpu: &Gpu) -> bool {
    gpu.once(|gpu| Works(works(gpu))).0
}

/// Whether every shape gives what the `tile` body gives, for a product there and a 3×3 convolution back, twice: drivers have
/// offered cooperative matrices that they do not have, and naga writes them without the memory operands that Vulkan's
/// memory model asks for (gfx-rs/wgpu#8805).
fn works(gpu: &Gpu) -> bool {
    let Ok(Some(on)) = Matrices::chosen(gpu) else { return false };
    let bodies = fitting(on);
    !bodies.is_empty()
        && bodies.into_iter().all(|body| {
            let agree = |layout, conv| agrees(gpu, &body, layout, conv).unwrap_or(false);
            agree(Layout::Nt, false) && agree(Layout::Nn, true)
        })
}

/// Compares a body with the `tile` body on numbers without any symmetry.
fn agrees(gpu: &Gpu, body: &Body, layout: Layout, conv: bool) -> Result<bool> {
    const BOUND: f64 = 1e-5;
    // pictures of 7 × width, of which no tile is a multiple; eights are whole, as they are in all that has to be fast
    let width = body.tile[0] as usize / 4 + 1;
    let [m, n, k] = [14 * width, body.tile[1] as usize + 8, 168];
    let taps = if conv { 9 } else { 1 };
    let conv = conv.then_some(Conv {
        src: [7, width],
        dst: [7, width],
        kernel: [3, 3],
        stride: 1,
        pad: 1,
        transposed: layout == Layout::Nn,
    });
    let tensor = |shape: [usize; 2], step: usize| {
        let values: Vec<f32> =
            (0..shape[0] * shape[1]).map(|i| (i * step % 1021) as f32 / 510.0 - 1.0).collect();
        Tensor::from_f32(gpu, &values, &shape, DType::F16)
    };
    let (a, b) = (tensor([m, k], 7919)?, tensor([n, taps * k], 104_729)?);
    let run = |body: Body| -> Result<Vec<f32>> {
        let gemm = Gemm { conv, out: DType::F32, body: Some(body), ..Gemm::new(&a, &b, layout, [m, n, k]) };
        gemm.run("cooperative matrices", &[m, n])?.to_f32()
    };
    let expected = run(Body::tile())?;
    let norm: f64 = expected.iter().map(|v| f64::from(*v).powi(2)).sum();
    let square = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)).powi(2);
    for _ in 0..2 {
        let error: f64 = run(body.clone())?.iter().zip(&expected).map(square).sum();
        // false for NaN
        let same = (error / norm).sqrt() <= BOUND;
        if !same {
            return Ok(false);
        }
    }
    Ok(true)
}
