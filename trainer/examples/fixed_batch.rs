//! Trains a LoRA on one fixed batch and prints the loss of every step: Strata's side of the picture in the README.
//! `tools/fixed_batch.py` makes the batch and the LoRA, trains the same with PyTorch, and draws both lines.
//!
//!     fixed_batch UNET_FOLDER BATCH.safetensors LORA.safetensors STEPS

use std::path::Path;

use strata_engine::{DType, Gpu, GpuOptions};
use strata_model::{Checkpoint, LoraSet, LoraWeights, ModelOptions, TensorFile};
use strata_trainer::{Batch, Learner, TrainConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, unet, batch, lora, steps] = &args[..] else {
        return Err("usage: fixed_batch UNET_FOLDER BATCH.safetensors LORA.safetensors STEPS".into());
    };
    let gpu = Gpu::open(&GpuOptions::default())?;
    let mut unet =
        Checkpoint::open_unet(Path::new(unet), &ModelOptions::default())?.unet(&gpu, DType::F32)?;
    let lora = LoraSet::from_weights(&gpu, DType::F32, &LoraWeights::read(Path::new(lora))?, &unet)?;
    unet.attach(&lora)?;

    // noisy and target are [B, H, W, C] there
    let mut file = TensorFile::open(Path::new(batch))?;
    let axes = |name: &str| file.tensors()[name].shape.clone();
    let (latent, context) = (axes("noisy"), axes("context"));
    let batch = Batch {
        latent_shape: latent[..].try_into()?,
        context_shape: context[..].try_into()?,
        noisy: file.read("noisy")?,
        target: file.read("target")?,
        timesteps: file.read("timesteps")?,
        context: file.read("context")?,
        weights: vec![1.0; latent[0]],
        ..Batch::default()
    };
    let train = TrainConfig { lr: 5e-3, ..TrainConfig::default() };
    let mut learner = Learner::new(&lora, 0, DType::F32, &train)?;
    for _ in 0..steps.parse()? {
        let loss = learner.backward(&unet, &batch)?.total;
        learner.update(1.0)?;
        println!("{}", loss.to_f32()?[0]);
    }
    Ok(())
}
