//! How much of what cross-attention reads comes from a LoRA.

use nalgebra::{DMatrix, DMatrixView};
use strata_model::{Checkpoint, LoraEntry, LoraSet};

use super::{States, reads_text};
use crate::Result;

/// A layer that reads the text, and what its LoRA does there.
#[derive(Debug, Clone, PartialEq)]
pub struct Delta {
    /// Diffusers' name of the layer.
    pub path: String,
    /// ‖ΔK‖ / ‖K‖ (or V), each the root of the sum of squares over all states.
    pub ratio: f64,
}

/// ‖ΔK‖ / ‖K‖ and ‖ΔV‖ / ‖V‖ of every layer of a LoRA that reads the text, over the states of prompts, in f64 on the
/// host. `lora` is taken as the layers read it: in f16 where it has an f16 copy. Ratios
/// below 1e-7 are rounding.
///
/// # Errors
/// The U-Net's weights cannot be read, lack a layer or have other shapes; or the GPU's.
pub fn deltas(checkpoint: &Checkpoint, lora: &LoraSet, states: &States) -> Result<Vec<Delta>> {
    let mut weights = checkpoint.unet_weights()?;
    let values = lora.shadow().unwrap_or(lora.params()).to_f32()?;
    let second = states.all();
    let delta = |entry: &LoraEntry| {
        let (inputs, outputs) = (entry.inputs(), entry.outputs());
        let w = weights.take(&format!("{}.weight", entry.path), &[outputs, inputs])?;
        let down = matrix(&values[entry.down.clone()], inputs);
        let up = matrix(&values[entry.up.clone()], entry.rank);
        let change = energy(&up, &(&down * &second * down.transpose()));
        let base = energy(&matrix(&w, inputs), &second);
        Ok(Delta { path: entry.path.clone(), ratio: f64::from(entry.scale()).abs() * (change / base).sqrt() })
    };
    lora.entries().iter().filter(|entry| reads_text(&entry.path)).map(delta).collect()
}

/// Row-major values as a matrix.
fn matrix(values: &[f32], columns: usize) -> DMatrix<f64> {
    DMatrixView::from_slice(values, columns, values.len() / columns).transpose().map(f64::from)
}

/// Σ ‖m x‖² over states whose Σ x xᵀ is `second`: the trace of m second mᵀ.
fn energy(m: &DMatrix<f64>, second: &DMatrix<f64>) -> f64 {
    (m * second).dot(m).max(0.0)
}
