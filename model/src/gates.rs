//! How strong each attached feature is, row by row of the layers it sits on.
//!
//! A layer's rows are samples, places of the picture or tokens of the text ([`Rows`]), and a feature may be on in some
//! rows and off in others. Where it is off in all rows of a layer its LoRA is not launched there; rows that are off
//! beside rows that are on have the base model's bits too, since adding 0 · u to a sum changes nothing.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use strata_engine::{DType, Tensor};
use strata_kernels::Gate;

use crate::{Error, Result};

/// What the rows of a layer's input are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rows {
    /// One row per sample: layers on the time embedding.
    Sample,
    /// One row per place of the picture, at the resolution of its level.
    Place,
    /// One row per token of the text: `to_k` and `to_v` of cross-attention.
    Text,
}

impl Rows {
    /// The rows of the U-Net's layer with this name.
    pub fn of(path: &str) -> Self {
        let ends = |names: &[&str]| names.iter().any(|name| path.ends_with(name));
        match path {
            _ if ends(&[".attn2.to_k", ".attn2.to_v"]) => Rows::Text,
            _ if ends(&[".time_emb_proj"]) || path.starts_with("time_embedding.") => Rows::Sample,
            _ => Rows::Place,
        }
    }
}

/// How strong one feature is in the rows of a batch of B samples.
#[derive(Debug, Clone, PartialEq)]
pub struct RowGates {
    /// One factor per sample.
    pub samples: Vec<f32>,
    /// For rows of text, in place of their sample's factor: one per token, `[B, T]`.
    pub text: Option<Vec<f32>>,
}

/// What each attached [`LoraSet`](crate::LoraSet) is multiplied by, in the order of attaching. Of one GPU: vectors of
/// gates are uploaded when a layer first asks for them, and kept.
#[derive(Debug, Default)]
pub struct Gates {
    features: Vec<Strength>,
    made: Mutex<BTreeMap<(usize, Rows), Held>>,
}

#[derive(Debug, Clone)]
enum Strength {
    All(f32),
    Rows(RowGates),
}

/// A gate as a layer holds it while it launches.
#[derive(Debug, Clone)]
pub(crate) enum Held {
    Scalar(f32),
    Rows(Tensor),
}

static NONE: Gates = Gates { features: Vec::new(), made: Mutex::new(BTreeMap::new()) };

impl Gates {
    /// Where no LoRA is attached.
    pub fn none() -> &'static Self {
        &NONE
    }

    /// One factor per feature, the same in all rows.
    pub fn scalars(factors: &[f32]) -> Self {
        Self { features: factors.iter().map(|factor| Strength::All(*factor)).collect(), ..Self::default() }
    }

    /// Features that differ from row to row.
    pub fn rows(features: Vec<RowGates>) -> Self {
        Self { features: features.into_iter().map(Strength::Rows).collect(), ..Self::default() }
    }

    /// The gate of LoRA set number `feature` for a layer with such rows and input x.
    pub(crate) fn of(&self, feature: usize, rows: Rows, x: &Tensor) -> Result<Held> {
        let given = self.features.len();
        let Some(strength) = self.features.get(feature) else {
            return Err(Error::Lora(format!(
                "LoRA set number {feature} is attached, but only {given} gates are given; give one for each set"
            )));
        };
        let gates = match strength {
            Strength::All(factor) => return Ok(Held::Scalar(*factor)),
            Strength::Rows(gates) => gates,
        };
        gates.check(feature, rows, x)?;
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = made.get(&(feature, rows)) {
            return Ok(held.clone());
        }
        let held = Held::new(gates.values(rows), x)?;
        made.insert((feature, rows), held.clone());
        Ok(held)
    }
}

impl RowGates {
    /// The factors of a layer with such rows: one per sample or one per row.
    fn values(&self, rows: Rows) -> &[f32] {
        match (rows, &self.text) {
            (Rows::Text, Some(text)) => text,
            _ => &self.samples,
        }
    }

    fn check(&self, feature: usize, rows: Rows, x: &Tensor) -> Result<()> {
        let (batch, given) = (self.samples.len(), x.shape().first().copied().unwrap_or(0));
        let fail = |message: String| {
            Err(Error::Lora(format!("gates of LoRA set number {feature} are for {message} {:?}", x.shape())))
        };
        match &self.text {
            _ if batch != given || batch == 0 => fail(format!("{batch} samples, but a layer is given")),
            Some(text) if rows == Rows::Text && text.len() != x.rows() => {
                fail(format!("{} tokens of text, but a layer is given text states", text.len()))
            }
            _ => Ok(()),
        }
    }
}

impl Held {
    /// All 0 is a scalar, so that nothing is launched. Other equal factors stay a vector unless they are 1: a vector is
    /// multiplied later than a scalar, which rounds otherwise, and a sample's bits should not depend on its batch.
    fn new(values: &[f32], x: &Tensor) -> Result<Self> {
        for scalar in [0.0, 1.0] {
            if values.iter().all(|value| *value == scalar) {
                return Ok(Held::Scalar(scalar));
            }
        }
        Ok(Held::Rows(Tensor::from_f32(x.gpu(), values, &[values.len()], DType::F32)?))
    }

    pub fn gate(&self) -> Gate<'_> {
        match self {
            Held::Scalar(factor) => Gate::Scalar(*factor),
            Held::Rows(factors) => Gate::Rows(factors),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Rows;

    #[test]
    fn rows_by_name() {
        let block = "down_blocks.1.attentions.0.transformer_blocks.0";
        let cases = [
            (format!("{block}.attn2.to_k"), Rows::Text),
            (format!("{block}.attn2.to_v"), Rows::Text),
            (format!("{block}.attn2.to_q"), Rows::Place),
            (format!("{block}.attn1.to_k"), Rows::Place),
            ("mid_block.resnets.0.time_emb_proj".into(), Rows::Sample),
            ("time_embedding.linear_2".into(), Rows::Sample),
            ("up_blocks.1.resnets.0.conv_shortcut".into(), Rows::Place),
        ];
        cases.iter().for_each(|(path, rows)| assert_eq!(Rows::of(path), *rows, "{path}"));
    }
}
