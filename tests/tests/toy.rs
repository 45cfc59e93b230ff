//! A small op with its own kernel, y = x · w per column, and knobs that break it.

use strata_engine::{Launch, Result, Shader, Tape, Tensor, params};

static SHADER: Shader = Shader {
    name: "toy",
    source: "
@group(0) @binding(0) var<storage, read> x: array<{{ T }}>;
@group(0) @binding(1) var<storage, read> w: array<{{ T }}>;
@group(0) @binding(2) var<storage, read_write> y: array<{{ T }}>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let i = id.x;
    if i < p.count {
        let at = {% if TRANSPOSE %}(i % p.n) * p.n + i / p.n{% else %}i{% endif %};
        var v = f32(x[at]) * f32(w[at % p.n]) * p.factor;
        if i == p.doubled { v = 2.0 * v; }
        if p.swallow_nan != 0u && (bitcast<u32>(v) & 0x7fffffffu) > 0x7f800000u { v = 0.0; }
        y[i] = {{ T }}({% if ADD %}f32(y[i]) + {% endif %}v);
    }
}
",
    includes: &[],
    extensions: &[],
};

params! { struct ToyParams { count: u32, n: u32, doubled: u32, swallow_nan: u32, factor: f32 } }

/// How one launch of the kernel goes. The default is right.
#[derive(Clone, Copy, Debug)]
pub struct Knobs {
    /// Multiplies the result.
    pub factor: f32,
    /// Writes this many elements more (or fewer) than there are.
    pub excess: i32,
    /// Reads a square x transposed.
    pub transpose: bool,
    /// Adds to what is there.
    pub add: bool,
    /// Doubles this element.
    pub doubled: u32,
    /// Turns NaN into 0.
    pub swallow_nan: bool,
}

impl Default for Knobs {
    fn default() -> Self {
        Self { factor: 1.0, excess: 0, transpose: false, add: false, doubled: u32::MAX, swallow_nan: false }
    }
}

/// y = x · w, with w one number per column.
pub fn launch(x: &Tensor, w: &Tensor, y: &Tensor, knobs: Knobs) -> Result<()> {
    let count = (x.len() as i32 + knobs.excess) as u32;
    let swallow_nan = u32::from(knobs.swallow_nan);
    let params =
        ToyParams { count, n: w.len() as u32, doubled: knobs.doubled, swallow_nan, factor: knobs.factor };
    Launch::new(x.gpu(), &SHADER)
        .def("T", x.dtype())
        .def("TRANSPOSE", knobs.transpose)
        .def("ADD", knobs.add)
        .read(0, x)
        .read(1, w)
        .write(2, y)
        .params(&params)
        .grid([count.div_ceil(64), 1, 1])
        .run()
}

/// The op as it should be: y = x · w · factor, and dx = dy · w · factor; w is frozen.
pub fn scaled(tape: &Tape, x: &Tensor, w: &Tensor, factor: f32) -> Result<Tensor> {
    let knobs = Knobs { factor, ..Knobs::default() };
    let y = Tensor::empty(x.gpu(), x.shape(), x.dtype())?;
    launch(x, w, &y, knobs)?;
    let (id, w) = (x.id(), w.clone());
    tape.record(&[x], &y, move |grad_out, grads| {
        let dx = Tensor::empty(grad_out.gpu(), grad_out.shape(), grad_out.dtype())?;
        launch(grad_out, &w, &dx, knobs)?;
        grads.add_id(id, dx)
    });
    Ok(y)
}
