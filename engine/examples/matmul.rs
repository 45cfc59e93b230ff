//! An op from nothing: a matrix product, its kernel and its gradient, on whatever GPU is there.
//!
//!     cargo run -p strata-engine --example matmul

use strata_engine::{DType, Error, Gpu, GpuOptions, Launch, Result, Shader, Tape, Tensor, params};

/// `out[i, j] = Σ_k a[i, k] b[k, j]`, an invocation per value. Of a and b, "turned" ones are read as their transposes.
static SHADER: Shader = Shader {
    name: "matmul",
    source: "
@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> b: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;
@compute @workgroup_size(8, 8)
fn main(@builtin(global_invocation_id) at: vec3<u32>) {
    let i = at.y; let j = at.x;
    if (i >= p.m || j >= p.n) { return; }
    var sum = 0.0;
    for (var k = 0u; k < p.k; k++) {
        sum += a[{{ 'k * p.m + i' if TURN_A else 'i * p.k + k' }}] * b[{{ 'j * p.k + k' if TURN_B else 'k * p.n + j' }}];
    }
    out[i * p.n + j] = sum;
}",
    includes: &[],
    extensions: &[],
};
params! { struct Sizes { m: u32, n: u32, k: u32 } }

fn product(a: &Tensor, b: &Tensor, [turn_a, turn_b]: [bool; 2]) -> Result<Tensor> {
    let sides =
        |t: &Tensor, turn| if turn { [t.shape()[1], t.shape()[0]] } else { [t.shape()[0], t.shape()[1]] };
    let ([m, k], [rows, n]) = (sides(a, turn_a), sides(b, turn_b));
    if k != rows {
        return Err(Error::op("matmul", format!("{a:?} times {b:?}")));
    }
    let out = Tensor::empty(a.gpu(), &[m, n], DType::F32)?;
    Launch::new(a.gpu(), &SHADER)
        .defs([("TURN_A", turn_a.into()), ("TURN_B", turn_b.into())])
        .read(0, a)
        .read(1, b)
        .write(2, &out)
        .params(&Sizes { m: m as u32, n: n as u32, k: k as u32 })
        .grid([n.div_ceil(8) as u32, m.div_ceil(8) as u32, 1])
        .run()?;
    Ok(out)
}

/// C = A B. On the way back dA = dC Bᵀ and dB = Aᵀ dC.
fn matmul(tape: &Tape, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let c = product(a, b, [false, false])?;
    let (saved_a, saved_b) = (a.clone(), b.clone());
    tape.record(&[a, b], &c, move |dc, grads| {
        grads.add_id(saved_a.id(), product(dc, &saved_b, [false, true])?)?;
        grads.add_id(saved_b.id(), product(&saved_a, dc, [true, false])?)
    });
    Ok(c)
}

fn main() -> Result<()> {
    let gpu = Gpu::open(&GpuOptions::default())?;
    let a = Tensor::from_f32(&gpu, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3], DType::F32)?;
    let b = Tensor::from_f32(&gpu, &[1.0, 0.0, 0.0, 1.0, 1.0, 1.0], &[3, 2], DType::F32)?;
    // no gradient is ever summed here: each tensor is used once
    let tape = Tape::new(|a, _| Err(Error::op("add", format!("{a:?} has two gradients"))));
    tape.track(&a);
    tape.track(&b);
    let c = matmul(&tape, &a, &b)?;
    let ones = Tensor::from_f32(&gpu, &[1.0; 4], &[2, 2], DType::F32)?;
    let grads = tape.backward(&c, ones)?;
    let show =
        |name: &str, t: &Tensor| t.to_f32().map(|values| println!("{name} {:?} = {values:?}", t.shape()));
    show("C", &c)?;
    show("dA", grads.get(&a).expect("it is tracked"))?;
    show("dB", grads.get(&b).expect("it is tracked"))
}
