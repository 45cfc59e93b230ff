//! GEMMs on cooperative matrices: how much a workgroup makes, and whether the adapter can be trusted with it.

use strata_engine::{Caps, DType, GemmVariant, Gpu, Result, Shader, Tensor};

use super::{ACT, Body, CONV, Conv, Gemm, IO, Layout, VEC};

pub(super) static COOP: Shader =
    Shader { name: "gemm_coop", source: include_str!("../gemm_coop.wgsl"), includes: &[VEC, IO, ACT, CONV] };

/// Values of k that are in workgroup memory at once.
const BK: u32 = 32;

/// How a workgroup shares its part of the output.
#[derive(Clone, Copy)]
struct Shape {
    /// Rows × columns, with matrices of 8 × 8 and with those of 16 × 16.
    names: [&'static str; 2],
    /// Subgroups over rows and columns.
    subgroups: [u32; 2],
    /// Cooperative matrices of each, over rows and columns.
    matrices: [u32; 2],
}

const LARGE: Shape = Shape { names: ["64×64", "128×128"], subgroups: [2, 2], matrices: [4, 4] };
const SMALL: Shape = Shape { names: ["32×32", "64×64"], subgroups: [2, 2], matrices: [2, 2] };
/// For columns that the large shape would waste, as it does a sixth of 320; chosen by tuning alone.
const TALL: Shape = Shape { names: ["64×32", "128×64"], subgroups: [2, 2], matrices: [4, 2] };
/// For few columns: the rank of a LoRA.
const THIN: Shape = Shape { names: ["64×8", "128×16"], subgroups: [4, 1], matrices: [2, 1] };

/// So many workgroups of the large shape keep a large GPU busy.
const BUSY: u32 = 128;

/// The shapes for matrices of this side, the thin one last. Those of 8 × 8 are so small that a workgroup has to have many; but
/// on a CPU they are there to be tested, and what counts is the time to compile.
fn shapes(side: u32, cpu: bool) -> &'static [Shape] {
    match (side, cpu) {
        (_, true) => &[SMALL, THIN],
        (8, false) => &[LARGE, THIN],
        _ => &[LARGE, SMALL, TALL, THIN],
    }
}

impl Shape {
    fn tile(self, side: u32) -> [u32; 2] {
        [0, 1].map(|axis| self.subgroups[axis] * self.matrices[axis] * side)
    }

    /// Bytes of workgroup memory, at most: A, B, a row of sums, where rows of A begin.
    fn memory(self, side: u32) -> u32 {
        let [m, n] = self.tile(side);
        let b = (n * (BK + 8)).max(BK * (n + 8));
        2 * (m * (BK + 8) + b) + 4 * (m / self.matrices[0] * n) + 4 * m
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
            ("BK", BK.into()),
            ("WG", (sm * sn * subgroup).into()),
            ("SV", if quads { 4u32 } else { 1 }.into()),
        ];
        Body { name: self.names[usize::from(side == 16)], shader: &COOP, tile: self.tile(side), defs }
    }
}

pub(super) fn is(body: &Body) -> bool {
    std::ptr::eq(body.shader, &COOP)
}

/// The body for a product of m × n, if the adapter has the memory for it.
pub(super) fn body(caps: &Caps, [m, n]: [u32; 2]) -> Option<Body> {
    let side = caps.gemm.side()?;
    let fits = |shape: Shape| shape.memory(side) <= caps.max_workgroup_memory;
    let busy = |shape: Shape| {
        let [rows, columns] = shape.tile(side);
        m.div_ceil(rows) * n.div_ceil(columns) >= BUSY
    };
    let shape = match shapes(side, caps.cpu) {
        _ if n <= side => THIN,
        [large, small, _, _] if !fits(*large) || !busy(*large) => *small,
        others => others[0],
    };
    fits(shape).then(|| of(caps, shape, side))
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
    let fits = |shape: &&Shape| shape.memory(side) <= caps.max_workgroup_memory;
    shapes(side, caps.cpu).iter().filter(fits).map(|shape| of(caps, *shape, side)).collect()
}

/// What [`works`] found the first time.
#[derive(Clone, Copy)]
struct Works(bool);

/// Whether cooperative matrices do here what they should.
pub(super) fn trusted(gpu: &Gpu) -> bool {
    gpu.once(|gpu| Works(works(gpu))).0
}

/// Whether every shape gives what the `tile` body gives, for products and 3×3 convolutions, there and back, twice: drivers have
/// offered cooperative matrices that they do not have, and naga writes them without the memory operands that Vulkan's
/// memory model asks for (gfx-rs/wgpu#8805).
fn works(gpu: &Gpu) -> bool {
    let bodies = fitting(gpu.caps());
    !bodies.is_empty()
        && bodies.into_iter().all(|body| {
            let agree = |layout, conv| agrees(gpu, &body, layout, conv).unwrap_or(false);
            [Layout::Nt, Layout::Nn].into_iter().all(|layout| agree(layout, false) && agree(layout, true))
        })
}

/// Compares a body with the `tile` body on numbers without any symmetry.
fn agrees(gpu: &Gpu, body: &Body, layout: Layout, conv: bool) -> Result<bool> {
    const BOUND: f64 = 1e-5;
    // pictures of 7 × width, of which no tile is a multiple
    let width = body.tile[0] as usize / 4 + 1;
    let [m, n, k] = [14 * width, body.tile[1] as usize + 4, 5 * BK as usize + 12];
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
