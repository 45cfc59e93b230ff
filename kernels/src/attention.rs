//! Multi-head attention without a score matrix: online softmax forward; backward in two kernels, one per query and one
//! per key, without atomics. In f16 its products run on cooperative matrices where the adapter has them ([`coop`]). One head too wide
//! for an invocation takes another way where nothing is to go back ([`wide`]).
//!
//! Saved for the way back: q, k, v, and log-sum-exp per query.

use itertools::iproduct;
use strata_engine::{DType, Error, Launch, Result, Shader, Tape, Tensor, fold_grid, params};

mod coop;
mod wide;

use crate::bodies::{Bodies, chosen};
use crate::variants::{BODIES, BOTH, Defs, FLOATS, Variant, variant};
use coop::Shapes;

static SHADER: Shader = Shader {
    name: "attention",
    source: include_str!("attention.wgsl"),
    includes: &[("vec", include_str!("include/vec.wgsl"))],
    extensions: &[],
};

params! { struct AttentionParams { batch: u32, heads: u32, tq: u32, tk: u32, d: u32, scale: f32 } }

/// Vectors of a head that an invocation keeps in registers, at most: forward, and backward, which keeps more per vector.
const VECTORS: [usize; 2] = [20, 10];
/// The same on a CPU, whose cache keeps what its registers cannot: 256×256, 8 heads of 80, there and back takes 24 ms in one part
/// and 387 in two.
const CPU_VECTORS: usize = 40;

/// Kind of attention.
#[derive(Clone, Copy, Debug)]
pub struct AttentionArgs {
    /// Heads, side by side in the last axis.
    pub heads: usize,
    /// Query i sees keys 0 … i only.
    pub causal: bool,
}

/// Tokens of one invocation, of which it keeps so many vectors. Those of a CPU adapter share what they load, at about 5
/// instructions a number; two of the widest heads run faster (160 channels, 64×64: about 4 ms instead of 9, there and back), but
/// llvmpipe takes half a minute longer to compile them.
fn tokens_each(bodies: Bodies, kept: usize) -> u32 {
    if bodies.lane() && 2 * kept <= CPU_VECTORS { 2 } else { 1 }
}

/// The kernels of an attention.
#[derive(Clone, Copy, PartialEq)]
enum Pass {
    /// On cooperative matrices alone; elsewhere `Forward` does it too.
    Lse,
    Forward,
    Delta,
    Queries,
    Keys,
}

impl Pass {
    fn name(self) -> &'static str {
        match self {
            Self::Lse => "lse",
            Self::Forward => "forward",
            Self::Delta => "delta",
            Self::Queries => "queries",
            Self::Keys => "keys",
        }
    }

    /// Width of a vector, vectors of a head that an invocation keeps, and how many invocations share a head of d channels.
    fn parts(self, d: usize, bodies: Bodies) -> (usize, usize, usize) {
        let width = if d.is_multiple_of(4) { 4 } else { 1 };
        let vectors = d / width;
        let most = if bodies.lane() { CPU_VECTORS } else { VECTORS[usize::from(self != Self::Forward)] };
        let kept = vectors.min(most);
        (width, kept, vectors.div_ceil(kept))
    }

    fn defs(self, d: usize, causal: bool, dtype: DType, bodies: Bodies) -> Defs {
        let (width, kept, parts) = self.parts(d, bodies);
        let vectors = d / width;
        let unroll =
            if parts == 1 { 1 } else { (1..=16).rev().find(|u| vectors.is_multiple_of(*u)).unwrap_or(1) };
        vec![
            ("PASS", self.name().into()),
            ("CAUSAL", causal.into()),
            ("T", dtype.into()),
            ("W", (width as u32).into()),
            ("N", (kept as u32).into()),
            ("U", (unroll as u32).into()),
            ("WHOLE", (parts == 1).into()),
            ("Q", tokens_each(bodies, kept).into()),
            ("WG", bodies.workgroup().into()),
        ]
    }
}

/// An attention: its numbers, and the body that computes it.
#[derive(Clone, Copy)]
struct Call {
    p: AttentionParams,
    causal: bool,
    bodies: Bodies,
    /// Without them, invocations work on tokens of their own.
    shapes: Option<Shapes>,
}

impl Call {
    fn launch<'a>(&self, x: &'a Tensor, pass: Pass) -> Launch<'a> {
        let p = &self.p;
        let launch = match self.shapes {
            Some(shapes) => shapes.launch(x, p, pass, self.causal),
            None => {
                let bodies = self.bodies;
                let (_, kept, parts) = pass.parts(p.d as usize, bodies);
                let parts = if pass == Pass::Delta { 1 } else { parts as u32 };
                let blocks = p.tokens(pass).div_ceil(bodies.workgroup() * tokens_each(bodies, kept));
                Launch::new(x.gpu(), &SHADER)
                    .defs(pass.defs(p.d as usize, self.causal, x.dtype(), bodies))
                    .grid(fold_grid(p.batch * p.heads * parts * blocks))
            }
        };
        launch.params(p).note(pass.name())
    }
}

impl AttentionParams {
    /// Tokens that a pass shares among workgroups.
    fn tokens(&self, pass: Pass) -> u32 {
        if pass == Pass::Keys { self.tk } else { self.tq }
    }
}

/// softmax(q kᵀ / √d) v per head: q `[B, Tq, H·D]`, k and v `[B, Tk, H·D]`, to `[B, Tq, H·D]`.
///
/// # Errors
/// Shapes that do not fit.
pub fn attention(tape: &Tape, q: &Tensor, k: &Tensor, v: &Tensor, args: &AttentionArgs) -> Result<Tensor> {
    let (&[batch, tq, c], &[kb, tk, kc]) = (q.shape(), k.shape()) else {
        return Err(Error::op("attention", format!("q {q:?} and k {k:?} must be [B, T, heads · D]")));
    };
    let fits =
        kb == batch && kc == c && v.shape() == k.shape() && args.heads > 0 && c.is_multiple_of(args.heads);
    if !fits || k.dtype() != q.dtype() || v.dtype() != q.dtype() || c == 0 || tk == 0 {
        return Err(Error::op("attention", format!("q {q:?}, k {k:?}, v {v:?} with {} heads", args.heads)));
    }
    let d = c / args.heads;
    let p = AttentionParams {
        batch: batch as u32,
        heads: args.heads as u32,
        tq: tq as u32,
        tk: tk as u32,
        d: d as u32,
        scale: (1.0 / (d as f64).sqrt()) as f32,
    };
    let bodies = chosen(q.gpu())?;
    let shapes = if q.dtype() == DType::F16 { coop::shapes_for(q.gpu(), &p)? } else { None };
    let parts = Pass::Forward.parts(d, bodies).2;
    let tracked = [q, k, v].iter().any(|t| tape.tracks(t));
    if shapes.is_none() && parts > 1 && !tracked && !args.causal && wide::suits(&p, q.dtype()) {
        return wide::forward([q, k, v], &p);
    }
    run(tape, [q, k, v], Call { p, causal: args.causal, bodies, shapes })
}

fn run(tape: &Tape, [q, k, v]: [&Tensor; 3], call: Call) -> Result<Tensor> {
    let AttentionParams { batch, heads, tq, tk, d, .. } = call.p;
    // of one product
    let flops = 2 * u64::from(batch * heads * d) * u64::from(tq) * u64::from(tk);
    let lse = Tensor::empty(q.gpu(), &[batch as usize, heads as usize, tq as usize], DType::F32)?;
    let y = Tensor::empty(q.gpu(), q.shape(), q.dtype())?;
    let forward =
        call.launch(q, Pass::Forward).read(0, q).read(1, k).read(2, v).write(4, &y).flops(2 * flops);
    match call.shapes {
        None => forward.write(3, &lse).run()?,
        Some(_) => {
            // its product is a second time that of `forward`, and counted there
            call.launch(q, Pass::Lse).read(0, q).read(1, k).read(2, v).write(3, &lse).run()?;
            forward.read(3, &lse).run()?;
        }
    }
    if ![q, k, v].iter().any(|t| tape.tracks(t)) {
        return Ok(y);
    }
    let (q, k, v) = (q.clone(), k.clone(), v.clone());
    let inputs = [q.clone(), k.clone(), v.clone()];
    tape.record(&inputs.each_ref(), &y, move |grad_out, grads| {
        let gpu = q.gpu();
        let delta = Tensor::empty(gpu, lse.shape(), DType::F32)?;
        let back = |pass| {
            let launch = call.launch(&q, pass).read(0, &q).read(1, &k).read(2, &v);
            launch.read(3, &lse).read(4, grad_out)
        };
        back(Pass::Delta).write(5, &delta).flops(2 * flops).run()?;
        if grads.wants(q.id()) {
            let dq = Tensor::empty(gpu, q.shape(), q.dtype())?;
            back(Pass::Queries).read(5, &delta).write(6, &dq).flops(3 * flops).run()?;
            grads.add_id(q.id(), dq)?;
        }
        if grads.wants(k.id()) || grads.wants(v.id()) {
            let dk = Tensor::empty(gpu, k.shape(), k.dtype())?;
            let dv = Tensor::empty(gpu, v.shape(), v.dtype())?;
            back(Pass::Keys).read(5, &delta).write(6, &dk).write(7, &dv).flops(4 * flops).run()?;
            for (t, grad) in [(&k, dk), (&v, dv)] {
                if grads.wants(t.id()) {
                    grads.add_id(t.id(), grad)?;
                }
            }
        }
        Ok(())
    });
    Ok(y)
}

/// The specification; q `[batch, tq, heads · d]`, k and v `[batch, tk, heads · d]`.
pub fn reference(
    q: &[f64],
    k: &[f64],
    v: &[f64],
    [batch, tq, tk]: [usize; 3],
    heads: usize,
    d: usize,
    causal: bool,
) -> Vec<f64> {
    let row = heads * d;
    let mut y = vec![0.0; q.len()];
    for b in 0..batch {
        for h in 0..heads {
            for i in 0..tq {
                let qi = &q[(b * tq + i) * row + h * d..][..d];
                let seen = if causal { tk.min(i + 1) } else { tk };
                let at = |j: usize| (b * tk + j) * row + h * d;
                let score =
                    |j| qi.iter().zip(&k[at(j)..]).map(|(a, b)| a * b).sum::<f64>() / (d as f64).sqrt();
                let s: Vec<f64> = (0..seen).map(score).collect();
                let top = s.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = s.iter().map(|s| (s - top).exp()).sum();
                for (j, s) in s.iter().enumerate() {
                    let weight = (s - top).exp() / total;
                    for c in 0..d {
                        y[(b * tq + i) * row + h * d + c] += weight * v[at(j) + c];
                    }
                }
            }
        }
    }
    y
}

pub(crate) fn variants(out: &mut Vec<Variant>) {
    let passes = [Pass::Forward, Pass::Delta, Pass::Queries, Pass::Keys];
    for (bodies, dtype, d, pass, causal) in
        iproduct!(BODIES, FLOATS, [40, 80, 160, 64, 512, 5, 15, 50], passes, BOTH)
    {
        variant::<AttentionParams>(out, &SHADER, pass.defs(d, causal, dtype, bodies));
    }
    wide::variants(out);
    coop::variants(out);
}
