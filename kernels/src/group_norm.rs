//! Group norm (arXiv 1803.08494) of channels-last images with frozen affine weights, and SiLU and the time embedding fused.
//!
//! Saved for the way back: x, and mean and rstd per sample and group. The output is recomputed.

use itertools::iproduct;
use strata_engine::{DType, Error, Launch, Result, Shader, Tape, Tensor, params};

use crate::Act;
use crate::bodies::{Bodies, chosen};
use crate::tokens::sum_tokens;
use crate::variants::{ACT, BODIES, BOTH, Defs, INDEX, REDUCE, Variant, variant};

static SHADER: Shader = Shader {
    name: "group_norm",
    source: include_str!("group_norm.wgsl"),
    includes: &[INDEX, ACT, REDUCE, ("vec", include_str!("include/vec.wgsl"))],
    extensions: &[],
};

params! {
    struct GroupNormParams { batch: u32, tokens: u32, c: u32, groups: u32, slice: u32, slices: u32, eps: f32 }
}

/// Loop iterations of an invocation over its slice where it stands alone; see `group_norm.wgsl`.
const ITERATIONS: usize = 30_000;
/// Tokens of a slice that a workgroup goes through, so that there are workgroups for a whole GPU.
const TOKENS: usize = 512;

/// What group norm does besides normalising.
#[derive(Clone, Copy, Debug)]
pub struct GroupNormArgs<'a> {
    /// Groups of neighbouring channels.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
    /// Whether SiLU follows.
    pub silu: bool,
    /// `[B, C]` of x's type, added to every token of a sample before it is normalised (the time embedding).
    pub add: Option<&'a Tensor>,
    /// Type of the output; default x's.
    pub out: Option<DType>,
}

#[derive(Clone, Copy)]
struct Pass {
    name: &'static str,
    silu: bool,
    add: bool,
    before: bool,
}

fn defs(pass: Pass, [x, y]: [DType; 2], vec: bool, bodies: Bodies) -> Defs {
    vec![
        ("PASS", pass.name.into()),
        ("SILU", pass.silu.into()),
        ("ADD", pass.add.into()),
        ("BEFORE", pass.before.into()),
        ("TX", x.into()),
        ("T", y.into()),
        ("V", if vec { 4_u32 } else { 1 }.into()),
        ("LANE", bodies.lane().into()),
        ("WG", bodies.workgroup().into()),
    ]
}

fn merge_defs(stats: bool, bodies: Bodies) -> Defs {
    vec![("PASS", "merge".into()), ("STATS", stats.into()), ("WG", bodies.workgroup().into())]
}

/// Everything the passes share.
struct Norm<'a> {
    x: &'a Tensor,
    add: Option<&'a Tensor>,
    gamma: &'a Tensor,
    beta: &'a Tensor,
    silu: bool,
    /// Of the output.
    out: DType,
    params: GroupNormParams,
    bodies: Bodies,
}

impl Norm<'_> {
    fn launch<'b>(&'b self, name: &'static str, before: Option<&'b Tensor>, out: &'b Tensor) -> Launch<'b> {
        let (gpu, p) = (self.x.gpu(), &self.params);
        let bodies = self.bodies;
        let vec = p.c.is_multiple_of(4);
        let (silu, add) = (self.silu && name != "stats", self.add.is_some());
        let pass = Pass { name, silu, add, before: before.is_some() };
        let slices = p.batch * p.groups * p.slices;
        let grid = match name {
            "apply" | "grad_apply" => bodies.invocations(self.x.len() as u32 / if vec { 4 } else { 1 }),
            _ => bodies.rows(slices),
        };
        let launch = Launch::new(gpu, &SHADER)
            .defs(defs(pass, [self.x.dtype(), self.out], vec, bodies))
            .read(0, self.x)
            .read_opt(1, self.add)
            .read_opt(7, before)
            .write(8, out)
            .params(p)
            .grid(grid);
        if name == "stats" { launch } else { launch.read(2, self.gamma).read(3, self.beta) }
    }

    /// A tensor of two numbers per slice, for `stats` and `grad_sums` to fill.
    fn slices(&self) -> Result<Tensor> {
        let p = &self.params;
        Tensor::empty(self.x.gpu(), &[(p.batch * p.groups) as usize, p.slices as usize, 2], DType::F32)
    }

    /// Mean and rstd of each sample and group, from what `stats` found of their slices; or those that there are, and beside them
    /// what `grad_sums` found.
    fn merge(&self, slices: &Tensor, stats: Option<&Tensor>) -> Result<Tensor> {
        let (gpu, p) = (self.x.gpu(), &self.params);
        let merged = Tensor::empty(
            gpu,
            &[p.batch as usize, p.groups as usize, if stats.is_some() { 4 } else { 2 }],
            DType::F32,
        )?;
        let bodies = self.bodies;
        Launch::new(gpu, &SHADER)
            .defs(merge_defs(stats.is_none(), bodies))
            .read(0, slices)
            .read_opt(4, stats)
            .write(8, &merged)
            .params(p)
            .grid(bodies.invocations(p.batch * p.groups))
            .run()?;
        Ok(merged)
    }
}

/// Normalises `[B, …, C]` over tokens and each group's channels, with gamma and beta f32 `[C]`.
///
/// # Errors
/// Shapes that do not fit.
pub fn group_norm(
    tape: &Tape,
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    args: &GroupNormArgs<'_>,
) -> Result<Tensor> {
    let (batch, c) = (x.shape().first().copied().unwrap_or(1), x.last());
    if args.groups == 0 || !c.is_multiple_of(args.groups) || gamma.len() != c || beta.len() != c {
        let message = format!("x {x:?} in {} groups with gamma {gamma:?} and beta {beta:?}", args.groups);
        return Err(Error::op("group_norm", message));
    }
    if let Some(a) = args.add.filter(|a| a.shape() != [batch, c] || a.dtype() != x.dtype()) {
        return Err(Error::op("group_norm", format!("{a:?} is added to {x:?}; it must be [{batch}, {c}]")));
    }
    let (tokens, width) = (x.len() / (batch * c).max(1), c / args.groups);
    let bodies = chosen(x.gpu())?;
    let slice = if bodies.lane() { ITERATIONS / (width + 2) } else { TOKENS }.clamp(1, tokens.max(1));
    let params = GroupNormParams {
        batch: batch as u32,
        tokens: tokens as u32,
        c: c as u32,
        groups: args.groups as u32,
        slice: slice as u32,
        slices: tokens.div_ceil(slice) as u32,
        eps: args.eps,
    };
    let out = args.out.unwrap_or(x.dtype());
    let norm = Norm { x, add: args.add, gamma, beta, silu: args.silu, out, params, bodies };
    let slices = norm.slices()?;
    norm.launch("stats", None, &slices).run()?;
    let stats = norm.merge(&slices, None)?;
    let y = Tensor::empty(x.gpu(), x.shape(), out)?;
    norm.launch("apply", None, &y).read(4, &stats).run()?;

    let mut inputs = vec![x];
    inputs.extend(args.add);
    if inputs.iter().any(|t| tape.tracks(t)) {
        let (x, add, gamma, beta, silu) =
            (x.clone(), args.add.cloned(), gamma.clone(), beta.clone(), args.silu);
        let record = inputs.clone();
        tape.record(&record, &y, move |grad_out, grads| {
            let norm =
                Norm { x: &x, add: add.as_ref(), gamma: &gamma, beta: &beta, silu, out, params, bodies };
            let slices = norm.slices()?;
            norm.launch("grad_sums", None, &slices).read(4, &stats).read(5, grad_out).run()?;
            let sums = norm.merge(&slices, Some(&stats))?;
            // the share that came before must not reach the gradient of `add`
            let wants_add = add.as_ref().is_some_and(|a| grads.wants(a.id()));
            let before = if wants_add { None } else { grads.take(x.id()) };
            let dx = Tensor::empty(x.gpu(), x.shape(), x.dtype())?;
            norm.launch("grad_apply", before.as_ref(), &dx).read(4, &sums).read(5, grad_out).run()?;
            if let (Some(a), true) = (&add, wants_add) {
                grads.add_id(a.id(), sum_tokens(&dx, params.batch as usize)?)?;
            }
            if grads.wants(x.id()) {
                grads.add_id(x.id(), dx)?;
            }
            Ok(())
        });
    }
    Ok(y)
}

/// The specification; x is `[batch, tokens, c]`, `add` `[batch, c]`.
pub fn reference(
    x: &[f64],
    gamma: &[f64],
    beta: &[f64],
    add: Option<&[f64]>,
    [batch, tokens, c]: [usize; 3],
    groups: usize,
    eps: f64,
    silu: bool,
) -> Vec<f64> {
    let width = c / groups;
    let mut y = vec![0.0; x.len()];
    for b in 0..batch {
        for g in 0..groups {
            let members: Vec<(usize, usize)> =
                (0..tokens * width).map(|i| (i / width, g * width + i % width)).collect();
            let u =
                |&(t, ch): &(usize, usize)| x[(b * tokens + t) * c + ch] + add.map_or(0.0, |a| a[b * c + ch]);
            let count = members.len() as f64;
            let mean = members.iter().map(u).sum::<f64>() / count;
            let variance = members.iter().map(|m| (u(m) - mean).powi(2)).sum::<f64>() / count;
            for m in &members {
                let n = (u(m) - mean) / (variance + eps).sqrt() * gamma[m.1] + beta[m.1];
                y[(b * tokens + m.0) * c + m.1] = if silu { Act::Silu.of(n) } else { n };
            }
        }
    }
    y
}

pub(crate) fn variants(out: &mut Vec<Variant>) {
    for (bodies, stats) in iproduct!(BODIES, BOTH) {
        variant::<GroupNormParams>(out, &SHADER, merge_defs(stats, bodies));
    }
    for (bodies, types, vec, add, silu) in iproduct!(BODIES, crate::NORM_TYPES, BOTH, BOTH, BOTH) {
        let passes = [
            ("stats", false),
            ("apply", false),
            ("grad_sums", false),
            ("grad_apply", false),
            ("grad_apply", true),
        ];
        // statistics are of what comes in
        for (name, before) in passes.into_iter().filter(|(name, _)| !(silu && *name == "stats")) {
            let pass = Pass { name, silu, add, before };
            variant::<GroupNormParams>(out, &SHADER, defs(pass, types, vec, bodies));
        }
    }
}
