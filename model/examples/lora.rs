//! A LoRA attached to a frozen U-Net and trained for ten steps on one batch.
//!
//!     cargo run -p strata-model --example lora -- demo/model

use std::path::Path;

use strata_engine::{DType, Gpu, GpuOptions, Tensor};
use strata_kernels::{AdamW, adamw, grad_norm, mse, tape};
use strata_model::{Checkpoint, Cx, Gates, LoraSet, Reading, Rule, Selection, UnetInput, noise};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| "demo/model".into());
    let gpu = Gpu::open(&GpuOptions::default())?;
    let model = Checkpoint::open(Path::new(&folder))?;

    // what the U-Net is told of the picture
    let text = model.text_encoder(&gpu, DType::F32)?;
    let conditioning = text.encode(&text.read(&["a portrait of a man"], Reading::Literal, &[])?, 0)?;

    // a LoRA of rank 4 in cross-attention: `down` random, `up` 0, so that it starts as the base model
    let mut unet = model.unet(&gpu, DType::F32)?;
    let rule = Rule { select: "cross-attn".into(), rank: 4, alpha: 4.0, lr: None };
    let layers = Selection::new(&[rule])?.resolve(unet.layers())?;
    let lora = LoraSet::init(&gpu, DType::F32, &layers, |path, inputs, down| {
        noise::normal(0, noise::Stream::Init, 0, noise::fnv1a(path), down);
        down.iter_mut().for_each(|value| *value /= (inputs as f32).sqrt());
    })?;
    unet.attach(&lora)?;

    // one batch: noise is what the U-Net sees and what it should say
    let shape = [1, 16, 16, unet.config().in_channels];
    let mut values = vec![0.0; shape.iter().product()];
    noise::normal(0, noise::Stream::Noise, 0, 0, &mut values);
    let sample = Tensor::from_f32(&gpu, &values, &shape, DType::F32)?;
    let weight = Tensor::from_f32(&gpu, &[1.0], &[1], DType::F32)?;
    let (one, gates) = (weight.clone(), Gates::scalars(&[1.0]));

    let zeros = || Tensor::zeros(&gpu, lora.params().shape(), DType::F32);
    let (exp_avg, exp_avg_sq) = (zeros()?, zeros()?);
    for step in 1..=10 {
        let (tape, grads) = (tape(), zeros()?);
        lora.track(&tape, &grads)?;
        let input = UnetInput { sample: &sample, timesteps: &[500.0], conditioning: &conditioning };
        let said = unet.forward(&Cx { gates: &gates, ..Cx::new(&tape) }, &input)?;
        let loss = mse(&tape, &said, &sample, &weight)?;
        tape.backward(&loss, one.clone())?;
        let update = AdamW {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            step,
            grad_scale: 1.0,
            max_norm: 1.0,
        };
        adamw(lora.params(), &exp_avg, &exp_avg_sq, &grads, &grad_norm(&grads)?, lora.shadow(), &update)?;
        println!("step {step}: loss {:.4}", loss.to_f32()?[0]);
    }
    Ok(())
}
