//! A case on the GPU.

use anyhow::Result;
use strata_engine::{DType, Gpu, Tape, Tensor};
use strata_kernels::{
    AttentionArgs, ConvArgs, Gate, GroupNormArgs, LinearArgs, Lora, Weight, attention, conv2d, geglu,
    group_norm, layer_norm, linear,
};

use crate::case::{Case, Op, Pass, RANK};
use crate::clock::Work;

/// A case, ready to be run.
pub fn work(gpu: &Gpu, dtype: DType, case: &Case) -> Result<Work<'static>> {
    let tensor = |shape: &[usize], dtype| tensor(gpu, shape, dtype);
    let pass = case.pass;
    match case.op {
        Op::Linear { m, n, k } => {
            let (x, w) = (tensor(&[m, k], dtype)?, Weight::new(tensor(&[n, k], dtype)?)?);
            let (down, up) = (tensor(&[RANK, k], dtype)?, tensor(&[n, RANK], dtype)?);
            prepare(pass, [x, down, up], move |tape, [x, down, up]| {
                let loras = lora(down, up, pass);
                linear(tape, x, &w, &LinearArgs { loras: &loras, ..Default::default() })
            })
        }
        Op::Conv { batch, side, inputs, outputs } => {
            let x = tensor(&[batch, side, side, inputs], dtype)?;
            let w = Weight::new(tensor(&[outputs, 3, 3, inputs], dtype)?)?;
            let (down, up) = (tensor(&[RANK, 3, 3, inputs], dtype)?, tensor(&[outputs, RANK], dtype)?);
            prepare(pass, [x, down, up], move |tape, [x, down, up]| {
                let loras = lora(down, up, pass);
                conv2d(tape, x, &w, &ConvArgs { loras: &loras, ..Default::default() })
            })
        }
        Op::Attention { batch, queries, keys, heads, dim } => {
            let of = |tokens| tensor(&[batch, tokens, heads * dim], dtype);
            let args = AttentionArgs { heads, causal: false };
            prepare(pass, [of(queries)?, of(keys)?, of(keys)?], move |tape, [q, k, v]| {
                attention(tape, q, k, v, &args)
            })
        }
        Op::GroupNorm { batch, side, channels, groups } => {
            let x = tensor(&[batch, side, side, channels], dtype)?;
            let affine = tensor(&[channels], DType::F32)?;
            let args = GroupNormArgs { groups, eps: 1e-5, silu: true, add: None, out: None };
            prepare(pass, [x], move |tape, [x]| group_norm(tape, x, &affine, &affine, &args))
        }
        Op::LayerNorm { rows, channels } => {
            let x = tensor(&[rows, channels], dtype)?;
            let affine = tensor(&[channels], DType::F32)?;
            prepare(pass, [x], move |tape, [x]| layer_norm(tape, x, &affine, &affine, 1e-5, dtype))
        }
        Op::Geglu { rows, channels } => {
            prepare(pass, [tensor(&[rows, 2 * channels], dtype)?], |tape, [x]| geglu(tape, x))
        }
    }
}

fn lora<'a>(down: &'a Tensor, up: &'a Tensor, pass: Pass) -> Vec<Lora<'a>> {
    match pass {
        Pass::Forward | Pass::Backward => Vec::new(),
        Pass::Lora | Pass::LoraBackward => vec![Lora { down, up, scale: 1.0, gate: Gate::Scalar(1.0) }],
    }
}

/// `op` alone, or with the way back: to all of `inputs`, of which those after the first may be a LoRA.
fn prepare<const N: usize>(
    pass: Pass,
    inputs: [Tensor; N],
    op: impl Fn(&Tape, &[Tensor; N]) -> strata_engine::Result<Tensor> + 'static,
) -> Result<Work<'static>> {
    if matches!(pass, Pass::Forward | Pass::Lora) {
        return Ok(Box::new(move || Ok(op(&Tape::off(), &inputs).map(drop)?)));
    }
    let gpu = inputs[0].gpu();
    let grad_out = {
        let y = op(&Tape::off(), &inputs)?;
        tensor(gpu, y.shape(), y.dtype())?
    };
    // gradients of parameters are summed up in f32
    let parameters = if pass == Pass::LoraBackward { &inputs[1..] } else { &[] };
    let sink = |t: &Tensor| Tensor::zeros(gpu, t.shape(), DType::F32);
    let sinks = parameters.iter().map(sink).collect::<strata_engine::Result<Vec<_>>>()?;
    Ok(Box::new(move || {
        let tape = strata_kernels::tape();
        let (free, parameters) = inputs.split_at(N - sinks.len());
        free.iter().for_each(|t| tape.track(t));
        parameters.iter().zip(&sinks).for_each(|(t, sink)| tape.track_into(t, sink));
        let y = op(&tape, &inputs)?;
        tape.backward(&y, grad_out.clone())?;
        Ok(())
    }))
}

/// Values that are neither equal nor large.
pub fn tensor(gpu: &Gpu, shape: &[usize], dtype: DType) -> Result<Tensor> {
    Ok(Tensor::from_f32(gpu, &values(shape.iter().product()), shape, dtype)?)
}

/// The same on the host.
pub fn values(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 % 1009) as f32 - 504.0) / 291.0).collect()
}
