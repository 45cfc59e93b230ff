//! How much GPU memory a run takes, measured on made-up data.

use serde::Serialize;
use strata_engine::{DType, Gpu, Tape, Tensor};
use strata_model::{Clip, Cx, LoraSet, Unet, Vae};

use crate::config::{FeatureConfig, Order};
use crate::data::cache::encode_picture;
use crate::features::silence::PROMPTS_AT_ONCE;
use crate::training::learner::{Batch, Learner};
use crate::training::plan::Plan;
use crate::training::run::{begin, storage_dtype};
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
    /// VAE and CLIP at most, which are gone before the U-Net is loaded.
    pub preparation: u64,
    /// The most that is alive at any time.
    pub peak: u64,
    /// Buffers that the pool holds at the end, in use or not: what the driver is asked for.
    pub held: u64,
}

/// Goes through what [`run`](crate::run) does on the GPU with zeros in place of pictures, captions and noise: the VAE on
/// two pictures, CLIP on one text, and one step of each feature that would be trained (of all, where none would). Nothing is
/// written. Probes between steps are left out.
///
/// # Errors
/// As [`run`](crate::run).
pub fn measure(gpu: &Gpu, config: &Config, only: Option<&str>) -> Result<Memory> {
    let (_, mut plans) = begin(config, only)?;
    if !plans.iter().any(|plan| plan.due) {
        plans.iter_mut().for_each(|plan| plan.due = true);
    }
    let measure = Measure { gpu, config, dtype: storage_dtype(gpu, config.train.dtype) };
    let before = gpu.stats().live_bytes;
    gpu.reset_peak();
    let sizes = measure.prepare(&plans)?;
    let preparation = gpu.stats().peak_bytes - before;

    let mut unet = Unet::open(gpu, &config.model.join("unet"), measure.dtype)?;
    unet.set_gradient_checkpointing(config.train.gradient_checkpointing);
    let mut weights = gpu.stats().live_bytes - before;
    let mut most = Memory {
        feature: String::new(),
        weights: 0,
        lora: 0,
        activations: 0,
        preparation,
        peak: preparation,
        held: 0,
    };
    for (i, plan) in plans.iter().enumerate().filter(|(_, plan)| plan.due) {
        let [lora, all] = measure.step(&mut unet, &plans, i, &sizes)?;
        unet.detach_all();
        // in a first step convolutions prepare their weights, and keep that
        let kept = gpu.stats().live_bytes - before - weights;
        weights += kept;
        let activations = all - lora - kept;
        if lora + activations > most.lora + most.activations {
            most = Memory { feature: plan.feature.name.clone(), lora, activations, ..most };
        }
    }
    let peak = most.peak.max(weights + most.lora + most.activations);
    Ok(Memory { weights, peak, held: gpu.stats().allocated_bytes, ..most })
}

struct Measure<'a> {
    gpu: &'a Gpu,
    config: &'a Config,
    dtype: DType,
}

/// What VAE and CLIP give.
struct Sizes {
    /// Height, width and channels of each plan's latents; of those that are not due nothing.
    latents: Vec<[usize; 3]>,
    /// Tokens and channels of a text's states.
    text: [usize; 2],
}

impl Measure<'_> {
    /// VAE and CLIP, as a run has them.
    fn prepare(&self, plans: &[Plan]) -> Result<Sizes> {
        let vae = Vae::open(self.gpu, &self.config.model.join("vae"), DType::F32)?;
        let latent = |plan: &Plan| {
            let resolution = plan.feature.dataset.resolution;
            let [height, width] = [resolution.height, resolution.width].map(|side| side as usize);
            match plan.due {
                true => {
                    let encode =
                        || encode_picture(self.gpu, &vae, &vec![0.0; height * width * 3], height, width);
                    // a second picture finds in memory what convolutions prepared for the first
                    encode().and_then(|_| encode()).map(|e| e.1)
                }
                false => Ok([0; 3]),
            }
        };
        let latents = plans.iter().map(latent).collect::<Result<_>>()?;
        // silence and probes read texts while the VAE is still there
        if plans.iter().any(|plan| plan.due && plan.feature.silence.is_some()) {
            self.read(PROMPTS_AT_ONCE)?;
        } else if self.config.train.probe_every > 0 {
            self.read(1)?;
        }
        drop(vae);
        Ok(Sizes { latents, text: self.read(1)? })
    }

    /// So many texts at once.
    fn read(&self, texts: usize) -> Result<[usize; 2]> {
        let clip = Clip::open(self.gpu, &self.config.model.join("text_encoder"), DType::F32)?;
        let tokens = clip.config().max_position_embeddings;
        let ids = Tensor::from_u32(self.gpu, &vec![0; texts * tokens], &[texts, tokens])?;
        let hidden = clip.forward(&Cx::new(&Tape::off()), &ids, 0)?;
        hidden.to_f32()?;
        Ok([tokens, hidden.last()])
    }

    /// What a step of feature number `i` has beside the U-Net: its LoRAs, and all at most.
    fn step(&self, unet: &mut Unet, plans: &[Plan], i: usize, sizes: &Sizes) -> Result<[u64; 2]> {
        let alive = self.gpu.stats().live_bytes;
        let plan = &plans[i];
        let attached: Vec<&Plan> = match self.config.order {
            Order::Staged if plan.feature.with_frozen => plans[..=i].iter().collect(),
            Order::Staged => vec![plan],
            Order::Joint => plans.iter().filter(|plan| plan.due).collect(),
        };
        let fresh = |plan: &&Plan| LoraSet::init(self.gpu, self.dtype, &plan.matches, |_, _, _| ());
        let sets = attached.iter().map(fresh).collect::<Result<Vec<_>, _>>()?;
        for set in &sets {
            unet.attach(set)?;
        }
        let own = attached.iter().position(|a| a.feature.name == plan.feature.name).unwrap_or(0);
        // side by side each set has a learner, one after the other the last
        let learns = |number: &usize| self.config.order == Order::Joint || *number == own;
        let learners = (0..sets.len()).filter(learns);
        let learners = learners.map(|n| Learner::new(&sets[n], n, self.dtype, &self.config.train));
        let mut learners = learners.collect::<Result<Vec<_>>>()?;
        let lora = self.gpu.stats().live_bytes - alive;

        let mut batch = self.batch(&plan.feature, sizes.latents[i], sizes.text, sets.len(), own);
        self.gpu.reset_peak();
        let Some(learner) = learners.iter_mut().find(|learner| learner.feature() == own) else {
            return Ok([lora, lora]);
        };
        learner.teach(unet, &mut batch)?;
        learner.backward(unet, &batch)?;
        learner.update(1.0)?;
        Ok([lora, self.gpu.stats().peak_bytes - alive])
    }

    /// Zeros, of the size of a batch of the feature. Earlier features are on, as where a prompt has all tags; those beside
    /// it are off.
    fn batch(
        &self,
        feature: &FeatureConfig,
        [height, width, channels]: [usize; 3],
        [tokens, text_channels]: [usize; 2],
        sets: usize,
        own: usize,
    ) -> Batch {
        let learned = self.config.train.batch_size as usize;
        let preserved = feature.preserve.as_ref().map_or(0, |p| p.samples(learned));
        let samples = learned + preserved;
        let latent_shape = [samples, height, width, channels];
        let context_shape = [samples, tokens, text_channels];
        let zeros = |shape: &[usize]| vec![0.0; shape.iter().product()];
        let gate = |i| if i == own || self.config.order == Order::Staged { 1.0 } else { 0.0 };
        Batch {
            latent_shape,
            noisy: zeros(&latent_shape),
            target: zeros(&latent_shape),
            timesteps: vec![500.0; samples],
            context_shape,
            context: zeros(&context_shape),
            weights: vec![1.0; samples],
            preserved,
            gates: (0..sets).map(|i| vec![gate(i); samples]).collect(),
        }
    }
}
