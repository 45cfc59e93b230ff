//! A LoRA that learns: forward, backward and update of one batch.

use strata_engine::{DType, Gpu, Tape, Tensor};
use strata_kernels::{AdamW, adamw, grad_norm, mse, tape};
use strata_model::{Conditioning, Cx, Gates, LoraSet, RowGates, Unet, UnetInput};

use crate::{LossScale, Result};

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

/// The losses of a batch, f32 \[1\] and still on the GPU.
pub struct Losses {
    /// Mean over samples of weight · mean((prediction − target)²).
    pub total: Tensor,
    /// The share of the preserved samples in it.
    pub preserved: Option<Tensor>,
}

impl Batch {
    /// The samples from number `first` on, none of which counts as preserved.
    fn tail(&self, first: usize) -> Batch {
        let samples = self.timesteps.len();
        let part = |values: &[f32]| values[values.len() / samples * first..].to_vec();
        let left = samples - first;
        let ([_, h, w, c], [_, t, channels]) = (self.latent_shape, self.context_shape);
        Batch {
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

/// What an update needs to know.
#[derive(Debug, Clone, PartialEq)]
pub struct UpdateArgs {
    /// Learning rate of layers that have none of their own.
    pub lr: f32,
    /// Share of their learning rate that layers with one of their own get in this step.
    pub lr_share: f32,
    /// AdamW's β₁ and β₂.
    pub betas: [f32; 2],
    /// AdamW's ε.
    pub eps: f32,
    /// AdamW's decay.
    pub weight_decay: f32,
    /// A longer gradient is scaled down to this norm; 0 = never.
    pub max_norm: f32,
    /// How many batches went into the gradients; their mean is followed.
    pub batches: u32,
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

/// A U-Net with attached LoRA sets of which one learns, and AdamW's state for it.
pub struct Learner<'a> {
    gpu: &'a Gpu,
    unet: &'a Unet,
    lora: &'a LoraSet,
    /// The place of that set among the attached ones.
    feature: usize,
    dtype: DType,
    /// All f32 and flat, in the order of the LoRA's parameters.
    grads: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    /// Updates made; skipped ones do not count.
    updates: u32,
    loss_scale: LossScale,
}

impl<'a> Learner<'a> {
    /// A learner before its first update. `lora` must be attached to `unet` as number `feature`; activations are of
    /// `dtype`.
    ///
    /// # Errors
    /// Out of GPU memory.
    pub fn new(
        gpu: &'a Gpu,
        unet: &'a Unet,
        lora: &'a LoraSet,
        feature: usize,
        dtype: DType,
    ) -> Result<Self> {
        let zeros = || Tensor::zeros(gpu, lora.params().shape(), DType::F32);
        let loss_scale = if dtype == DType::F16 { LossScale::dynamic() } else { LossScale::off() };
        let (grads, exp_avg, exp_avg_sq) = (zeros()?, zeros()?, zeros()?);
        Ok(Self { gpu, unet, lora, feature, dtype, grads, exp_avg, exp_avg_sq, updates: 0, loss_scale })
    }

    /// Fills the targets of the preserved samples with what the U-Net says about them while this LoRA is off.
    ///
    /// # Errors
    /// As [`Learner::backward`].
    pub fn teach(&self, batch: &mut Batch) -> Result<()> {
        let learned = batch.timesteps.len() - batch.preserved;
        if batch.preserved == 0 {
            return Ok(());
        }
        let mut gates = self.gates(batch);
        gates[self.feature].fill(0.0);
        let teacher = Batch { gates, ..batch.clone() }.tail(learned);
        let said = self.predict(&Tape::off(), &teacher)?.to_f32()?;
        let from = batch.target.len() - said.len();
        batch.target[from..].copy_from_slice(&said);
        Ok(())
    }

    /// Runs a batch forward and backward and adds to the gradients.
    ///
    /// # Errors
    /// Shapes that do not fit, or the GPU's.
    pub fn backward(&self, batch: &Batch) -> Result<Losses> {
        let tape = tape();
        self.lora.track(&tape, &self.grads)?;
        let prediction = self.predict(&tape, batch)?;
        let upload = |values: &[f32], shape: &[usize]| Tensor::from_f32(self.gpu, values, shape, DType::F32);
        let target = upload(&batch.target, &batch.latent_shape)?;
        let weigh = |weights: &[f32]| upload(weights, &[weights.len()]);
        let total = mse(&tape, &prediction, &target, &weigh(&batch.weights)?)?;
        let preserved = match batch.preserved {
            0 => None,
            count => {
                let mut weights = batch.weights.clone();
                let learned = weights.len() - count;
                weights[..learned].fill(0.0);
                Some(mse(&Tape::off(), &prediction, &target, &weigh(&weights)?)?)
            }
        };
        tape.backward(&total, upload(&[self.loss_scale.value()], &[1])?)?;
        Ok(Losses { total, preserved })
    }

    /// A batch's gates, or where it has none, those that turn on this LoRA and no other.
    fn gates(&self, batch: &Batch) -> Vec<Vec<f32>> {
        let on = |i| if i == self.feature { 1.0 } else { 0.0 };
        match batch.gates.is_empty() {
            true => (0..self.unet.features()).map(|i| vec![on(i); batch.timesteps.len()]).collect(),
            false => batch.gates.clone(),
        }
    }

    fn predict(&self, tape: &Tape, batch: &Batch) -> Result<Tensor> {
        let noisy = Tensor::from_f32(self.gpu, &batch.noisy, &batch.latent_shape, DType::F32)?;
        let conditioning = Conditioning::upload(self.gpu, &batch.context, &batch.context_shape, self.dtype)?;
        let rows = |samples| RowGates { samples, text: None, places: None };
        let gates = Gates::rows(self.gates(batch).into_iter().map(rows).collect());
        let cx = Cx { tape, gates: &gates, taps: None };
        let input = UnetInput { sample: &noisy, timesteps: &batch.timesteps, conditioning: &conditioning };
        Ok(self.unet.forward(&cx, &input)?)
    }

    /// Moves the LoRA by what [`Learner::backward`] gathered since the last update, unless it is not finite, and
    /// starts the gradients again from 0.
    ///
    /// # Errors
    /// The GPU's.
    pub fn update(&mut self, args: &UpdateArgs) -> Result<Update> {
        let norm = grad_norm(&self.grads)?;
        let grad_scale = 1.0 / (self.loss_scale.value() * args.batches as f32);
        for (own_lr, range) in self.lora.lr_groups() {
            let part = |flat: &Tensor| flat.view(range.start, &[range.len()]);
            let shadow = self.lora.shadow().map(part).transpose()?;
            let [params, exp_avg, exp_avg_sq, grads] = [
                part(self.lora.params())?,
                part(&self.exp_avg)?,
                part(&self.exp_avg_sq)?,
                part(&self.grads)?,
            ];
            let adam = AdamW {
                lr: own_lr.map_or(args.lr, |lr| lr * args.lr_share),
                beta1: args.betas[0],
                beta2: args.betas[1],
                eps: args.eps,
                weight_decay: args.weight_decay,
                step: self.updates + 1,
                grad_scale,
                max_norm: args.max_norm,
            };
            adamw(&params, &exp_avg, &exp_avg_sq, &grads, &norm, shadow.as_ref(), &adam)?;
        }
        self.grads.fill_zero();
        let grad_norm = norm.to_f32()?[0] * grad_scale;
        let finite = grad_norm.is_finite();
        self.updates += u32::from(finite);
        let can_go_on = self.loss_scale.observe(finite);
        Ok(Update { grad_norm, skipped: !finite, hopeless: !finite && !can_go_on })
    }

    /// The place of its LoRA set among those attached.
    pub fn feature(&self) -> usize {
        self.feature
    }

    /// The factor that the loss is multiplied by now.
    pub fn loss_scale(&self) -> &LossScale {
        &self.loss_scale
    }

    /// The gradients gathered so far, times the loss scale: flat, in the order of the LoRA's parameters.
    pub fn grads(&self) -> &Tensor {
        &self.grads
    }

    /// AdamW's running means of gradients and of their squares, in the same order.
    pub fn moments(&self) -> (&Tensor, &Tensor) {
        (&self.exp_avg, &self.exp_avg_sq)
    }
}
