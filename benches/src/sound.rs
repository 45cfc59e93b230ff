//! Whether training in f16 is sound at full size: a LoRA on a U-Net of Stable Diffusion 1.5's size with random weights.

use anyhow::{Result, ensure};
use strata_engine::{DType, Gpu};
use strata_model::{LoraSet, Rule, Selection, Unet, UnetConfig};
use strata_trainer::noise::{Stream, normal, uniform_timestep};
use strata_trainer::{Batch, Learner, TrainConfig};

const SEED: u64 = 0;
const TEXT: [usize; 2] = [77, 768];

/// Trains on fresh noise in every step and prints loss, gradient norm and loss scale of each.
///
/// # Errors
/// A loss is not finite, the loss scale cannot be lowered any more, more than half of the last fifty updates were skipped,
/// or the GPU fails.
pub fn run(gpu: &Gpu, steps: u64, latent: usize, rank: usize) -> Result<()> {
    let mut unet = Unet::random(gpu, &UnetConfig::sd15(), DType::F16, SEED)?;
    let rule = Rule { select: "attn".into(), rank, alpha: rank as f32, lr: None };
    let matches = Selection::new(&[rule])?.resolve(unet.layers())?;
    let mut layer = 0;
    let set = LoraSet::init(gpu, DType::F16, &matches, |_, fan_in, down| {
        normal(SEED, Stream::Init, 0, layer, down);
        down.iter_mut().for_each(|v| *v /= (fan_in as f32).sqrt());
        layer += 1;
    })?;
    let feature = unet.attach(&set)?;
    let mut learner = Learner::new(&set, feature, DType::F16, &TrainConfig::default())?;
    let mut skipped = Vec::new();
    for step in 0..steps {
        let batch = batch(step, latent);
        let scale = learner.loss_scale().value();
        let loss = learner.backward(&unet, &batch)?.total.to_f32()?[0];
        let update = learner.update(1.0)?;
        println!(
            "step {step:4}  loss {loss:.5}  gradient norm {:.3e}  loss scale {scale}{}",
            update.grad_norm,
            if update.skipped { "  skipped" } else { "" }
        );
        ensure!(loss.is_finite(), "the loss of step {step} is {loss}");
        ensure!(!update.hopeless, "step {step}: the loss scale cannot be lowered any more");
        skipped.push(update.skipped);
    }
    let last = &skipped[skipped.len().saturating_sub(50)..];
    let count = |skipped: &[bool]| skipped.iter().filter(|s| **s).count();
    println!("skipped {} of {steps} updates, {} of the last {}", count(&skipped), count(last), last.len());
    ensure!(2 * count(last) <= last.len(), "the loss scale has not settled");
    Ok(())
}

/// One sample: a latent, its text and the noise to predict, all normal numbers, at a timestep of its own.
fn batch(step: u64, latent: usize) -> Batch {
    let draw = |stream, count: usize| {
        let mut values = vec![0.0; count];
        normal(SEED, stream, step, 0, &mut values);
        values
    };
    let count = latent * latent * 4;
    let (clean, noise) = (draw(Stream::Latent, count), draw(Stream::Noise, count));
    let t = uniform_timestep(SEED, step, 0, 0, 1000) as f32;
    // as much noise as a cosine schedule has at t
    let (share, signal) = (t / 1000.0 * std::f32::consts::FRAC_PI_2).sin_cos();
    Batch {
        latent_shape: [1, latent, latent, 4],
        noisy: clean.iter().zip(&noise).map(|(x, n)| signal * x + share * n).collect(),
        target: noise,
        timesteps: vec![t],
        context_shape: [1, TEXT[0], TEXT[1]],
        context: draw(Stream::Preserve, TEXT[0] * TEXT[1]),
        weights: vec![1.0],
        preserved: 0,
        gates: Vec::new(),
    }
}
