//! How strong each attached feature is, row by row of the layers it sits on.
//!
//! A layer's rows are samples, places of the picture or tokens of the text ([`Rows`]), and a feature may be on in some
//! rows and off in others. Where it is off in all rows of a layer its LoRA is not launched there; rows that are off
//! beside rows that are on have the base model's bits too, since adding 0 · u to a sum changes nothing.
//!
//! A feature may be kept to a part of the picture. Rows of places are then weighed by it. Keys and values of
//! cross-attention belong to no place, so there the attention itself runs twice, without the feature and with it, and
//! each place takes its mixture of both. The time embedding belongs to the whole sample: a feature with a part of the
//! picture is off there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use strata_engine::{DType, Gpu, Tape, Tensor};
use strata_kernels::{Gate, blend};

use crate::region::PlaceMask;
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
            _ if ends(&[".attn2.to_k", ".attn2.to_v"]) => Self::Text,
            _ if ends(&[".time_emb_proj"]) || path.starts_with("time_embedding.") => Self::Sample,
            _ => Self::Place,
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
    /// The part of the picture that the feature is kept to.
    pub places: Option<PlaceMask>,
}

/// What each attached [`LoraSet`](crate::LoraSet) is multiplied by, in the order of attaching. Of one GPU: vectors of
/// gates are uploaded when a layer first asks for them, and kept; clones share them.
#[derive(Debug, Default, Clone)]
pub struct Gates {
    features: Vec<Strength>,
    /// The parts of the picture that features are kept to, each once.
    parts: Vec<PlaceMask>,
    gates: Arc<Mutex<BTreeMap<Key, Gate>>>,
    shares: Arc<Mutex<BTreeMap<ShareKey, Shares>>>,
}

#[derive(Debug, Clone)]
enum Strength {
    All(f32),
    /// And the number of the part of the picture it is kept to.
    Rows(RowGates, Option<usize>),
}

/// Feature, kind of rows, and how many there are.
type Key = (usize, Rows, usize);

/// The features that an attention carries, and how many rows it has.
type ShareKey = (Vec<usize>, usize);

/// For each part of the picture, what each row of a mixed attention keeps of what it has so far, and takes of the
/// attention with the features of that part.
type Shares = Vec<(usize, [Tensor; 2])>;

static NONE: LazyLock<Gates> = LazyLock::new(Gates::default);

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
        let mut gates = Self::default();
        for feature in features {
            let part = feature.places.as_ref().map(|places| {
                let known = gates.parts.iter().position(|part| part == places);
                known.unwrap_or_else(|| {
                    gates.parts.push(places.clone());
                    gates.parts.len() - 1
                })
            });
            gates.features.push(Strength::Rows(feature, part));
        }
        gates
    }

    /// The gate of LoRA set number `feature` for a layer with input x and `count` such rows of output. Of the features that
    /// are kept to a part of the picture, layers on text have those of part `part` alone.
    pub(crate) fn of(
        &self,
        feature: usize,
        rows: Rows,
        x: &Tensor,
        count: usize,
        part: Option<usize>,
    ) -> Result<Gate> {
        let given = self.features.len();
        let Some(strength) = self.features.get(feature) else {
            return Err(Error::Lora(format!(
                "LoRA set number {feature} is attached, but only {given} gates are given; give one for each set"
            )));
        };
        let (gates, own) = match strength {
            Strength::All(factor) => return Ok(Gate::Scalar(*factor)),
            Strength::Rows(gates, own) => (gates, *own),
        };
        gates.check(feature, rows, x)?;
        let elsewhere = own.is_some() && own != part;
        if own.is_some() && (rows == Rows::Sample || rows == Rows::Text && elsewhere) {
            return Ok(Gate::Scalar(0.0));
        }
        let mut made = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (feature, rows, count);
        if let Some(gate) = made.get(&key) {
            return Ok(gate.clone());
        }
        let values = match (rows, own) {
            (Rows::Place, Some(own)) => self.in_part(own, &gates.samples, count)?,
            _ => gates.values(rows).to_vec(),
        };
        let gate = gate(x.gpu(), &values)?;
        made.insert(key, gate.clone());
        Ok(gate)
    }

    /// Each sample's factor times how far its places lie in a part of the picture, for so many rows.
    fn in_part(&self, part: usize, samples: &[f32], rows: usize) -> Result<Vec<f32>> {
        let level = self.parts[part].level(rows / samples.len())?;
        Ok(samples.iter().flat_map(|sample| level.iter().map(move |share| sample * share)).collect())
    }

    /// Cross-attention whose keys and values carry the LoRAs of these features: `whole` is without those of any part of
    /// the picture, and `with` gives it with those of one. Where parts overlap, what each adds is added up.
    pub(crate) fn mix(
        &self,
        tape: &Tape,
        carried: &BTreeSet<usize>,
        whole: Tensor,
        with: impl Fn(usize) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let mut sum = whole;
        for (part, [kept, taken]) in self.shares(carried, &sum)? {
            sum = blend(tape, [&sum, &with(part)?], [&kept, &taken])?;
        }
        Ok(sum)
    }

    /// Who takes what, of the parts of the picture that some of the features is kept to and on in some sample. Rows that
    /// have nothing of a part go through its step unchanged, so they do not depend on it.
    fn shares(&self, carried: &BTreeSet<usize>, x: &Tensor) -> Result<Shares> {
        // which samples have a feature of each part
        let mut on: BTreeMap<usize, Vec<f32>> = BTreeMap::new();
        for feature in carried {
            let Some(Strength::Rows(gates, Some(part))) = self.features.get(*feature) else { continue };
            let values = gates.values(Rows::Text);
            let tokens = values.len() / gates.samples.len();
            let on = on.entry(*part).or_insert_with(|| vec![0.0; gates.samples.len()]);
            for (on, values) in on.iter_mut().zip(values.chunks_exact(tokens)) {
                if values.iter().any(|value| *value != 0.0) {
                    *on = 1.0;
                }
            }
        }
        on.retain(|_, on| on.contains(&1.0));
        if on.is_empty() {
            return Ok(Shares::new());
        }
        let mut made = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (carried.iter().copied().collect(), x.rows());
        if let Some(shares) = made.get(&key) {
            return Ok(shares.clone());
        }
        let upload = |values: &[f32]| Tensor::from_f32(x.gpu(), values, &[values.len()], DType::F32);
        let taken = |(part, on): (&usize, &Vec<f32>)| Ok((*part, self.in_part(*part, on, x.rows())?));
        let taken = on.iter().map(taken).collect::<Result<Vec<_>>>()?;
        let mut rest = vec![1.0; x.rows()];
        for (_, taken) in &taken {
            rest.iter_mut().zip(taken).for_each(|(rest, taken)| *rest -= taken);
        }
        let mut shares = Shares::new();
        for (part, taken) in taken {
            // the first part that a row has something of takes it away from the whole
            let keep = |(rest, taken): (&mut f32, &f32)| {
                if *taken == 0.0 { 1.0 } else { std::mem::replace(rest, 1.0) }
            };
            let kept: Vec<f32> = rest.iter_mut().zip(&taken).map(keep).collect();
            shares.push((part, [upload(&kept)?, upload(&taken)?]));
        }
        made.insert(key, shares.clone());
        Ok(shares)
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

/// All 0 is a scalar, so that nothing is launched. Other equal factors stay a vector unless they are 1: a vector is
/// multiplied later than a scalar, which rounds otherwise, and a sample's bits should not depend on its batch.
fn gate(gpu: &Gpu, values: &[f32]) -> Result<Gate> {
    for scalar in [0.0, 1.0] {
        if values.iter().all(|value| *value == scalar) {
            return Ok(Gate::Scalar(scalar));
        }
    }
    Ok(Gate::Rows(Tensor::from_f32(gpu, values, &[values.len()], DType::F32)?))
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
