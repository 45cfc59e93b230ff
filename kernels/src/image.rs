//! Moving channels and pixels: concat and split on the last axis, nearest upsampling. Nothing is saved.

use itertools::iproduct;
use strata_engine::{DType, Error, Launch, Result, Shader, Tape, Tensor, params};

use crate::bodies::{Bodies, chosen};
use crate::variants::{BODIES, BOTH, Defs, FLOATS, INDEX, Variant, variant};

static SHADER: Shader = Shader {
    name: "image",
    source: include_str!("image.wgsl"),
    includes: &[INDEX, ("vec", include_str!("include/vec.wgsl"))],
    extensions: &[],
};

params! {
    #[derive(Default)]
    struct ImageParams { count: u32, ca: u32, cb: u32, first: u32, in_h: u32, in_w: u32, out_h: u32, out_w: u32 }
}

fn defs(op: &'static str, dtype: DType, vec: bool, bodies: Bodies) -> Defs {
    vec![
        ("OP", op.into()),
        ("T", dtype.into()),
        ("V", if vec { 4_u32 } else { 1 }.into()),
        ("WG", bodies.workgroup().into()),
    ]
}

/// Channel counts in `params` are in elements here, and in vectors in the kernel where all of them are multiples of 4.
fn run(
    op: &'static str,
    x: &Tensor,
    y: Option<&Tensor>,
    shape: &[usize],
    mut p: ImageParams,
) -> Result<Tensor> {
    let out = Tensor::empty(x.gpu(), shape, x.dtype())?;
    let vec = [p.ca, p.cb, p.first].iter().all(|c| c.is_multiple_of(4));
    p.count = out.len() as u32;
    if vec {
        for c in [&mut p.count, &mut p.ca, &mut p.cb, &mut p.first] {
            *c /= 4;
        }
    }
    let bodies = chosen(x.gpu())?;
    Launch::new(x.gpu(), &SHADER)
        .defs(defs(op, x.dtype(), vec, bodies))
        .read(0, x)
        .read_opt(1, y)
        .write(2, &out)
        .params(&p)
        .grid(bodies.invocations(p.count))
        .run()?;
    Ok(out)
}

fn with_last(shape: &[usize], last: usize) -> Vec<usize> {
    let mut shape = shape.to_vec();
    shape.pop();
    shape.push(last);
    shape
}

/// Channels `first .. first + count` of x.
fn part(x: &Tensor, first: usize, count: usize) -> Result<Tensor> {
    let p = ImageParams { ca: x.last() as u32, cb: count as u32, first: first as u32, ..Default::default() };
    run("part", x, None, &with_last(x.shape(), count), p)
}

/// a and b side by side.
fn join(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let p = ImageParams { ca: a.last() as u32, cb: b.last() as u32, ..Default::default() };
    run("join", a, Some(b), &with_last(a.shape(), a.last() + b.last()), p)
}

/// `[…, Ca]` and `[…, Cb]` to `[…, Ca + Cb]`.
///
/// # Errors
/// Leading axes or types that differ.
pub fn concat(tape: &Tape, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.dtype() != b.dtype() || with_last(a.shape(), 0) != with_last(b.shape(), 0) {
        return Err(Error::op("concat", format!("{a:?} and {b:?} differ in more than the last axis")));
    }
    let (ca, cb, ia, ib) = (a.last(), b.last(), a.id(), b.id());
    let y = join(a, b)?;
    tape.record(&[a, b], &y, move |grad_out, grads| {
        for (id, first, count) in [(ia, 0, ca), (ib, ca, cb)] {
            if grads.wants(id) {
                grads.add_id(id, part(grad_out, first, count)?)?;
            }
        }
        Ok(())
    });
    Ok(y)
}

/// `[…, C]` to `[…, at]` and `[…, C − at]`.
///
/// # Errors
/// `at` outside 1 … C − 1.
pub fn split(tape: &Tape, x: &Tensor, at: usize) -> Result<(Tensor, Tensor)> {
    let c = x.last();
    if at == 0 || at >= c {
        return Err(Error::op("split", format!("{x:?} at channel {at}; both parts need channels")));
    }
    let (a, b) = (part(x, 0, at)?, part(x, at, c - at)?);
    for (y, first) in [(&a, 0), (&b, at)] {
        let (id, shape) = (x.id(), x.shape().to_vec());
        tape.record(&[x], y, move |grad_out, grads| {
            let zeros = |count| Tensor::zeros(grad_out.gpu(), &with_last(&shape, count), grad_out.dtype());
            let dx = if first == 0 { join(grad_out, &zeros(c - at)?)? } else { join(&zeros(at)?, grad_out)? };
            grads.add_id(id, dx)
        });
    }
    Ok((a, b))
}

/// `[B, H, W, C]` to `[B, out_h, out_w, C]`, each side doubled, or doubled less one: out[y, x] = in[y / 2, x / 2].
///
/// # Errors
/// Another output size.
pub fn upsample_nearest(tape: &Tape, x: &Tensor, out_h: usize, out_w: usize) -> Result<Tensor> {
    let &[b, h, w, c] = x.shape() else {
        return Err(Error::op("upsample", format!("{x:?} must be [B, H, W, C]")));
    };
    if out_h.div_ceil(2) != h || out_w.div_ceil(2) != w {
        return Err(Error::op(
            "upsample",
            format!("{h}×{w} to {out_h}×{out_w}; sides are doubled, or doubled less one"),
        ));
    }
    let size = move |ih: usize, iw: usize, oh: usize, ow: usize| ImageParams {
        ca: c as u32,
        in_h: ih as u32,
        in_w: iw as u32,
        out_h: oh as u32,
        out_w: ow as u32,
        ..Default::default()
    };
    let y = run("upsample", x, None, &[b, out_h, out_w, c], size(h, w, out_h, out_w))?;
    let id = x.id();
    tape.record(&[x], &y, move |grad_out, grads| {
        let dx = run("downsum", grad_out, None, &[b, h, w, c], size(out_h, out_w, h, w))?;
        grads.add_id(id, dx)
    });
    Ok(y)
}

/// The specification of [`concat`], for rows of `ca` and `cb` values.
pub fn concat_reference(a: &[f64], b: &[f64], ca: usize, cb: usize) -> Vec<f64> {
    let rows = a.chunks_exact(ca).zip(b.chunks_exact(cb));
    rows.flat_map(|(a, b)| a.iter().chain(b)).copied().collect()
}

/// The specification of [`upsample_nearest`].
pub fn upsample_reference(x: &[f64], [b, h, w, c]: [usize; 4], out_h: usize, out_w: usize) -> Vec<f64> {
    let mut y = Vec::with_capacity(b * out_h * out_w * c);
    for i in 0..b * out_h * out_w {
        let (ox, oy, sample) = (i % out_w, i / out_w % out_h, i / out_w / out_h);
        y.extend_from_slice(&x[((sample * h + oy / 2) * w + ox / 2) * c..][..c]);
    }
    y
}

pub(crate) fn variants(out: &mut Vec<Variant>) {
    for (bodies, dtype, vec, op) in iproduct!(BODIES, FLOATS, BOTH, ["join", "part", "upsample", "downsum"]) {
        variant::<ImageParams>(out, &SHADER, defs(op, dtype, vec, bodies));
    }
}
