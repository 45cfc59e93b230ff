//! The silent subspace: a LoRA that says nothing where its tag is not said, whichever program runs it.
//!
//! Cross-attention reads text through attn2.to_k and attn2.to_v alone, and the LoRA of these reads it through `down`.
//! CLIP is causal, so the state of the first token, BOS, is the same in every prompt; and the states of ordinary
//! prompts lie mostly within few directions. A [`Basis`] spans BOS and the first of these. After every update
//! [`Silence::apply`] takes them out of every `down`, so that ΔK = ΔV = 0 for whatever of a text lies within the span.
//! The file stays a plain LoRA.
//!
//! Layers that read the picture (attn1, to_q, to_out, ff, convolutions) are not silenced by this.

mod bank;
mod basis;
mod delta;
mod states;

use std::collections::BTreeMap;

use strata_engine::{DType, Tensor};
use strata_kernels::{RowSet, project};
use strata_model::{LoraEntry, LoraSet, Rows, Tag, TextEncoder};

use crate::{Error, Result};

pub use bank::{default_bank, read_bank};
pub use basis::Basis;
pub(crate) use basis::principal;
pub use delta::{Delta, deltas};
pub(crate) use states::PROMPTS_AT_ONCE;
pub use states::States;

/// The basis of what prompts without the tag say: BOS and `rank` directions of the last states of the text encoder. `prompts` are a bank ([`default_bank`], [`read_bank`]) and all that else must not wake the
/// feature: captions without the tag, classes, tags of other features; `tags` of the run are read as such. The empty prompt belongs among them.
///
/// # Errors
/// There is no prompt, the rank leaves the LoRA nothing, or the GPU fails.
pub fn basis(text: &TextEncoder, prompts: &[String], tags: &[(usize, &Tag)], rank: usize) -> Result<Basis> {
    Basis::new(&States::collect(text, prompts, tags)?, rank)
}

/// Whether a layer, by diffusers' name, reads the text, so that it can be silenced.
pub fn reads_text(path: &str) -> bool {
    Rows::of(path) == Rows::Text
}

/// Keeps the LoRAs of attn2.to_k and attn2.to_v silent on a span.
pub struct Silence {
    params: Tensor,
    shadow: Option<Tensor>,
    /// Rows of `down` and the basis that they are freed of.
    parts: Vec<(RowSet, Tensor)>,
    layers: usize,
}

impl Silence {
    /// Finds the layers of `lora` that read the text, and silences them at once, so that training starts silent.
    ///
    /// The `down` of each is also kept orthogonal to the `down` of the same layer in every set of `earlier`: features
    /// trained one after the other then read different parts of the text.
    ///
    /// # Errors
    /// No layer of `lora` reads the text, it was made for a text encoder of another width, or a layer is left with no
    /// direction; else the GPU's.
    pub fn new(basis: &Basis, lora: &LoraSet, earlier: &[&LoraSet]) -> Result<Self> {
        let entries: Vec<&LoraEntry> =
            lora.entries().iter().filter(|entry| reads_text(&entry.path)).collect();
        if entries.is_empty() {
            return Err(Error::Silence(
                "no layer of this LoRA reads the text, so none can be silenced; select attn2.to_k or attn2.to_v, or leave \
                 silence out"
                    .into(),
            ));
        }
        if let Some(entry) = entries.iter().find(|entry| entry.inputs() != basis.channels()) {
            return Err(Error::Silence(format!(
                "{} reads {} channels, but the text states behind the basis have {}; LoRA and text encoder must be of \
                 one model",
                entry.path,
                entry.inputs(),
                basis.channels()
            )));
        }
        let taken = downs(earlier)?;
        // Layers without an earlier LoRA share one basis, and so one launch.
        let mut shared = Vec::new();
        let mut parts = Vec::new();
        let gpu = lora.params().gpu();
        let mut part = |down: &[std::ops::Range<usize>], rows: &[f32]| -> Result<()> {
            let shape = [rows.len() / basis.channels(), basis.channels()];
            let rows = Tensor::from_f32(gpu, rows, &shape, DType::F32)?;
            parts.push((RowSet::new(gpu, down, basis.channels())?, rows));
            Ok(())
        };
        for entry in &entries {
            match taken.get(entry.path.as_str()) {
                None => shared.push(entry.down.clone()),
                Some(down) => {
                    let rows = basis.widened(down).ok_or_else(|| no_room(entry, basis, down))?;
                    part(std::slice::from_ref(&entry.down), &rows)?;
                }
            }
        }
        if !shared.is_empty() {
            part(&shared, basis.rows())?;
        }
        let (params, shadow) = (lora.params().clone(), lora.shadow().cloned());
        let silence = Self { params, shadow, parts, layers: entries.len() };
        silence.apply()?;
        Ok(silence)
    }

    /// Takes the span out of every `down`, also of the f16 copy. To be called after every update.
    ///
    /// # Errors
    /// The GPU's.
    pub fn apply(&self) -> Result<()> {
        for (rows, basis) in &self.parts {
            project(&self.params, rows, basis, self.shadow.as_ref())?;
        }
        Ok(())
    }

    /// How many layers are silenced.
    pub fn layers(&self) -> usize {
        self.layers
    }
}

/// The rows of every `down` that reads the text, by layer.
fn downs<'a>(sets: &[&'a LoraSet]) -> Result<BTreeMap<&'a str, Vec<f32>>> {
    let mut downs: BTreeMap<&str, Vec<f32>> = BTreeMap::new();
    for set in sets {
        let values = set.params().to_f32()?;
        for entry in set.entries().iter().filter(|entry| reads_text(&entry.path)) {
            downs.entry(&entry.path).or_default().extend(&values[entry.down.clone()]);
        }
    }
    Ok(downs)
}

fn no_room(entry: &LoraEntry, basis: &Basis, down: &[f32]) -> Error {
    let (channels, earlier) = (basis.channels(), down.len() / basis.channels());
    Error::Silence(format!(
        "{}: the {} directions of the basis and the rank {earlier} of earlier features leave none of {channels} channels; \
         lower the rank of silence or of the earlier features",
        entry.path,
        basis.rank() + 1
    ))
}
