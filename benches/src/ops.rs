//! A case on the GPU.

use anyhow::Result;
use strata_engine::{DType, Gpu, Tape, Tensor};
use strata_kernels::{
    AttentionArgs, ConvArgs, Gate, GroupNormArgs, LinearArgs, Lora, attention, conv2d, geglu, group_norm,
    layer_norm, linear,
};

use crate::case::{Case, Op, Pass, RANK};
use crate::clock::{Measured, measure};

/// Times a case.
pub fn time(gpu: &Gpu, dtype: DType, case: &Case) -> Result<Measured> {
    let tensor = |shape: &[usize], dtype| tensor(gpu, shape, dtype);
    match case.op {
        Op::Linear { m, n, k } => {
            let (x, w) = (tensor(&[m, k], dtype)?, tensor(&[n, k], dtype)?);
            let (down, up) = (tensor(&[RANK, k], dtype)?, tensor(&[n, RANK], dtype)?);
            let loras = lora(&down, &up, case.pass);
            let args = LinearArgs { loras: &loras, ..Default::default() };
            pass(gpu, case.pass, &[&x, &down, &up], &|tape| linear(tape, &x, &w, &args))
        }
        Op::Conv { batch, side, inputs, outputs } => {
            let x = tensor(&[batch, side, side, inputs], dtype)?;
            let w = tensor(&[outputs, 3, 3, inputs], dtype)?;
            let (down, up) = (tensor(&[RANK, 3, 3, inputs], dtype)?, tensor(&[outputs, RANK], dtype)?);
            let loras = lora(&down, &up, case.pass);
            let args = ConvArgs { loras: &loras, ..Default::default() };
            pass(gpu, case.pass, &[&x, &down, &up], &|tape| conv2d(tape, &x, &w, &args))
        }
        Op::Attention { batch, queries, keys, heads, dim } => {
            let q = tensor(&[batch, queries, heads * dim], dtype)?;
            let (k, v) =
                (tensor(&[batch, keys, heads * dim], dtype)?, tensor(&[batch, keys, heads * dim], dtype)?);
            let args = AttentionArgs { heads, causal: false };
            pass(gpu, case.pass, &[&q, &k, &v], &|tape| attention(tape, &q, &k, &v, &args))
        }
        Op::GroupNorm { batch, side, channels, groups } => {
            let x = tensor(&[batch, side, side, channels], dtype)?;
            let affine = tensor(&[channels], DType::F32)?;
            let args = GroupNormArgs { groups, eps: 1e-5, silu: true, add: None, out: None };
            pass(gpu, case.pass, &[&x], &|tape| group_norm(tape, &x, &affine, &affine, &args))
        }
        Op::LayerNorm { rows, channels } => {
            let x = tensor(&[rows, channels], dtype)?;
            let affine = tensor(&[channels], DType::F32)?;
            pass(gpu, case.pass, &[&x], &|tape| layer_norm(tape, &x, &affine, &affine, 1e-5, dtype))
        }
        Op::Geglu { rows, channels } => {
            let x = tensor(&[rows, 2 * channels], dtype)?;
            pass(gpu, case.pass, &[&x], &|tape| geglu(tape, &x))
        }
    }
}

fn lora<'a>(down: &'a Tensor, up: &'a Tensor, pass: Pass) -> Vec<Lora<'a>> {
    match pass {
        Pass::Forward | Pass::Backward => Vec::new(),
        Pass::Lora | Pass::LoraBackward => vec![Lora { down, up, scale: 1.0, gate: Gate::Scalar(1.0) }],
    }
}

/// Times `op` alone, or with the way back: to all of `inputs`, of which the last two may be a LoRA that is not there.
fn pass(
    gpu: &Gpu,
    pass: Pass,
    inputs: &[&Tensor],
    op: &dyn Fn(&Tape) -> strata_engine::Result<Tensor>,
) -> Result<Measured> {
    if matches!(pass, Pass::Forward | Pass::Lora) {
        let off = Tape::off();
        return measure(gpu, &|| Ok(op(&off).map(drop)?));
    }
    let grad_out = {
        let y = op(&Tape::off())?;
        tensor(gpu, y.shape(), y.dtype())?
    };
    // gradients of parameters are summed up in f32
    let sinks: Vec<Tensor> = match pass {
        Pass::LoraBackward => inputs[1..]
            .iter()
            .map(|t| Tensor::zeros(gpu, t.shape(), DType::F32))
            .collect::<strata_engine::Result<_>>()?,
        _ => Vec::new(),
    };
    measure(gpu, &|| {
        let tape = strata_kernels::tape();
        match pass {
            Pass::LoraBackward => {
                tape.track(inputs[0]);
                inputs[1..].iter().zip(&sinks).for_each(|(t, sink)| tape.track_into(t, sink));
            }
            _ => inputs.iter().for_each(|t| tape.track(t)),
        }
        let y = op(&tape)?;
        tape.backward(&y, grad_out.clone())?;
        Ok(())
    })
}

/// Values that are neither equal nor large.
pub fn tensor(gpu: &Gpu, shape: &[usize], dtype: DType) -> Result<Tensor> {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| ((i * 7919 % 1009) as f32 - 504.0) / 291.0).collect();
    Ok(Tensor::from_f32(gpu, &values, shape, dtype)?)
}
