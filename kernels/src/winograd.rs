//! 3×3 convolutions by Winograd's F(2×2, 3×3): 16 products where the implicit GEMM does 36, and two transforms around them.
//!
//! CPU adapters alone run it, where products are the bound. It is not measured on GPUs, where the memory that the transforms go
//! through may be.

use itertools::iproduct;
use strata_engine::{DType, Gpu, Launch, Result, Shader, Tensor, params};

use crate::Weight;
use crate::bodies::{Bodies, chosen};
use crate::gemm::{Conv, Ext, Gemm, Layout};
use crate::variants::{BOTH, Defs, FLOATS, INDEX, Variant, variant};

static SHADER: Shader =
    Shader { name: "winograd", source: include_str!("winograd.wgsl"), includes: &[INDEX], extensions: &[] };

params! {
    struct WinogradParams { count: u32, c: u32, first: u32, tiles: u32, h: u32, w: u32, r: u32 }
}

/// Products per tile.
const PLANES: usize = 16;
/// Pixels of a sample and channels from which it is faster: the batch has no say, so that a sample's bits do not depend on it.
/// On llvmpipe (Mesa 26), f32, in ms:
///
/// |          | 8×8×80 | 8×8×640 | 8×8×1280 | 16×16×48 | 16×16×64 | 16×16×640 | 16×16×1280 |
/// |----------|--------|---------|----------|----------|----------|-----------|------------|
/// | GEMM     | 0.20   | 8.4     | 38       | 0.27     | 0.42     | 34        | 154        |
/// | Winograd | 0.38   | 5.4     | 27       | 0.40     | 0.40     | 16        | 73         |
const MIN_PIXELS: usize = 64;
const MIN_CHANNELS: usize = 128;
/// Bytes of transformed input or output that are there at once, about what a cache holds.
const CHUNK_BYTES: usize = 8 << 20;

/// A convolution with weights that are transformed.
#[derive(Clone)]
pub(crate) struct Winograd {
    /// `[16, O, C]`.
    u: Tensor,
    /// Samples, height, width.
    size: [usize; 3],
}

/// What is added to a convolution's sums.
#[derive(Default)]
pub(crate) struct Additions<'a> {
    pub ext: Option<Ext<'a>>,
    pub bias: Option<&'a Tensor>,
    pub residual: Option<&'a Tensor>,
}

impl Winograd {
    /// The convolution of x with w, if it is one that this is faster for, and the adapter can bind the transformed kernel, which
    /// stays with w.
    ///
    /// # Errors
    /// The GPU is out of memory.
    pub fn new(x: &Tensor, w: &Weight, conv: &Conv) -> Result<Option<Self>> {
        let &[o, _, _, c] = w.shape() else { return Ok(None) };
        let [h, width] = conv.src;
        let fits = [o, c].iter().all(|n| n.is_multiple_of(4) && *n >= MIN_CHANNELS)
            && Tensor::bindable(x.gpu(), &[PLANES, o, c], w.storage().dtype());
        let plain = conv.kernel == [3, 3] && conv.stride == 1 && conv.pad == 1 && conv.src == conv.dst;
        if !(chosen(x.gpu())?.lane() && plain && fits && h * width >= MIN_PIXELS) {
            return Ok(None);
        }
        let u = w.prepared(|| transform(w.data(), [o, c]))?;
        let batch = x.len() / (h * width * c);
        Ok(Some(Self { u, size: [batch, h, width] }))
    }

    /// x ∗ w and additions, into a fresh tensor.
    ///
    /// # Errors
    /// The GPU is out of memory.
    pub fn forward(&self, x: &Tensor, add: &Additions<'_>, shape: &[usize], dtype: DType) -> Result<Tensor> {
        self.run(x, false, add, shape, dtype)
    }

    /// The gradient of x from that of x ∗ w, onto another, into a fresh tensor.
    ///
    /// # Errors
    /// The GPU is out of memory.
    pub fn backward(
        &self,
        grad_out: &Tensor,
        onto: Option<&Tensor>,
        shape: &[usize],
        dtype: DType,
    ) -> Result<Tensor> {
        self.run(grad_out, true, &Additions { residual: onto, ..Additions::default() }, shape, dtype)
    }

    fn run(
        &self,
        x: &Tensor,
        back: bool,
        add: &Additions<'_>,
        shape: &[usize],
        dtype: DType,
    ) -> Result<Tensor> {
        let gpu = x.gpu();
        let layout = if back { Layout::Nn } else { Layout::Nt };
        let out = Tensor::empty(gpu, shape, dtype)?;
        let [c, n] = [x.last(), out.last()];
        let [batch, h, w] = self.size;
        let tiles = batch * h.div_ceil(2) * w.div_ceil(2);
        // workgroups of the GEMM must not straddle planes
        let chunks = (tiles * 4 * PLANES * c.max(n)).div_ceil(CHUNK_BYTES).max(1);
        let chunk = tiles.div_ceil(chunks).next_multiple_of(if tiles <= 16 { 16 } else { 32 });
        for first in (0..tiles).step_by(chunk) {
            let here = chunk.min(tiles - first);
            let params = |channels: usize| WinogradParams {
                count: (here * channels / 4) as u32,
                c: (channels / 4) as u32,
                first: first as u32,
                tiles: chunk as u32,
                h: h as u32,
                w: w as u32,
                r: add.ext.map_or(0, |ext| ext.s.last() as u32),
            };
            let v = Tensor::empty(gpu, &[PLANES, chunk, c], DType::F32)?;
            let features = Features { op: "input", dtype: x.dtype(), back, ..Features::default() };
            launch(gpu, &features, &params(c))?.read(0, x).write(1, &v).run()?;
            let product = Gemm::new(&v, &self.u, layout, [PLANES * chunk, n, c]);
            let m =
                Gemm { planes: PLANES, out: DType::F32, ..product }.run("winograd", &[PLANES, chunk, n])?;
            let features = Features {
                op: "output",
                dtype,
                back,
                bias: add.bias.is_some(),
                residual: add.residual.is_some(),
                ext: add.ext.map(|ext| ext.s.dtype()),
            };
            launch(gpu, &features, &params(n))?
                .read(0, &m)
                .write(1, &out)
                .read_opt(2, add.bias)
                .read_opt(3, add.residual)
                .read_opt(4, add.ext.map(|ext| ext.s))
                .read_opt(5, add.ext.map(|ext| ext.u))
                .run()?;
        }
        Ok(out)
    }
}

/// `[O, 3, 3, C]` to `[16, O, C]`.
fn transform(w: &Tensor, [o, c]: [usize; 2]) -> Result<Tensor> {
    let gpu = w.gpu();
    let u = Tensor::empty(gpu, &[PLANES, o, c], w.dtype())?;
    let count = (o * c / 4) as u32;
    let params = WinogradParams { count, c: (c / 4) as u32, first: 0, tiles: 0, h: 0, w: 0, r: 0 };
    let features = Features { op: "weights", dtype: w.dtype(), ..Features::default() };
    launch(gpu, &features, &params)?.read(0, w).write(1, &u).run()?;
    Ok(u)
}

fn launch<'a>(gpu: &'a Gpu, features: &Features, params: &WinogradParams) -> Result<Launch<'a>> {
    let bodies = chosen(gpu)?;
    let launch = Launch::new(gpu, &SHADER)
        .defs(defs(features, bodies))
        .params(params)
        .grid(bodies.invocations(params.count))
        .note(features.op);
    Ok(launch)
}

/// What a transform's text depends on.
struct Features {
    op: &'static str,
    /// Of weights, x or out.
    dtype: DType,
    back: bool,
    bias: bool,
    residual: bool,
    /// Type of S and U.
    ext: Option<DType>,
}

impl Default for Features {
    fn default() -> Self {
        Self { op: "", dtype: DType::F32, back: false, bias: false, residual: false, ext: None }
    }
}

fn defs(f: &Features, bodies: Bodies) -> Defs {
    vec![
        ("OP", f.op.into()),
        ("T", f.dtype.into()),
        ("TRANSPOSED", f.back.into()),
        ("BIAS", f.bias.into()),
        ("RESIDUAL", f.residual.into()),
        ("EXT", f.ext.into()),
        ("WG", bodies.workgroup().into()),
    ]
}

pub(crate) fn variants(out: &mut Vec<Variant>) {
    let mut push = |f| variant::<WinogradParams>(out, &SHADER, defs(&f, Bodies::Lane));
    for dtype in FLOATS {
        push(Features { op: "weights", dtype, ..Features::default() });
    }
    for (dtype, back) in iproduct!(FLOATS, BOTH) {
        push(Features { op: "input", dtype, back, ..Features::default() });
    }
    for (dtype, back, residual, bias, ext) in
        iproduct!(FLOATS, BOTH, BOTH, BOTH, [None, Some(DType::F32), Some(DType::F16)])
    {
        // on the way back there is neither
        if !(back && (bias || ext.is_some())) {
            push(Features { op: "output", dtype, back, bias, residual, ext });
        }
    }
}
