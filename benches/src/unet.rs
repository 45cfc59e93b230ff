//! Whole steps of a U-Net.

use std::path::Path;
use std::time::Instant;

use strata_engine::{DType, Gpu, Tape, Tensor};
use strata_kernels::{AdamW, adamw, grad_norm, mse};
use strata_model::{Cx, Gates, LoraSet, Rule, Selection, Unet};

pub fn run(
    gpu: &Gpu,
    dtype: DType,
    folder: &Path,
    side: usize,
    batch: usize,
    rank: usize,
) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut unet = Unet::open(gpu, folder, dtype)?;
    gpu.wait()?;
    report(gpu, "load", start, None);

    let (channels, context) = (unet.config().in_channels, unet.config().cross_attention_dim);
    let sample = tensor(gpu, &[batch, side, side, channels], dtype)?;
    let target = tensor(gpu, &[batch, side, side, unet.config().out_channels], DType::F32)?;
    let context = tensor(gpu, &[batch, 77, context], dtype)?;
    let timesteps: Vec<f32> = (0..batch).map(|b| 500.0 + b as f32).collect();
    for name in ["forward, first", "forward"] {
        let (start, flops) = (Instant::now(), gpu.stats().flops);
        let tape = Tape::off();
        let y = unet.forward(&Cx::new(&tape), &sample, &timesteps, &context)?;
        finite(&y)?;
        report(gpu, name, start, Some(flops));
    }

    let rule = Rule { select: "attn".into(), rank, alpha: rank as f32, lr: None };
    let matches = Selection::new(&[rule])?.resolve(unet.layers())?;
    let set = LoraSet::init(gpu, dtype, &matches, |_, fan_in, down| {
        down.iter_mut()
            .enumerate()
            .for_each(|(i, v)| *v = ((i * 37 % 101) as f32 / 50.0 - 1.0) / (fan_in as f32).sqrt());
    })?;
    unet.attach(&set)?;
    let zeros = || Tensor::zeros(gpu, set.params().shape(), DType::F32);
    let (grads, exp_avg, exp_avg_sq) = (zeros()?, zeros()?, zeros()?);
    let weights = Tensor::from_f32(gpu, &vec![1.0; batch], &[batch], DType::F32)?;
    let loss_scale = 1024.0;
    gpu.reset_peak();
    for step in 1..=2 {
        let (start, flops, launches) = (Instant::now(), gpu.stats().flops, gpu.stats().launches);
        grads.fill_zero();
        let tape = strata_kernels::tape();
        set.track(&tape, &grads)?;
        let gates = Gates::scalars(&[1.0]);
        let cx = Cx { gates: &gates, ..Cx::new(&tape) };
        let pred = unet.forward(&cx, &sample, &timesteps, &context)?;
        let loss = mse(&tape, &pred, &target, &weights)?;
        let records = tape.len();
        tape.backward(&loss, Tensor::from_f32(gpu, &[loss_scale], &[1], DType::F32)?)?;
        let norm = grad_norm(&grads)?;
        let args = AdamW {
            lr: 1e-4,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            step,
            grad_scale: 1.0 / loss_scale,
            max_norm: 1.0,
        };
        adamw(set.params(), &exp_avg, &exp_avg_sq, &grads, &norm, set.shadow(), &args)?;
        gpu.flush();
        // must stay below the step's time, or the CPU holds the GPU up; where they are one, it says nothing
        let encoded = match gpu.caps().cpu {
            true => String::new(),
            false => format!(" encoded in {:.3} s", start.elapsed().as_secs_f64()),
        };
        let launches = gpu.stats().launches - launches;
        println!(
            "loss {:.6}, gradient norm {:.6}, {records} records, {launches} launches{encoded}",
            finite(&loss)?,
            finite(&norm)? / loss_scale
        );
        report(gpu, if step == 1 { "training step, first" } else { "training step" }, start, Some(flops));
    }
    Ok(())
}

/// The first value, once all are known to be finite.
fn finite(t: &Tensor) -> anyhow::Result<f32> {
    let values = t.to_f32()?;
    anyhow::ensure!(values.iter().all(|v| v.is_finite()), "{t:?} holds a value that is not finite");
    Ok(values[0])
}

fn tensor(gpu: &Gpu, shape: &[usize], dtype: DType) -> anyhow::Result<Tensor> {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| ((i * 7919 % 1009) as f32 - 504.0) / 291.0).collect();
    Ok(Tensor::from_f32(gpu, &values, shape, dtype)?)
}

fn report(gpu: &Gpu, name: &str, start: Instant, flops_before: Option<u64>) {
    let (seconds, stats) = (start.elapsed().as_secs_f64(), gpu.stats());
    let flops = flops_before.map_or(0, |before| stats.flops - before);
    let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
    println!(
        "{name:22} {seconds:8.2} s  {:8.1} GFLOP  {:7.1} GFLOP/s  tensors now {:7.0} MiB, peak {:7.0} MiB, process peak {:7.0} MiB",
        flops as f64 / 1e9,
        flops as f64 / seconds / 1e9,
        mib(stats.live_bytes),
        mib(stats.peak_bytes),
        process_peak_mib(),
    );
}

/// Largest resident size of this process, where the system tells (Linux).
fn process_peak_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kib.map_or(f64::NAN, |kib| kib / 1024.0)
}
