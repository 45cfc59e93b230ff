//! GEMMs on cooperative matrices: how much a workgroup makes, and whether the adapter can be trusted with it.

use strata_engine::{Caps, DType, GemmVariant, Gpu, Result, Shader, Tensor};

use super::{ACT, Body, CONV, Conv, Gemm, IO, Layout, VEC};

const TILES: (&str, &str) = ("gemm_tiles", include_str!("../gemm_tiles.wgsl"));

pub(super) static COOP: Shader = Shader {
    name: "gemm_coop",
    source: include_str!("../gemm_coop.wgsl"),
    includes: &[VEC, IO, ACT, CONV, TILES],
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

    fn fits(self, caps: &Caps, side: u32) -> bool {
        let invocations = self.subgroups[0] * self.subgroups[1] * caps.subgroup;
        self.memory(side) <= caps.max_workgroup_memory && invocations <= caps.max_workgroup_size
    }

    /// `subgroup`: most invocations of one; a workgroup has enough for all, whatever size they come in. `quads`: memory
    /// of the workgroup is of vectors of four, which Metal cannot load matrices from.
    fn body(self, side: u32, subgroup: u32, quads: bool) -> Body {
        let ([sm, sn], [fm, fn_]) = (self.subgroups, self.matrices);
        let defs = vec![
            ("COOP", true.into()),
            ("SIDE", side.into()),
            ("SM", sm.into()),
            ("SN", sn.into()),
            ("FM", fm.into()),
            ("FN", fn_.into()),
            ("FS", self.leaving().into()),
            ("BK", self.depth.into()),
            ("WG", (sm * sn * subgroup).into()),
            ("SV", if quads { 4u32 } else { 1 }.into()),
        ];
        Body { name: self.name, shader: &COOP, tile: self.tile(side), defs }
    }
}

pub(super) fn is(body: &Body) -> bool {
    std::ptr::eq(body.shader, &COOP)
}

/// The body for a product of m × n, if the adapter has the memory for it.
pub(super) fn body(caps: &Caps, [m, n]: [u32; 2]) -> Option<Body> {
    let side = caps.gemm.side()?;
    let (thin, wide) = shapes(side, caps.cpu).split_last()?;
    let shape = match n <= side {
        true => Some(thin),
        false => {
            let mut fit = wide.iter().filter(|shape| shape.fits(caps, side));
            fit.clone().find(|shape| shape.workgroups(side, [m, n]) >= shape.least).or(fit.next_back())
        }
    };
    shape.filter(|shape| shape.fits(caps, side)).map(|shape| of(caps, *shape, side))
}

fn of(caps: &Caps, shape: Shape, side: u32) -> Body {
    shape.body(side, caps.subgroup, caps.backend == "Vulkan")
}

/// Bodies whose text is checked without a GPU: subgroups of 8 (llvmpipe), 32 and 64 invocations.
pub(super) fn bodies() -> Vec<Body> {
    let of = |(side, subgroup, quads, cpu)| {
        shapes(side, cpu).iter().map(move |shape| shape.body(side, subgroup, quads))
    };
    let adapters = [(8, 8, true, true), (8, 32, false, false), (16, 32, true, false), (16, 64, true, false)];
    adapters.into_iter().flat_map(of).collect()
}

/// The bodies that the adapter has the memory for.
pub(super) fn fitting(caps: &Caps) -> Vec<Body> {
    let Some(side) = caps.gemm.side() else { return Vec::new() };
    let shapes = shapes(side, caps.cpu).iter().filter(|shape| shape.fits(caps, side));
    shapes.map(|shape| of(caps, *shape, side)).collect()
}

/// What [`works`] found the first time.
#[derive(Clone, Copy)]
struct Works(bool);

/// Whether cooperative matrices do here what they should.
pub(super) fn trusted(gpu: &Gpu) -> bool {
    gpu.once(|gpu| Works(works(gpu))).0
}

/// Whether every shape gives what the `tile` body gives, for a product there and a 3×3 convolution back, twice: drivers have
/// offered cooperative matrices that they do not have, and naga writes them without the memory operands that Vulkan's
/// memory model asks for (gfx-rs/wgpu#8805).
fn works(gpu: &Gpu) -> bool {
    let bodies = fitting(gpu.caps());
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

/// The bodies in use: where the adapter's cooperative matrices do not do what they should, `Tile`.
pub fn gemm_variant(gpu: &Gpu) -> GemmVariant {
    match gpu.caps().gemm {
        GemmVariant::Coop8 | GemmVariant::Coop16 if !trusted(gpu) => GemmVariant::Tile,
        variant => variant,
    }
}
