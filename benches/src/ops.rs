//! Single kernels.

use std::time::{Duration, Instant};

use strata_engine::{DType, Gpu, Result, Tape, Tensor};
use strata_kernels::{
    AttentionArgs, ConvArgs, Gate, GroupNormArgs, LinearArgs, Lora, Rows, attention, conv2d, geglu,
    group_norm, layer_norm, linear, project,
};

/// A batch of launches lasts at least this long, so that the wait at its end does not count.
const BATCH: Duration = Duration::from_millis(200);

pub fn run(gpu: &Gpu, dtype: DType, filter: &str) -> anyhow::Result<()> {
    println!("{:44} {:>10} {:>9} {:>9}", "kernel", "ms", "spread %", "GFLOP/s");
    let row = |name: String, op: &dyn Fn(&Tape) -> Result<Tensor>| -> Result<()> {
        if name.contains(filter) { time(gpu, &name, op) } else { Ok(()) }
    };
    for [m, n, k] in
        [[1024, 1024, 1024], [1024, 320, 320], [1024, 2560, 320], [256, 1280, 1280], [77, 320, 768]]
    {
        let (x, w) = (tensor(gpu, &[m, k], dtype)?, tensor(gpu, &[n, k], dtype)?);
        row(format!("linear {m}×{n}×{k}"), &|tape| linear(tape, &x, &w, &LinearArgs::default()))?;
        let (down, up) = (tensor(gpu, &[8, k], dtype)?, tensor(gpu, &[n, 8], dtype)?);
        let loras = [Lora { down: &down, up: &up, scale: 1.0, gate: Gate::Scalar(1.0) }];
        let args = LinearArgs { loras: &loras, ..Default::default() };
        row(format!("linear + LoRA 8 {m}×{n}×{k}"), &|tape| linear(tape, &x, &w, &args))?;
        let dy = tensor(gpu, &[m, n], dtype)?;
        row(format!("linear backward {m}×{n}×{k}"), &|_| {
            let tape = strata_kernels::tape();
            tape.track(&x);
            let y = linear(&tape, &x, &w, &LinearArgs::default())?;
            tape.backward(&y, dy.clone())?;
            Ok(y)
        })?;
    }
    for [side, c, o] in [[32, 320, 320], [16, 640, 640], [8, 1280, 1280], [32, 4, 320], [32, 320, 4]] {
        let (x, w) = (tensor(gpu, &[1, side, side, c], dtype)?, tensor(gpu, &[o, 3, 3, c], dtype)?);
        row(format!("conv 3×3 {side}×{side} {c} to {o}"), &|tape| {
            conv2d(tape, &x, &w, &ConvArgs::default())
        })?;
        let (down, up) = (tensor(gpu, &[8, 3, 3, c], dtype)?, tensor(gpu, &[o, 8], dtype)?);
        let loras = [Lora { down: &down, up: &up, scale: 1.0, gate: Gate::Scalar(1.0) }];
        let (args, dy) =
            (ConvArgs { loras: &loras, ..Default::default() }, tensor(gpu, &[1, side, side, o], dtype)?);
        row(format!("conv 3×3 + LoRA 8 {side}×{side} {c} to {o}"), &|tape| conv2d(tape, &x, &w, &args))?;
        for (name, args) in [("", &ConvArgs::default()), (" + LoRA 8", &args)] {
            row(format!("conv 3×3{name} backward {side}×{side} {c} to {o}"), &|_| {
                let tape = strata_kernels::tape();
                [&x, &down, &up].into_iter().for_each(|t| tape.track(t));
                let y = conv2d(&tape, &x, &w, args)?;
                tape.backward(&y, dy.clone())?;
                Ok(y)
            })?;
        }
    }
    for [tokens, keys, c] in [[1024, 1024, 320], [256, 256, 640], [1024, 77, 320]] {
        let (q, k) = (tensor(gpu, &[1, tokens, c], dtype)?, tensor(gpu, &[1, keys, c], dtype)?);
        let args = AttentionArgs { heads: 8, causal: false };
        row(format!("attention {tokens}×{keys}, 8 heads of {}", c / 8), &|tape| {
            attention(tape, &q, &k, &k, &args)
        })?;
    }
    let x = tensor(gpu, &[1, 32, 32, 320], dtype)?;
    let affine = tensor(gpu, &[320], DType::F32)?;
    let args = GroupNormArgs { groups: 32, eps: 1e-5, silu: true, add: None, out: None };
    row("group norm + SiLU 32×32×320".into(), &|tape| group_norm(tape, &x, &affine, &affine, &args))?;
    row("layer norm 1024×320".into(), &|tape| layer_norm(tape, &x, &affine, &affine, 1e-5, x.dtype()))?;
    let x = tensor(gpu, &[1024, 2560], dtype)?;
    row("GEGLU 1024×1280".into(), &|tape| geglu(tape, &x))?;
    // the LoRAs of rank 16 on what reads the text in 16 blocks
    let (down, all) = (tensor(gpu, &[512, 768], DType::F32)?, 0..512 * 768);
    let rows = Rows::new(gpu, &[all], 768)?;
    for k in [33, 129] {
        let axes: Vec<f32> = (0..k * 768).map(|i| if i % 769 == 0 { 1.0 } else { 0.0 }).collect();
        let basis = Tensor::from_f32(gpu, &axes, &[k, 768], DType::F32)?;
        row(format!("project 512×768 off {k}"), &|_| {
            project(&down, &rows, &basis, None)?;
            Ok(down.clone())
        })?;
    }
    Ok(())
}

/// Values that are neither equal nor large.
fn tensor(gpu: &Gpu, shape: &[usize], dtype: DType) -> Result<Tensor> {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
    Tensor::from_f32(gpu, &values, shape, dtype)
}

fn time(gpu: &Gpu, name: &str, op: &dyn Fn(&Tape) -> Result<Tensor>) -> Result<()> {
    let tape = Tape::off();
    let batch = |count: u32| -> Result<Duration> {
        gpu.wait()?;
        let start = Instant::now();
        for _ in 0..count {
            op(&tape)?;
        }
        gpu.wait()?;
        Ok(start.elapsed() / count)
    };
    let before = gpu.stats().flops;
    let once = batch(1)?.min(batch(1)?);
    let flops = (gpu.stats().flops - before) / 2;
    let count = (BATCH.as_secs_f64() / once.as_secs_f64()).ceil().clamp(1.0, 1000.0) as u32;
    let mut times = (0..5).map(|_| Ok(batch(count)?.as_secs_f64())).collect::<Result<Vec<f64>>>()?;
    times.sort_by(f64::total_cmp);
    let median = times[2];
    let spread = 100.0 * (times[4] - times[0]) / median;
    println!("{name:44} {:10.3} {spread:9.1} {:9.1}", median * 1e3, flops as f64 / median / 1e9);
    Ok(())
}
