//! A LoRA that learns: forward, backward and update of one batch.

use serde::{Deserialize, Serialize};
use strata_engine::{DType, Gpu, Tape, Tensor};
use strata_kernels::{grad_norm, tape};
use strata_model::{Conditioning, Cx, Gates, LoraSet, RowGates, Unet, UnetInput};

use crate::training::loss::Losses;
use crate::training::optimizer::{State, Step};
use crate::{LossScale, Result, TrainConfig};

/// What goes through the U-Net at once, in host memory, row-major. B is the number of samples; those that are preserved
/// come last.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Batch {
    /// B, H, W, C of `noisy` and `target`.
    pub latent_shape: [usize; 4],
    /// What the U-Net sees.
    pub noisy: Vec<f32>,
    /// What it should say.
    pub target: Vec<f32>,
    /// One per sample.
    pub timesteps: Vec<f32>,
    /// B, tokens, channels of `context`.
    pub context_shape: [usize; 3],
    /// Text states.
    pub context: Vec<f32>,
    /// Factor on each sample's loss.
    pub weights: Vec<f32>,
    /// How many samples are preserved: their targets are what the U-Net says without the feature.
    pub preserved: usize,
    /// For each attached LoRA set, its gate in each sample. Empty: the learner's own is on, and no other.
    pub gates: Vec<Vec<f32>>,
}

impl Batch {
    /// The samples from number `first` on, none of which counts as preserved.
    fn tail(&self, first: usize) -> Self {
        let samples = self.timesteps.len();
        let part = |values: &[f32]| values[values.len() / samples * first..].to_vec();
        let left = samples - first;
        let ([_, h, w, c], [_, t, channels]) = (self.latent_shape, self.context_shape);
        Self {
            latent_shape: [left, h, w, c],
            noisy: part(&self.noisy),
            target: part(&self.target),
            timesteps: part(&self.timesteps),
            context_shape: [left, t, channels],
            context: part(&self.context),
            weights: part(&self.weights),
            preserved: 0,
            gates: self.gates.iter().map(|gates| part(gates)).collect(),
        }
    }
}

/// What an update did.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// Norm of the whole gradient, free of the loss scale, before clipping.
    pub grad_norm: f32,
    /// The gradients were not finite, and nothing was changed.
    pub skipped: bool,
    /// Skipped, and the loss scale cannot be lowered any more.
    pub hopeless: bool,
}

/// A LoRA set that learns: its gradients, and its optimizer with what that keeps.
pub struct Learner {
    gpu: Gpu,
    lora: LoraSet,
    /// The place of that set among those attached to the U-Net.
    feature: usize,
    dtype: DType,
    /// f32 and flat, in the order of the LoRA's parameters.
    grads: Tensor,
    /// Batches that went into them.
    batches: u32,
    optimizer: Box<dyn State>,
    lr: f64,
    max_grad_norm: f32,
    counters: Counters,
}

/// What a learner counts from step to step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Counters {
    /// Updates made; skipped ones do not count.
    updates: u32,
    loss_scale: LossScale,
}

impl Learner {
    /// A learner before its first update, with the optimizer, learning rate and longest gradient of `train`. `lora` is
    /// attached, as number `feature`, to the U-Net that the learner is then used with; activations are of `dtype`.
    ///
    /// # Errors
    /// Out of GPU memory.
    pub fn new(lora: &LoraSet, feature: usize, dtype: DType, train: &TrainConfig) -> Result<Self> {
        let gpu = lora.params().gpu().clone();
        let grads = Tensor::zeros(&gpu, lora.params().shape(), DType::F32)?;
        let optimizer = train.optimizer.start(lora)?;
        Ok(Self {
            gpu,
            lora: lora.clone(),
            feature,
            dtype,
            grads,
            batches: 0,
            optimizer,
            lr: train.lr,
            max_grad_norm: train.max_grad_norm as f32,
            counters: Counters {
                updates: 0,
                loss_scale: if dtype == DType::F16 { LossScale::dynamic() } else { LossScale::off() },
            },
        })
    }

    /// Fills the targets of the preserved samples with what the U-Net says about them while this LoRA is off.
    ///
    /// # Errors
    /// As [`Learner::backward`].
    pub fn teach(&self, unet: &Unet, batch: &mut Batch) -> Result<()> {
        let learned = batch.timesteps.len() - batch.preserved;
        if batch.preserved == 0 {
            return Ok(());
        }
        let mut gates = self.gates(unet, batch);
        gates[self.feature].fill(0.0);
        let teacher = Batch { gates, ..batch.clone() }.tail(learned);
        let said = self.predict(unet, &Tape::off(), &teacher)?.to_f32()?;
        let from = batch.target.len() - said.len();
        batch.target[from..].copy_from_slice(&said);
        Ok(())
    }

    /// Runs a batch forward and backward and adds to the gradients.
    ///
    /// # Errors
    /// Shapes that do not fit, or the GPU's.
    pub fn backward(&mut self, unet: &Unet, batch: &Batch) -> Result<Losses> {
        let tape = tape();
        self.lora.track(&tape, &self.grads)?;
        let prediction = self.predict(unet, &tape, batch)?;
        let losses = Losses::new(&tape, &self.gpu, &prediction, batch)?;
        let scale = Tensor::from_f32(&self.gpu, &[self.counters.loss_scale.value()], &[1], DType::F32)?;
        tape.backward(&losses.total, scale)?;
        self.batches += 1;
        Ok(losses)
    }

    /// A batch's gates, or where it has none, those that turn on this LoRA and no other.
    fn gates(&self, unet: &Unet, batch: &Batch) -> Vec<Vec<f32>> {
        let on = |i| if i == self.feature { 1.0 } else { 0.0 };
        match batch.gates.is_empty() {
            true => (0..unet.features()).map(|i| vec![on(i); batch.timesteps.len()]).collect(),
            false => batch.gates.clone(),
        }
    }

    fn predict(&self, unet: &Unet, tape: &Tape, batch: &Batch) -> Result<Tensor> {
        let noisy = Tensor::from_f32(&self.gpu, &batch.noisy, &batch.latent_shape, DType::F32)?;
        let conditioning = Conditioning::upload(&self.gpu, &batch.context, &batch.context_shape, self.dtype)?;
        let rows = |samples| RowGates { samples, text: None, places: None };
        let gates = Gates::rows(self.gates(unet, batch).into_iter().map(rows).collect());
        let cx = Cx { tape, gates: &gates, taps: None };
        let input = UnetInput { sample: &noisy, timesteps: &batch.timesteps, conditioning: &conditioning };
        Ok(unet.forward(&cx, &input)?)
    }

    /// Moves the LoRA by the mean of what [`Learner::backward`] gathered since the last update, unless it is not finite, at
    /// `share` of the learning rates, and starts the gradients again from 0.
    ///
    /// # Errors
    /// The GPU's.
    pub fn update(&mut self, share: f64) -> Result<Update> {
        let norm = grad_norm(&self.grads)?;
        let grad_scale = 1.0 / (self.counters.loss_scale.value() * self.batches.max(1) as f32);
        let step = Step {
            grads: &self.grads,
            norm: &norm,
            grad_scale,
            max_norm: self.max_grad_norm,
            number: self.counters.updates + 1,
            lr: self.lr,
            share,
        };
        self.optimizer.update(&self.lora, &step)?;
        self.grads.fill_zero();
        self.batches = 0;
        let grad_norm = norm.to_f32()?[0] * grad_scale;
        let finite = grad_norm.is_finite();
        self.counters.updates += u32::from(finite);
        let can_go_on = self.counters.loss_scale.observe(finite);
        Ok(Update { grad_norm, skipped: !finite, hopeless: !finite && !can_go_on })
    }

    /// The place of its LoRA set among those attached.
    pub fn feature(&self) -> usize {
        self.feature
    }

    /// The factor that the loss is multiplied by now.
    pub fn loss_scale(&self) -> &LossScale {
        &self.counters.loss_scale
    }

    /// The gradients gathered so far, times the loss scale: flat, in the order of the LoRA's parameters.
    pub fn grads(&self) -> &Tensor {
        &self.grads
    }

    /// What the optimizer keeps between updates, by the names PyTorch's have: f32, flat, in the same order.
    pub fn state(&self) -> Vec<(&'static str, &Tensor)> {
        self.optimizer.tensors()
    }

    /// All that lies on the GPU between two steps and that the next one depends on, by name: the LoRA, and the optimizer's.
    /// The f16 copy is here too, since GPUs may round to f16 in other ways than the host.
    pub(crate) fn tensors(&self) -> Vec<(&'static str, &Tensor)> {
        let shadow = self.lora.shadow().map(|shadow| ("shadow", shadow));
        let lora = std::iter::once(("params", self.lora.params())).chain(shadow);
        lora.chain(self.optimizer.tensors()).collect()
    }

    /// What it counts.
    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Takes over the counters of a learner whose [`tensors`](Self::tensors) have been written into this one's.
    pub(crate) fn restore(&mut self, counters: Counters) {
        self.counters = counters;
    }
}
