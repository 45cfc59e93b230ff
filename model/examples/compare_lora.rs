//! Holds Strata to what diffusers predicts with a LoRA file.
//!
//!     cargo run --release -p strata-model --example compare_lora -- PIPELINE LORA.safetensors PREDICTIONS.safetensors
//!
//! PREDICTIONS holds, as diffusers has them (N C H W, f32): `sample`, `timesteps` (i64), `context`, and what its U-Net says
//! about them, `pred_base` without and `pred_lora` with the LoRA. Prints the relative L2 error of each; fails above 1e-4.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use safetensors::SafeTensors;
use strata_engine::{DType, Gpu, GpuOptions, Tape, Tensor};
use strata_model::{Checkpoint, Conditioning, Cx, Gates, LoraSet, LoraWeights, TensorFile, UnetInput};

/// Relative L2 error that two programs in f32 may have.
const TOLERANCE: f64 = 1e-4;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [pipeline, lora, predictions] = &arguments[..] else {
        bail!("usage: compare_lora PIPELINE LORA.safetensors PREDICTIONS.safetensors");
    };
    let mut file = TensorFile::open(Path::new(predictions))?;
    let gpu = Gpu::open(&GpuOptions::default())?;
    let mut unet = Checkpoint::open(Path::new(pipeline))?.unet(&gpu, DType::F32)?;
    let set = LoraSet::from_weights(&gpu, DType::F32, &LoraWeights::read(Path::new(lora))?, &unet)?;

    let sample = nhwc(&mut file, "sample")?;
    let sample = Tensor::from_f32(&gpu, &sample.0, &sample.1, DType::F32)?;
    let bytes = std::fs::read(predictions)?;
    let (whole, _) = SafeTensors::deserialize(&bytes)?.tensor("timesteps")?.data().as_chunks();
    let timesteps: Vec<f32> = whole.iter().map(|t| i64::from_le_bytes(*t) as f32).collect();
    let shape = file.tensors().get("context").context("no `context`")?.shape.clone();
    let conditioning = Conditioning::upload(&gpu, &file.read("context")?, &shape, DType::F32)?;
    let input = UnetInput { sample: &sample, timesteps: &timesteps, conditioning: &conditioning };
    let tape = Tape::off();
    for (name, attached) in [("pred_base", false), ("pred_lora", true)] {
        if attached {
            unet.attach(&set)?;
        }
        let gates = Gates::scalars(if attached { &[1.0] } else { &[] });
        let cx = Cx { gates: &gates, ..Cx::new(&tape) };
        let own = unet.forward(&cx, &input)?.to_f32()?;
        let (theirs, _) = nhwc(&mut file, name)?;
        let square = |v: f64| v * v;
        let difference: f64 = own.iter().zip(&theirs).map(|(a, b)| square(f64::from(a - b))).sum();
        let error = (difference / theirs.iter().map(|b| square(f64::from(*b))).sum::<f64>()).sqrt();
        println!("{name}: {error:.1e}");
        ensure!(error <= TOLERANCE, "{name} is off by {error:.1e}, more than {TOLERANCE:.0e}");
    }
    Ok(())
}

/// Values and shape of an image tensor, channels last.
fn nhwc(file: &mut TensorFile, name: &str) -> Result<(Vec<f32>, [usize; 4])> {
    let shape = file.tensors().get(name).with_context(|| format!("no `{name}`"))?.shape.clone();
    let &[n, c, h, w] = &shape[..] else { bail!("`{name}` is {shape:?}, not an image") };
    let values = file.read(name)?;
    let at = |i: usize| values[((i / (h * w * c) * c + i % c) * h + i / c / w % h) * w + i / c % w];
    Ok(((0..values.len()).map(at).collect(), [n, h, w, c]))
}
