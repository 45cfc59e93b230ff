//! Whole steps: U-Net, VAE and CLIP of Stable Diffusion 1.5 with random weights.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use anyhow::Result;
use strata_engine::{DType, Gpu, Tape, Tensor};
use strata_model::{
    Clip, ClipConfig, Conditioning, Cx, LoraSet, NoiseSchedule, Rule, SchedulerConfig, Selection, Unet,
    UnetConfig, UnetInput, Vae, VaeConfig,
};
use strata_trainer::{
    Config, FeatureConfig, Latents, Learner, Lesson, Posterior, Preservation, Texts, TrainConfig,
    kaiming_uniform,
};

use crate::case::{RANK, TEXT};
use crate::clock::Work;
use crate::ops::{tensor, values};

const SEED: u64 = 0;

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

/// Noise prediction, and a step of `strata train` of a LoRA of rank 8 on all attention layers: drawing noise, uploads, forward,
/// loss, backward, gradient norm, AdamW, and reading loss and norm back; then the same with the activations of each block
/// recomputed.
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
    fn new(setting: Setting<'_>) -> Result<Self> {
        Ok(Self {
            sample: setting.latents(setting.dtype)?,
            timesteps: (0..setting.batch).map(|b| 500.0 + b as f32).collect(),
            conditioning: Conditioning {
                states: tensor(setting.gpu, &[setting.batch, TEXT[0], TEXT[1]], setting.dtype)?,
            },
        })
    }

    fn predict(&self, unet: &Unet, cx: &Cx<'_>) -> strata_model::Result<Tensor> {
        let Self { sample, timesteps, conditioning } = self;
        unet.forward(cx, &UnetInput { sample, timesteps, conditioning })
    }
}

/// A LoRA on a U-Net, and all that a step of `strata train` needs, on latents and texts in memory.
struct Training {
    config: Config,
    feature: FeatureConfig,
    latents: Latents,
    texts: Texts,
    schedule: NoiseSchedule,
    learner: RefCell<Learner>,
    taken: Cell<u64>,
}

const CAPTION: &str = "a caption";

impl Training {
    fn work<'a>(unet: &'a mut Unet, setting: Setting<'a>, recompute: bool) -> Result<Work<'a>> {
        unet.detach_all();
        unet.set_gradient_checkpointing(recompute);
        let training = Self::new(unet, setting)?;
        Ok(Box::new(move || training.step(unet)))
    }

    fn new(unet: &mut Unet, setting: Setting<'_>) -> Result<Self> {
        let Setting { gpu, dtype, latent, batch } = setting;
        let train = TrainConfig { batch_size: batch as u32, dtype, ..TrainConfig::default() };
        let rule = Rule { select: "attn".into(), rank: RANK, alpha: RANK as f32, lr: None };
        let matches = Selection::new(&[rule])?.resolve(unet.layers())?;
        let set = LoraSet::init(gpu, dtype, &matches, |path, fan_in, down| {
            kaiming_uniform(SEED, path, fan_in, down);
        })?;
        let learner = Learner::new(&set, unet.attach(&set)?, dtype, &train)?;
        let shape = [latent, latent, 4];
        let count = shape.iter().product();
        let posterior = |i: usize| Posterior::new(values(count + i).split_off(i), &vec![-10.0; count]);
        let [tokens, channels] = TEXT;
        let states = BTreeMap::from([(CAPTION.to_owned(), values(tokens * channels))]);
        Ok(Self {
            config: Config { train, ..Config::default() },
            feature: FeatureConfig::default(),
            latents: Latents::new((0..batch).map(posterior).collect(), shape, 0.18215),
            texts: Texts::new(states, vec![0.0; tokens * channels], TEXT),
            schedule: NoiseSchedule::new(&SchedulerConfig::sd15())?,
            learner: RefCell::new(learner),
            taken: Cell::new(0),
        })
    }

    fn step(&self, unet: &Unet) -> Result<()> {
        let lesson = Lesson {
            config: &self.config,
            feature: &self.feature,
            seed: SEED,
            captions: vec![CAPTION; self.latents.len()],
            latents: &self.latents,
            texts: &self.texts,
            preservation: &Preservation::default(),
            schedule: &self.schedule,
            gates: BTreeMap::from([(CAPTION.to_owned(), vec![1.0])]),
        };
        lesson.step(unet, &mut self.learner.borrow_mut(), None, self.taken.get())?;
        self.taken.set(self.taken.get() + 1);
        Ok(())
    }
}
