//! Whole steps: U-Net, VAE and CLIP of Stable Diffusion 1.5 with random weights.

use anyhow::Result;
use strata_engine::{DType, Gpu, Tape, Tensor};
use strata_kernels::{AdamW, adamw, grad_norm, mse};
use strata_model::{
    Clip, ClipConfig, Conditioning, Cx, Gates, LoraSet, Rule, Selection, Unet, UnetConfig, UnetInput, Vae,
    VaeConfig,
};

use crate::case::{RANK, TEXT};
use crate::clock::Work;
use crate::ops::tensor;

const SEED: u64 = 0;
/// Keeps f16 gradients in range.
const LOSS_SCALE: f32 = 1024.0;

/// What to run.
#[derive(Clone, Copy)]
pub struct Setting<'a> {
    /// Where.
    pub gpu: &'a Gpu,
    /// Storage type.
    pub dtype: DType,
    /// Height and width of latents; pictures are eight times as large.
    pub latent: usize,
    /// Samples at once.
    pub batch: usize,
}

impl Setting<'_> {
    fn latents(self, dtype: DType) -> Result<Tensor> {
        tensor(self.gpu, &[self.batch, self.latent, self.latent, 4], dtype)
    }
}

/// A step of a model.
pub struct Step<M> {
    /// What the table calls it, given the batch and the side of latents.
    pub name: fn(usize, usize) -> String,
    /// Makes it ready to be run.
    pub work: for<'a> fn(&'a mut M, Setting<'a>) -> Result<Work<'a>>,
}

/// Text to states.
pub const CLIP: [Step<Clip>; 1] = [Step {
    name: |batch, _| format!("CLIP {batch}×{}", TEXT[0]),
    work: |clip, setting| {
        let shape = [setting.batch, TEXT[0]];
        let ids: Vec<u32> = (0..shape[0] * shape[1]).map(|i| (i * 641 % 49_408) as u32).collect();
        let ids = Tensor::from_u32(setting.gpu, &ids, &shape)?;
        Ok(Box::new(move || Ok(clip.forward(&Cx::new(&Tape::off()), &ids, 0).map(drop)?)))
    },
}];

/// Between pictures and latents.
pub const VAE: [Step<Vae>; 2] = [
    Step {
        name: |batch, side| format!("VAE encode {batch}×{0}×{0}", 8 * side),
        work: |vae, setting| {
            let side = 8 * setting.latent;
            let pictures = tensor(setting.gpu, &[setting.batch, side, side, 3], setting.dtype)?;
            Ok(Box::new(move || Ok(vae.encode(&Cx::new(&Tape::off()), &pictures).map(drop)?)))
        },
    },
    Step {
        name: |batch, side| format!("VAE decode {batch}×{0}×{0}", 8 * side),
        work: |vae, setting| {
            let latents = setting.latents(setting.dtype)?;
            Ok(Box::new(move || Ok(vae.decode(&Cx::new(&Tape::off()), &latents).map(drop)?)))
        },
    },
];

/// Noise prediction, and a step of a LoRA of rank 8 on all attention layers: forward, mean squared error, backward, gradient
/// norm and AdamW; then the same with the activations of each block recomputed.
pub const UNET: [Step<Unet>; 3] = [
    Step {
        name: |batch, side| format!("U-Net forward {batch}×{side}×{side}"),
        work: |unet, setting| {
            unet.detach_all();
            let inputs = Inputs::new(setting)?;
            Ok(Box::new(move || Ok(inputs.predict(unet, &Cx::new(&Tape::off())).map(drop)?)))
        },
    },
    Step {
        name: |batch, side| format!("training step {batch}×{side}×{side}"),
        work: |unet, setting| Training::work(unet, setting, false),
    },
    Step {
        name: |batch, side| format!("training step, recomputing {batch}×{side}×{side}"),
        work: |unet, setting| Training::work(unet, setting, true),
    },
];

/// CLIP with random weights.
pub fn clip(gpu: &Gpu, dtype: DType) -> Result<Clip> {
    Ok(Clip::random(gpu, &ClipConfig::sd15(), dtype, SEED)?)
}

/// A VAE with random weights.
pub fn vae(gpu: &Gpu, dtype: DType) -> Result<Vae> {
    Ok(Vae::random(gpu, &VaeConfig::sd15(), dtype, SEED)?)
}

/// A U-Net with random weights.
pub fn unet(gpu: &Gpu, dtype: DType) -> Result<Unet> {
    Ok(Unet::random(gpu, &UnetConfig::sd15(), dtype, SEED)?)
}

struct Inputs {
    sample: Tensor,
    timesteps: Vec<f32>,
    conditioning: Conditioning,
}

impl Inputs {
    fn new(setting: Setting<'_>) -> Result<Inputs> {
        Ok(Inputs {
            sample: setting.latents(setting.dtype)?,
            timesteps: (0..setting.batch).map(|b| 500.0 + b as f32).collect(),
            conditioning: Conditioning {
                states: tensor(setting.gpu, &[setting.batch, TEXT[0], TEXT[1]], setting.dtype)?,
            },
        })
    }

    fn predict(&self, unet: &Unet, cx: &Cx<'_>) -> strata_model::Result<Tensor> {
        let Inputs { sample, timesteps, conditioning } = self;
        unet.forward(cx, &UnetInput { sample, timesteps, conditioning })
    }
}

/// A LoRA on a U-Net, and all that its step needs.
struct Training {
    inputs: Inputs,
    set: LoraSet,
    target: Tensor,
    weights: Tensor,
    loss_grad: Tensor,
    grads: Tensor,
    moments: [Tensor; 2],
}

impl Training {
    fn work<'a>(unet: &'a mut Unet, setting: Setting<'a>, recompute: bool) -> Result<Work<'a>> {
        unet.detach_all();
        unet.set_gradient_checkpointing(recompute);
        let training = Training::new(unet, setting)?;
        Ok(Box::new(move || training.step(unet)))
    }

    fn new(unet: &mut Unet, setting: Setting<'_>) -> Result<Training> {
        let Setting { gpu, dtype, batch, .. } = setting;
        let rule = Rule { select: "attn".into(), rank: RANK, alpha: RANK as f32, lr: None };
        let matches = Selection::new(&[rule])?.resolve(unet.layers())?;
        let set = LoraSet::init(gpu, dtype, &matches, |_, fan_in, down| {
            let value = |i: usize| ((i * 37 % 101) as f32 / 50.0 - 1.0) / (fan_in as f32).sqrt();
            down.iter_mut().enumerate().for_each(|(i, v)| *v = value(i));
        })?;
        unet.attach(&set)?;
        let zeros = || Tensor::zeros(gpu, set.params().shape(), DType::F32);
        Ok(Training {
            inputs: Inputs::new(setting)?,
            target: setting.latents(DType::F32)?,
            weights: Tensor::from_f32(gpu, &vec![1.0; batch], &[batch], DType::F32)?,
            loss_grad: Tensor::from_f32(gpu, &[LOSS_SCALE], &[1], DType::F32)?,
            grads: zeros()?,
            moments: [zeros()?, zeros()?],
            set,
        })
    }

    fn step(&self, unet: &Unet) -> Result<()> {
        self.grads.fill_zero();
        let tape = strata_kernels::tape();
        self.set.track(&tape, &self.grads)?;
        let gates = Gates::scalars(&[1.0]);
        let predicted = self.inputs.predict(unet, &Cx { gates: &gates, ..Cx::new(&tape) })?;
        let loss = mse(&tape, &predicted, &self.target, &self.weights)?;
        tape.backward(&loss, self.loss_grad.clone())?;
        let norm = grad_norm(&self.grads)?;
        let args = AdamW {
            lr: 1e-4,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            step: 1,
            grad_scale: 1.0 / LOSS_SCALE,
            max_norm: 1.0,
        };
        let [exp_avg, exp_avg_sq] = &self.moments;
        Ok(adamw(self.set.params(), exp_avg, exp_avg_sq, &self.grads, &norm, self.set.shadow(), &args)?)
    }
}
