//! Element by element: sum, activations, GEGLU, conversion.

use itertools::iproduct;
use strata_engine::{DType, Error, Launch, Result, Shader, Tape, Tensor, params};

use crate::bodies::{Bodies, chosen};
use crate::variants::{ACT, BODIES, BOTH, Defs, FLOATS, INDEX, Variant, variant};

static SHADER: Shader = Shader {
    name: "elementwise",
    source: include_str!("elementwise.wgsl"),
    includes: &[INDEX, ACT, ("vec", include_str!("include/vec.wgsl"))],
    extensions: &[],
};

params! { struct ElementwiseParams { count: u32, c: u32 } }

/// A pointwise nonlinearity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Act {
    /// x
    #[default]
    None,
    /// x σ(x)
    Silu,
    /// x Φ(x), with the exact error function
    Gelu,
    /// x σ(1.702 x), OpenAI's
    QuickGelu,
}

impl Act {
    pub(crate) fn wgsl(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Silu => "silu",
            Self::Gelu => "gelu",
            Self::QuickGelu => "quick_gelu",
        }
    }

    /// The specification.
    pub fn of(self, x: f64) -> f64 {
        match self {
            Self::None => x,
            Self::Silu => x / (1.0 + (-x).exp()),
            Self::Gelu => 0.5 * x * (1.0 + libm::erf(x / std::f64::consts::SQRT_2)),
            Self::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
        }
    }
}

#[derive(Clone, Copy)]
struct Op {
    name: &'static str,
    act: Act,
    from: DType,
    to: DType,
}

fn defs(op: Op, vec: bool, bodies: Bodies) -> Defs {
    vec![
        ("OP", op.name.into()),
        ("ACT", op.act.wgsl().into()),
        ("T", op.from.into()),
        ("TO", op.to.into()),
        ("V", if vec { 4_u32 } else { 1 }.into()),
        ("WG", bodies.workgroup().into()),
    ]
}

impl Op {
    fn new(name: &'static str, act: Act, x: &Tensor) -> Self {
        Self { name, act, from: x.dtype(), to: x.dtype() }
    }

    /// `count` elements, in rows of `c`.
    fn run(self, x: &Tensor, y: Option<&Tensor>, shape: &[usize], count: usize, c: usize) -> Result<Tensor> {
        let out = Tensor::empty(x.gpu(), shape, self.to)?;
        let vec = count.is_multiple_of(4) && c.is_multiple_of(4);
        let width = if vec { 4 } else { 1 };
        let params = ElementwiseParams { count: (count / width) as u32, c: (c / width) as u32 };
        let bodies = chosen(x.gpu())?;
        Launch::new(x.gpu(), &SHADER)
            .defs(defs(self, vec, bodies))
            .read(0, x)
            .read_opt(1, y)
            .write(2, &out)
            .params(&params)
            .grid(bodies.invocations(params.count))
            .run()?;
        Ok(out)
    }
}

/// a + b, of one shape and type.
///
/// # Errors
/// Shapes or types that differ.
pub fn add(tape: &Tape, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.shape() != b.shape() || a.dtype() != b.dtype() {
        return Err(Error::op("add", format!("{a:?} and {b:?} differ")));
    }
    let n = a.len();
    let y = Op::new("add", Act::None, a).run(a, Some(b), a.shape(), n, n)?;
    let (ia, ib) = (a.id(), b.id());
    tape.record(&[a, b], &y, move |grad_out, grads| {
        for id in [ia, ib] {
            if grads.wants(id) {
                grads.add_id(id, grad_out.clone())?;
            }
        }
        Ok(())
    });
    Ok(y)
}

/// f(x) element by element; dx = grad_out · f'(x), from x, which is kept where it is tracked.
///
/// # Errors
/// The driver's alone.
pub fn activation(tape: &Tape, x: &Tensor, act: Act) -> Result<Tensor> {
    if act == Act::None {
        return Ok(x.clone());
    }
    let n = x.len();
    let y = Op::new("act", act, x).run(x, None, x.shape(), n, n)?;
    let saved = x.clone();
    tape.record(&[x], &y, move |grad_out, grads| {
        let dx = Op::new("act_grad", act, &saved).run(&saved, Some(grad_out), saved.shape(), n, n)?;
        grads.add_id(saved.id(), dx)
    });
    Ok(y)
}

/// `[…, 2C]` to `[…, C]`: the first half times gelu of the second (arXiv 2002.05202, GEGLU). x is kept where it is tracked.
///
/// # Errors
/// An odd last axis.
pub fn geglu(tape: &Tape, x: &Tensor) -> Result<Tensor> {
    if !x.last().is_multiple_of(2) {
        return Err(Error::op("geglu", format!("{x:?} has no two halves")));
    }
    let (c, count) = (x.last() / 2, x.len() / 2);
    let mut shape = x.shape().to_vec();
    shape.pop();
    shape.push(c);
    let y = Op::new("geglu", Act::None, x).run(x, None, &shape, count, c)?;
    let saved = x.clone();
    tape.record(&[x], &y, move |grad_out, grads| {
        let dx =
            Op::new("geglu_grad", Act::None, &saved).run(&saved, Some(grad_out), saved.shape(), count, c)?;
        grads.add_id(saved.id(), dx)
    });
    Ok(y)
}

/// The same values in another float type, rounded to nearest even; no gradient.
///
/// # Errors
/// The driver's alone.
pub fn cast(x: &Tensor, dtype: DType) -> Result<Tensor> {
    if x.dtype() == dtype {
        return Ok(x.clone());
    }
    let n = x.len();
    Op { name: "cast", act: Act::None, from: x.dtype(), to: dtype }.run(x, None, x.shape(), n, n)
}

/// The same values in memory of their own: what an adapter's memory can do, nothing else. No gradient.
///
/// # Errors
/// The driver's alone.
pub fn copy(x: &Tensor) -> Result<Tensor> {
    let n = x.len();
    Op { name: "cast", act: Act::None, from: x.dtype(), to: x.dtype() }.run(x, None, x.shape(), n, n)
}

/// The specification of [`geglu`]; x is `[rows, 2 c]`.
pub fn geglu_reference(x: &[f64], c: usize) -> Vec<f64> {
    x.chunks_exact(2 * c).flat_map(|row| (0..c).map(|i| row[i] * Act::Gelu.of(row[c + i]))).collect()
}

pub(crate) fn variants(out: &mut Vec<Variant>) {
    for (bodies, vec, from) in iproduct!(BODIES, BOTH, FLOATS) {
        let mut push = |name, act, to| {
            let op = Op { name, act, from, to };
            variant::<ElementwiseParams>(out, &SHADER, defs(op, vec, bodies));
        };
        for to in FLOATS {
            push("cast", Act::None, to);
        }
        for name in ["add", "geglu", "geglu_grad"] {
            push(name, Act::None, from);
        }
        for (act, name) in iproduct!([Act::Silu, Act::Gelu, Act::QuickGelu], ["act", "act_grad"]) {
            push(name, act, from);
        }
    }
}
