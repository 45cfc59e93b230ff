//! The probe: how far a feature moves what the model predicts with its tag, and how far without it.
//!
//! For feature i, a group g of prompts and a band b of timesteps,
//!
//! ```text
//! drift_i(g, b) = Σ ‖ε_LoRA(z_t, t, c) − ε_base(z_t, t, c)‖² / Σ ‖ε_base(z_t, t, c)‖²
//! leak_i(g, b)  = drift_i(g, b) / drift_i(own tag, b)
//! ```
//!
//! with sums over the prompts c of g and the [`Draws`] (z_t, t) of b. Every prompt meets the same draws, so groups,
//! features and gates compare; ε is whatever the model predicts, noise or v. Norms are summed in f64 on the host.
//!
//! [`Script`] says which prompts there are, [`Draws`] what they are tried on. A [`Probe`] holds both and what the base
//! model predicts, so that it is made once and [`run`](Probe::run) as often as the LoRA changes.

mod blocks;
mod draws;
mod gate;
mod heat;
mod html;
mod kept;
mod latents;
mod matrix;
mod prompts;
mod report;
mod table;

pub use blocks::{Part, parts};
pub use draws::{Draw, Draws};
pub use gate::gate_name;
pub use kept::{Kept, Trio};
pub use latents::latents_of;
pub use matrix::{Cell, Matrix, Row};
pub use prompts::{Group, GroupKind, ProbeFeature, Script, Text};
pub use report::{Block, FeatureReport, Grid, GridRow, Latents, Report};

use std::collections::BTreeMap;
use std::ops::Range;

use strata_engine::{DType, Gpu, Tape, Tensor};
use strata_model::{Conditioning, Cx, GateMode, Gates, LoraSet, Unet, UnetInput};

use crate::{Error, Result};

/// Prompts, draws, and what the base model predicts for each pair of them.
pub struct Probe {
    script: Script,
    draws: Draws,
    dtype: DType,
    batches: Vec<DrawBatch>,
    /// By prompt.
    base: Vec<Base>,
}

/// Draws that go through the model at once, on the GPU.
struct DrawBatch {
    draws: Range<usize>,
    noisy: Tensor,
    timesteps: Vec<f32>,
}

/// What the base model predicts for one prompt.
struct Base {
    /// Of all draws, one after the other.
    predictions: Vec<f32>,
    /// ‖ε_base‖² of each draw.
    energies: Vec<f64>,
}

/// ‖ε_LoRA − ε_base‖² by prompt and draw.
type Errors = BTreeMap<usize, Vec<f64>>;

impl Probe {
    /// Runs the base model over every prompt and draw, `batch` draws at a time: LoRAs that are attached to `unet` are
    /// off. `dtype` is that of its weights. `tick` is called after each pass through the model.
    ///
    /// # Errors
    /// Shapes do not fit the model, it predicts numbers that are not finite, or the GPU fails.
    pub fn new(
        gpu: &Gpu,
        unet: &Unet,
        dtype: DType,
        script: Script,
        draws: Draws,
        batch: usize,
        tick: &mut dyn FnMut(),
    ) -> Result<Self> {
        let batches = batches(gpu, &draws, batch.max(1))?;
        let off = Gates::scalars(&vec![0.0; unet.features()]);
        let mut base = Vec::new();
        for text in script.texts() {
            let mut predictions = Vec::new();
            for batch in &batches {
                predictions.extend(predict(unet, dtype, &off, text, batch)?);
                tick();
            }
            let energies = predictions.chunks_exact(draws.values()).map(square).collect();
            base.push(Base { predictions, energies });
        }
        Ok(Self { script, draws, dtype, batches, base })
    }

    /// The prompts.
    pub fn script(&self) -> &Script {
        &self.script
    }

    /// What they are tried on.
    pub fn draws(&self) -> &Draws {
        &self.draws
    }

    /// Drift and leak of a feature as its LoRA is now. The LoRA set of feature number i is the one that was attached as
    /// number i; all others are off. `tick` is called after each pass through the model.
    ///
    /// # Errors
    /// There is no such feature or set, predictions are not finite, or the GPU fails.
    pub fn run(&self, unet: &Unet, feature: usize, mode: GateMode, tick: &mut dyn FnMut()) -> Result<Matrix> {
        let errors = self.errors(unet, feature, feature, mode, tick)?;
        Ok(self.matrix(feature, mode, &errors))
    }

    /// What each part of a feature's LoRA does alone, always on. Takes all LoRAs off the U-Net, and leaves none.
    ///
    /// # Errors
    /// A part does not fit the model, predictions are not finite, or the GPU fails.
    pub fn blocks(
        &self,
        unet: &mut Unet,
        feature: usize,
        parts: &[Part],
        tick: &mut dyn FnMut(),
    ) -> Result<Vec<Block>> {
        unet.detach_all();
        let Some(batch) = self.batches.first() else { return Ok(Vec::new()) };
        for part in parts {
            let set = LoraSet::from_weights(batch.noisy.gpu(), self.dtype, &part.lora, unet)?;
            unet.attach(&set)?;
        }
        let matrix = |set: usize| -> Result<Matrix> {
            let errors = self.errors(unet, feature, set, GateMode::Always, tick)?;
            Ok(self.matrix(feature, GateMode::Always, &errors))
        };
        let matrices = (0..parts.len()).map(matrix).collect::<Result<Vec<_>>>();
        unet.detach_all();
        Ok(blocks::blocks(parts, matrices?))
    }

    /// Runs the prompts of a feature with LoRA set number `set` alone.
    fn errors(
        &self,
        unet: &Unet,
        feature: usize,
        set: usize,
        mode: GateMode,
        tick: &mut dyn FnMut(),
    ) -> Result<Errors> {
        let (features, sets) = (self.script.features().len(), unet.features());
        if feature >= features || set >= sets {
            return Err(Error::Probe(format!(
                "feature number {feature} with LoRA set number {set}: there are {features} features, and {sets} sets are \
                 attached"
            )));
        }
        let mut errors = Errors::new();
        for prompt in self.script.prompts_of(feature) {
            let (text, base) = (&self.script.texts()[prompt], &self.base[prompt]);
            let mut sums = Vec::new();
            for batch in &self.batches {
                let spec = &self.script.features()[feature];
                let gates = gate::gates(spec, mode, [set, sets], &text.prompt, batch, self.draws.shape())?;
                let predictions = predict(unet, self.dtype, &gates, text, batch)?;
                let values = self.draws.values();
                let base = &base.predictions[batch.draws.start * values..batch.draws.end * values];
                let pairs = predictions.chunks_exact(values).zip(base.chunks_exact(values));
                sums.extend(pairs.map(|(with, without)| square_of_difference(with, without)));
                tick();
            }
            errors.insert(prompt, sums);
        }
        Ok(errors)
    }

    fn matrix(&self, feature: usize, mode: GateMode, errors: &Errors) -> Matrix {
        let energies = |prompt: usize| &self.base[prompt].energies[..];
        Matrix::new(gate_name(mode), self.script.groups(feature), self.draws.samples(), errors, energies)
    }
}

fn batches(gpu: &Gpu, draws: &Draws, size: usize) -> Result<Vec<DrawBatch>> {
    let [h, w, channels] = draws.shape();
    let batch = |(i, part): (usize, &[Draw])| -> Result<DrawBatch> {
        let noisy: Vec<f32> = part.iter().flat_map(|draw| &draw.noisy).copied().collect();
        let noisy = Tensor::from_f32(gpu, &noisy, &[part.len(), h, w, channels], DType::F32)?;
        let timesteps = part.iter().map(|draw| draw.timestep as f32).collect();
        Ok(DrawBatch { draws: i * size..i * size + part.len(), noisy, timesteps })
    };
    draws.draws().chunks(size).enumerate().map(batch).collect()
}

/// What the model predicts for one prompt on a batch of draws.
fn predict(unet: &Unet, dtype: DType, gates: &Gates, text: &Text, batch: &DrawBatch) -> Result<Vec<f32>> {
    let (gpu, size, [tokens, channels]) = (batch.noisy.gpu(), batch.timesteps.len(), text.shape);
    let states = text.states.repeat(size);
    let conditioning = Conditioning::upload(gpu, &states, &[size, tokens, channels], dtype)?;
    let tape = Tape::off();
    let cx = Cx { gates, ..Cx::new(&tape) };
    let input = UnetInput { sample: &batch.noisy, timesteps: &batch.timesteps, conditioning: &conditioning };
    let predictions = unet.forward(&cx, &input)?.to_f32()?;
    if !predictions.iter().all(|v| v.is_finite()) {
        return Err(Error::Probe(format!(
            "the prompt {:?} gives predictions that are not finite; use f32, or a smaller weight of the LoRA",
            text.text
        )));
    }
    Ok(predictions)
}

fn square(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v).powi(2)).sum()
}

fn square_of_difference(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum()
}
