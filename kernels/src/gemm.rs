//! The GEMM family: every matmul, linear layer and convolution, forward and input gradient, is one of these launches.
//!
//! `out[m, n] = act(α · gate · (Σ_k A[m, k] B[k, n] + Σ_r S[m, r] U[r, n]) + bias[n]) + residual[m, n]`; see
//! `include/gemm_io.wgsl` for layouts. The S, U term is a LoRA: the same loop with r more steps into the same accumulators.

use itertools::iproduct;
use strata_engine::{DType, Def, Error, Gpu, Launch, Result, Shader, Tensor, fold_grid, params};

mod coop;
mod tune;

pub(crate) use coop::trusted;
pub use tune::{Choice, Tuning, tune, tuning_name, use_tuning};

use crate::Act;
use crate::bodies::{Bodies, Matrices, chosen};
use crate::variants::{ACT, BOTH, CONV, Defs, Variant, variant};

const VEC: (&str, &str) = ("vec", include_str!("include/vec.wgsl"));
const IO: (&str, &str) = ("gemm_io", include_str!("include/gemm_io.wgsl"));

static LANE: Shader = Shader {
    name: "gemm_lane",
    source: include_str!("gemm_lane.wgsl"),
    includes: &[VEC, IO, ACT, CONV],
    extensions: &[],
};
static TILE: Shader = Shader {
    name: "gemm_tile",
    source: include_str!("gemm_tile.wgsl"),
    includes: &[VEC, IO, ACT, CONV],
    extensions: &[],
};

params! {
    struct GemmParams {
        m: u32, n: u32, c: u32, taps: u32, r: u32, rows_per_gate: u32, rows_per_plane: u32, alpha: f32,
        src_h: u32, src_w: u32, dst_h: u32, dst_w: u32, kw: u32, stride: u32, pad: u32,
    }
}

/// How B and U lie in memory.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Layout {
    /// `[n, tap, c]` and `[n, r]`: forward, weights as `[out, in]`.
    Nt,
    /// `[c, tap, n]` and `[r, n]`: input gradient with the same weights.
    Nn,
}

/// A is an image, and each tap of the kernel shifts it.
#[derive(Clone, Copy)]
pub(crate) struct Conv {
    /// Height and width of the image read.
    pub src: [usize; 2],
    /// Height and width of the image written.
    pub dst: [usize; 2],
    /// Height and width of the kernel.
    pub kernel: [usize; 2],
    pub stride: usize,
    /// Rows and columns of zeros above and left of the forward input.
    pub pad: usize,
    /// The input gradient rather than the forward pass.
    pub transposed: bool,
}

/// A low-rank term that extends k.
#[derive(Clone, Copy)]
pub(crate) struct Ext<'a> {
    /// S, `[m, r]`; in the input gradient of a convolution `[pixels read, r]`, and each tap shifts it.
    pub s: &'a Tensor,
    /// U, `[n, r]` or `[r, tap, n]` by [`Layout`].
    pub u: &'a Tensor,
}

/// One launch. `Gemm::new` sets the product; the rest is off until set.
pub(crate) struct Gemm<'a> {
    pub a: &'a Tensor,
    pub b: &'a Tensor,
    pub layout: Layout,
    pub m: usize,
    pub n: usize,
    /// Values of k per tap.
    pub c: usize,
    pub conv: Option<Conv>,
    /// How many products lie one after the other: A and out are m / planes rows of each, B its columns of each. The lane bodies
    /// alone know more than one.
    pub planes: usize,
    pub ext: Option<Ext<'a>>,
    pub alpha: f32,
    /// f32 `[G]`; row m is multiplied by entry m / (M / G).
    pub gate: Option<&'a Tensor>,
    pub bias: Option<&'a Tensor>,
    pub residual: Option<&'a Tensor>,
    pub act: Act,
    /// Type of the output and of the residual.
    pub out: DType,
    /// The body to run, instead of the one that suits the GPU adapter.
    pub body: Option<Body>,
}

impl<'a> Gemm<'a> {
    /// A product whose output has b's type.
    pub fn new(a: &'a Tensor, b: &'a Tensor, layout: Layout, [m, n, c]: [usize; 3]) -> Self {
        let (conv, ext, gate, bias, residual) = (None, None, None, None, None);
        Gemm {
            a,
            b,
            layout,
            m,
            n,
            c,
            conv,
            planes: 1,
            ext,
            alpha: 1.0,
            gate,
            bias,
            residual,
            act: Act::None,
            out: b.dtype(),
            body: None,
        }
    }

    /// Launches into a fresh tensor of the given shape, whose elements number m · n.
    pub fn run(self, op: &'static str, shape: &[usize]) -> Result<Tensor> {
        let out = Tensor::empty(self.a.gpu(), shape, self.out)?;
        self.write(op, &out)?;
        Ok(out)
    }

    /// Launches into a tensor of type `out`, whose elements number m · n.
    pub fn write(self, op: &'static str, out: &Tensor) -> Result<()> {
        let gpu = self.a.gpu();
        let (m, n, c) = (self.m as u32, self.n as u32, self.c as u32);
        let conv = self.conv;
        let [kh, kw] = conv.map_or([1, 1], |v| v.kernel.map(|x| x as u32));
        let [src_h, src_w] = conv.map_or([1, 1], |v| v.src.map(|x| x as u32));
        let [dst_h, dst_w] = conv.map_or([1, 1], |v| v.dst.map(|x| x as u32));
        let r = self.ext.map_or(0, |e| e.s.last() as u32);
        let gates = self.gate.map_or(1, |g| g.len().max(1));
        if !self.m.is_multiple_of(gates) {
            return Err(Error::op(op, format!("{gates} gates do not divide {} rows", self.m)));
        }
        let params = GemmParams {
            m,
            n,
            c,
            taps: kh * kw,
            r,
            rows_per_gate: (self.m / gates) as u32,
            rows_per_plane: (self.m / self.planes) as u32,
            alpha: self.alpha,
            src_h,
            src_w,
            dst_h,
            dst_w,
            kw,
            stride: conv.map_or(1, |v| v.stride as u32),
            pad: conv.map_or(0, |v| v.pad as u32),
        };
        let body = match &self.body {
            Some(body) => body.clone(),
            None => tune::body(&self, op, out.shape())?,
        };
        if !body.keeps_planes_apart(&self) {
            let message = format!(
                "{} rows of each of {} products, by {}",
                self.m / self.planes,
                self.planes,
                body.name
            );
            return Err(Error::op(op, message));
        }
        let aligned = |k: u32| {
            k.is_multiple_of(body.width()) && (self.layout == Layout::Nt || n.is_multiple_of(body.width()))
        };
        let features = Features {
            types: [self.a.dtype(), self.b.dtype(), self.out],
            layout: self.layout,
            vec: aligned(c),
            vec_ext: aligned(r),
            vec_n: n.is_multiple_of(4),
            conv: conv.map(|v| v.transposed),
            ext: self.ext.is_some(),
            bias: self.bias.is_some(),
            residual: self.residual.is_some(),
            gate: self.gate.is_some(),
            act: self.act,
        };
        let taps = u64::from(params.taps);
        let ext_taps = if conv.is_some_and(|v| v.transposed) { taps } else { 1 };
        let depth = u64::from(c) * taps + u64::from(r) * ext_taps;
        Launch::new(gpu, body.shader)
            .defs(features.defs(&body))
            .read(0, self.a)
            .read(1, self.b)
            .write(2, out)
            .read_opt(3, self.bias)
            .read_opt(4, self.residual)
            .read_opt(5, self.ext.map(|e| e.s))
            .read_opt(6, self.ext.map(|e| e.u))
            .read_opt(7, self.gate)
            .params(&params)
            .grid(fold_grid(body.tiles(m, n)))
            .flops(2 * u64::from(m) * u64::from(n) * depth)
            .note(body.name)
            .run()
    }
}

/// The kernel body and how much of the output one of its workgroups makes.
#[derive(Clone)]
pub(crate) struct Body {
    /// Rows × columns of one workgroup.
    pub name: &'static str,
    pub shader: &'static Shader,
    /// Rows and columns of one workgroup.
    pub tile: [u32; 2],
    /// What its text depends on beside the product's own [`Features`].
    pub defs: Defs,
}

/// Rows and columns of a workgroup of 8 invocations, which lie over the rows: for most products, for few columns
/// (the rank of a LoRA), for few rows, for very few, and one that is there to be tuned. On llvmpipe (Mesa 26), in GFLOP per
/// CPU-second (NT, f32, m×n×k):
///
/// | tile  | 1024×256×256 | 1024×8×32 | 16×96×96 |
/// |-------|--------------|-----------|----------|
/// | 32×16 | 23           | 8         | 5        |
/// | 64×8  | 20           | 11        | 4        |
/// | 16×16 | 20           | 6         | 10       |
///
/// 8×16 does 4×1280×1280 in f16 1.3 times as fast as 16×16.
///
/// In an input gradient neighbouring columns of B lie side by side in memory, and wider tiles pay: 1024×1024×1024 (NN, f16)
/// takes 62 ms by 32×16 and 48 by 16×32.
const LANE_TILES: [(&str, [u32; 2]); 6] = [
    ("32×16", [32, 16]),
    ("64×8", [64, 8]),
    ("16×16", [16, 16]),
    ("8×16", [8, 16]),
    ("32×8", [32, 8]),
    ("16×32", [16, 32]),
];

impl Body {
    /// The body for products m × n with weights of this type that lie so.
    fn new(gpu: &Gpu, weights: DType, layout: Layout, [m, n]: [u32; 2]) -> Result<Self> {
        if chosen(gpu)? == Bodies::Lane {
            return Ok(Self::lane(match (m, n, layout) {
                (..=8, _, _) => LANE_TILES[3],
                (..=16, _, _) => LANE_TILES[2],
                (_, ..=8, _) => LANE_TILES[1],
                (_, _, Layout::Nt) => LANE_TILES[0],
                (_, _, Layout::Nn) => LANE_TILES[5],
            }));
        }
        let matrices = Matrices::chosen(gpu)?.filter(|_| weights == DType::F16 && trusted(gpu));
        Ok(matrices.and_then(|on| coop::body(on, [m, n])).unwrap_or_else(Self::tile))
    }

    /// All that could run a product here.
    fn all(gpu: &Gpu) -> Result<Vec<Self>> {
        Ok(match (chosen(gpu)?, Matrices::chosen(gpu)?) {
            (Bodies::Lane, _) => LANE_TILES.map(Self::lane).to_vec(),
            (_, None) => vec![Self::tile()],
            (_, Some(on)) => coop::fitting(on),
        })
    }

    pub fn tile() -> Self {
        Self { name: "64×64", shader: &TILE, tile: [64, 64], defs: Defs::new() }
    }

    fn lane((name, tile): (&'static str, [u32; 2])) -> Self {
        let defs = vec![("RR", (tile[0] / 8).into()), ("CC", tile[1].into())];
        Self { name, shader: &LANE, tile, defs }
    }

    /// Whether no workgroup has rows of two products.
    fn keeps_planes_apart(&self, gemm: &Gemm<'_>) -> bool {
        let rows = gemm.m / gemm.planes;
        gemm.planes == 1 || (std::ptr::eq(self.shader, &LANE) && rows.is_multiple_of(self.tile[0] as usize))
    }

    /// Values of the last axis that it loads at once, where their number allows.
    fn width(&self) -> u32 {
        if coop::is(self) { 8 } else { 4 }
    }

    fn tiles(&self, m: u32, n: u32) -> u32 {
        m.div_ceil(self.tile[0]) * n.div_ceil(self.tile[1])
    }
}

/// What a GEMM's text depends on.
#[derive(Clone, Copy)]
struct Features {
    /// Of A, of B (and S and U), and of the output.
    types: [DType; 3],
    layout: Layout,
    vec: bool,
    vec_ext: bool,
    vec_n: bool,
    /// Whether it is a convolution, and then whether a transposed one.
    conv: Option<bool>,
    ext: bool,
    bias: bool,
    residual: bool,
    gate: bool,
    act: Act,
}

impl Features {
    fn defs(&self, body: &Body) -> Defs {
        let width = |vec: bool| Def::Int(if vec { body.width() } else { 1 });
        let own = vec![
            ("TA", self.types[0].into()),
            ("T", self.types[1].into()),
            ("TO", self.types[2].into()),
            ("NN", (self.layout == Layout::Nn).into()),
            ("V", width(self.vec)),
            ("VE", width(self.ext && self.vec_ext)),
            ("VN", self.vec_n.into()),
            ("CONV", self.conv.is_some().into()),
            ("TRANSPOSED", self.conv.unwrap_or(false).into()),
            ("EXT", self.ext.into()),
            ("BIAS", self.bias.into()),
            ("RESIDUAL", self.residual.into()),
            ("GATE", self.gate.into()),
            ("ACT", self.act.wgsl().into()),
        ];
        [own, body.defs.clone()].concat()
    }
}

/// Types of A, B and the output that occur: all alike, or f16 weights beside a stream in f32.
const TYPES: [[DType; 3]; 5] = {
    const F16: DType = DType::F16;
    const F32: DType = DType::F32;
    [[F32, F32, F32], [F16, F16, F16], [F32, F16, F32], [F16, F16, F32], [F32, F16, F16]]
};

/// Every text this family can take.
pub(crate) fn variants(out: &mut Vec<Variant>) {
    let mut bodies: Vec<Body> = LANE_TILES.map(Body::lane).into_iter().chain([Body::tile()]).collect();
    bodies.extend(coop::bodies());
    let products =
        [(Layout::Nt, None), (Layout::Nn, None), (Layout::Nt, Some(false)), (Layout::Nn, Some(true))];
    let switches = iproduct!(BOTH, BOTH, BOTH, BOTH, BOTH, BOTH);
    for (body, types, (layout, conv), (vec, vec_n, vec_ext, ext, bias, residual)) in
        iproduct!(&bodies, TYPES, products, switches)
    {
        let stored = types[1] == DType::F16 || !coop::is(body);
        let aligned = layout == Layout::Nt || vec_n || !(vec || vec_ext);
        let backward = layout == Layout::Nn;
        if !stored || !aligned || (vec_ext && !ext) || (backward && bias) {
            continue;
        }
        let plain = Features {
            types,
            layout,
            vec,
            vec_ext,
            vec_n,
            conv,
            ext,
            bias,
            residual,
            gate: false,
            act: Act::None,
        };
        let mut push = |f: Features| variant::<GemmParams>(out, body.shader, f.defs(body));
        push(plain);
        // the LoRA's narrow products have gates, and nothing else
        if conv != Some(true) && !ext && !bias && !residual {
            push(Features { gate: true, ..plain });
        }
        if !backward && conv.is_none() && bias {
            for act in [Act::Silu, Act::Gelu, Act::QuickGelu] {
                push(Features { act, ..plain });
            }
        }
    }
}
