//! How much GPU memory a run takes, measured on made-up data.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use strata_engine::{DType, Gpu};
use strata_model::{Reading, TextEncoder};

use crate::data::latents::{Latents, encode_picture};
use crate::data::texts::Texts;
use crate::features::silence::PROMPTS_AT_ONCE;
use crate::training::materials::{Material, Materials};
use crate::training::plan::Plan;
use crate::training::run::Run;
use crate::{Config, Result};

/// Bytes of GPU memory, as the engine's pool gives them out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Memory {
    /// The feature of which a step takes most; empty in a run without features.
    pub feature: String,
    /// The U-Net, with what its layers keep beside their weights.
    pub weights: u64,
    /// Parameters of all attached LoRAs (in f16 runs twice), and gradients and moments of those that learn.
    pub lora: u64,
    /// What a step has beside these at most: activations, their gradients, and work buffers.
    pub activations: u64,
    /// VAE and text encoder at most, which are gone before the U-Net is loaded.
    pub preparation: u64,
    /// The most that is alive at any time.
    pub peak: u64,
    /// The most that the driver is asked for at any time: buffers in use, and free ones that wait for their next use.
    pub held: u64,
}

/// Goes through what [`run`](crate::run) does on the GPU with zeros in place of pictures, captions and noise: the VAE on
/// two pictures, the text encoder on one text, and one step of each feature that would be trained (of all, where none
/// would). Nothing is written. Probes between steps are left out,
/// and the search for keys.
///
/// # Errors
/// As [`run`](crate::run).
pub fn measure(gpu: &Gpu, config: &Config, only: Option<&str>) -> Result<Memory> {
    let mut run = Run::open(gpu, config, only)?;
    if !run.plans.iter().any(|plan| plan.due) {
        run.plans.iter_mut().for_each(|plan| plan.due = true);
    }
    let before = gpu.stats().live_bytes;
    gpu.reset_peak();
    let materials = blank(&run)?;
    let preparation = gpu.stats().peak_bytes - before;
    let prepared = gpu.stats().allocated_bytes;
    gpu.trim()?;

    let mut unet = run.unet()?;
    let mut most = Memory {
        feature: String::new(),
        weights: gpu.stats().live_bytes - before,
        lora: 0,
        activations: 0,
        preparation,
        peak: 0,
        held: 0,
    };
    for class in run.classes() {
        let alone = gpu.stats().live_bytes;
        let mut pupils = run.attach(&class, &materials, &mut unet)?;
        for pupil in &mut pupils {
            let attached = gpu.stats().live_bytes;
            gpu.reset_peak();
            pupil.try_step(&unet)?;
            // in a first step convolutions prepare their weights, and keep that
            let kept = gpu.stats().live_bytes - attached;
            most.weights += kept;
            let (lora, activations) = (attached - alone, gpu.stats().peak_bytes - attached - kept);
            if lora + activations > most.lora + most.activations {
                most = Memory { feature: pupil.name().to_owned(), lora, activations, ..most };
            }
        }
        drop(pupils);
        unet.detach_all();
    }
    let peak = preparation.max(most.weights + most.lora + most.activations);
    Ok(Memory { peak, held: prepared.max(gpu.stats().allocated_bytes), ..most })
}

/// Zeros of the sizes that the run's latents and texts have: of each feature its first picture, and what is said of it.
fn blank(run: &Run<'_>) -> Result<Materials> {
    let text = run.checkpoint.text_encoder(run.gpu, DType::F32)?;
    let vae = run.checkpoint.vae(run.gpu, DType::F32)?;
    let (mut wanted, mut features) = (BTreeSet::new(), BTreeMap::new());
    for i in run.classes().into_iter().flatten() {
        let plan = &run.plans[i];
        let size = plan.feature.dataset.resolution;
        let [height, width] = [size.height, size.width].map(|side| side as usize);
        let zeros = vec![0.0; height * width * 3];
        // a second picture finds in memory what convolutions prepared for the first
        encode_picture(run.gpu, &vae, &zeros, height, width)?;
        let (posterior, shape) = encode_picture(run.gpu, &vae, &zeros, height, width)?;
        wanted.extend(plan.texts());
        features.insert(
            i,
            Material { latents: Latents::new(vec![posterior], shape, 1.0), basis: None, script: None },
        );
    }
    // silence reads several at once while the VAE is still there
    let reads = |plan: &Plan| plan.feature.silence.is_some() || plan.feature.key.on().is_some();
    let silent = run.plans.iter().any(|plan| plan.due && reads(plan));
    let shape = read(&text, if silent { PROMPTS_AT_ONCE } else { 1 })?;
    let tags = run.tags();
    let zeros = |caption: &String| -> Result<(String, Vec<f32>)> {
        let chunks = text.read(&[caption], Reading::Literal, &tags)?[0].chunks();
        Ok((caption.clone(), vec![0.0; chunks * shape[0] * shape[1]]))
    };
    let states = wanted.iter().map(zeros).collect::<Result<_>>()?;
    Ok(Materials { texts: Texts::new(states, vec![0.0; shape[0] * shape[1]], shape), features, blank: true })
}

/// So many texts at once: tokens and channels of the states.
fn read(text: &TextEncoder, texts: usize) -> Result<[usize; 2]> {
    let states = text.encode(&text.read(&vec![""; texts], Reading::Literal, &[])?, 0)?.states;
    states.to_f32()?;
    Ok([states.rows() / texts, states.last()])
}
