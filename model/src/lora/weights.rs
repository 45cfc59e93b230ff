//! A LoRA in memory, whatever file it came from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use strata_engine::DType;

use crate::formats::{self, Spelling};
use crate::{Embedding, Error, Result, note_keys, sniff};

/// The part of a model that a module belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The U-Net.
    Unet,
    /// The text encoder; of two, the first.
    TextEncoder,
    /// The second of two text encoders.
    TextEncoder2,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unet => "the U-Net",
            Self::TextEncoder => "the text encoder",
            Self::TextEncoder2 => "the second text encoder",
        })
    }
}

/// A LoRA: low-rank changes of some layers, and what is known about them.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraWeights {
    /// By part of the model and diffusers' path in it.
    pub modules: BTreeMap<(Part, String), LoraModule>,
    /// Embeddings that are bundled with it, by word.
    pub embeddings: BTreeMap<String, Embedding>,
    /// F32 or F16: the type that files have their numbers in.
    pub dtype: DType,
    /// Free-form strings (`ss_*`, `modelspec.*`).
    pub metadata: BTreeMap<String, String>,
}

/// The LoRA of one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraModule {
    /// lora_A, row-major [r, in] or [r, in, k, k].
    pub down: Vec<f32>,
    /// [r, in] or [r, in, k, k].
    pub down_shape: Vec<usize>,
    /// lora_B, row-major [out, r] or [out, r, 1, 1].
    pub up: Vec<f32>,
    /// [out, r] or [out, r, 1, 1].
    pub up_shape: Vec<usize>,
    /// What ΔW is multiplied by, times r.
    pub alpha: f32,
    /// Of DoRA: the norm of each row of W + ΔW, [out].
    pub magnitude: Option<Vec<f32>>,
}

impl LoraWeights {
    /// Reads a LoRA: a file in kohya's or diffusers' spelling, or PEFT's folder. LoHa, LoKr and full differences come out as
    /// branches of full rank. A missing alpha means alpha = rank.
    ///
    /// # Errors
    /// The file is damaged; a key is of no spelling that is read, or of another than the others; a module or a bundled embedding
    /// lacks one of its tensors, or their shapes do not fit.
    pub fn read(path: &Path) -> Result<Self> {
        if path.is_file() {
            sniff::check_lora(path)?;
        }
        formats::read(path)
    }

    /// Writes in a spelling: a file, or PEFT's folder. Of the metadata, a file's header has all.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn write_as(&self, spelling: Spelling, path: &Path) -> Result<()> {
        formats::write(self, spelling, path)
    }

    /// Writes a file in kohya's spelling, which every Stable Diffusion program reads: whole or not at all. Equal contents
    /// give equal bytes.
    ///
    /// # Errors
    /// Shapes do not fit; a value is not finite, or would not be as F16; or the file cannot be written (what was at
    /// `path` before is then still there).
    pub fn write(&self, path: &Path) -> Result<()> {
        self.write_as(Spelling::Kohya, path)
    }

    /// The module of a layer of the U-Net.
    pub fn unet(&self, path: &str) -> Option<&LoraModule> {
        self.modules.get(&(Part::Unet, path.to_owned()))
    }

    /// Takes out the modules of a part, as a LoRA of their own.
    #[must_use]
    pub fn take(&mut self, part: Part) -> Self {
        let (own, rest) = std::mem::take(&mut self.modules).into_iter().partition(|((of, _), _)| *of == part);
        self.modules = rest;
        Self { modules: own, embeddings: BTreeMap::new(), dtype: self.dtype, metadata: self.metadata.clone() }
    }

    /// Takes out the modules of other parts than the U-Net, and says how many each part had.
    pub fn take_others(&mut self) -> BTreeMap<Part, usize> {
        let mut others = BTreeMap::new();
        self.modules.retain(|(part, _), _| {
            let unet = *part == Part::Unet;
            if !unet {
                *others.entry(*part).or_default() += 1;
            }
            unet
        });
        others
    }

    /// One LoRA that does what several do together: where several have a module, their ranks lie side by side, each
    /// `up` multiplied by its alpha / rank, and alpha is the sum of the ranks. Of metadata what all agree on is kept;
    /// the tags of all are in `strata_tags`, each with its key.
    ///
    /// # Errors
    /// A module has another size, or is another kind of layer, in one than in another; or a tag has another key, or a word another
    /// embedding; or a value is too large for the files' numbers.
    pub fn combine(all: &[Self]) -> Result<Self> {
        let mut modules: BTreeMap<(Part, String), LoraModule> = BTreeMap::new();
        for (name, module) in all.iter().flat_map(|one| &one.modules) {
            let together = match modules.remove(name) {
                None => module.clone(),
                Some(before) => before.beside(module, &name.1)?,
            };
            modules.insert(name.clone(), together);
        }
        let mut embeddings: BTreeMap<String, Embedding> = BTreeMap::new();
        for (word, embedding) in all.iter().flat_map(|one| &one.embeddings) {
            let known = embeddings.entry(word.clone()).or_insert_with(|| embedding.clone());
            if known != embedding {
                return Err(Error::Lora(format!(
                    "the word {word:?} has another embedding bundled in one of the files than in another, and can have only one"
                )));
            }
        }
        let all_half = all.iter().all(|one| one.dtype == DType::F16);
        let dtype = if all_half { DType::F16 } else { DType::F32 };
        let mut metadata = all.first().map_or_else(BTreeMap::new, |one| one.metadata.clone());
        metadata.retain(|key, value| all.iter().all(|one| one.metadata.get(key) == Some(value)));
        let (mut tags, mut keys): (Vec<String>, _) = (Vec::new(), BTreeMap::new());
        for one in all {
            let mut own = crate::keys_of(&one.metadata)?;
            for tag in crate::trigger::tags_of(&one.metadata)? {
                let key = own.remove(&tag);
                if !tags.contains(&tag) {
                    tags.push(tag.clone());
                    keys.extend(key.map(|key| (tag, key)));
                } else if keys.get(&tag) != key.as_ref() {
                    return Err(Error::Lora(format!(
                        "the tag {tag:?} has another key in one of the files than in another, and can have only one; files with \
                         keys go together where each has tags of its own"
                    )));
                }
            }
        }
        // by which a run knows its own file
        metadata.remove("strata_run");
        metadata.insert("strata_tags".into(), serde_json::json!(tags).to_string());
        metadata.insert("modelspec.trigger_phrase".into(), tags.join(", "));
        note_keys(&mut metadata, &keys);
        let most = if dtype == DType::F16 { f32::from(half::f16::MAX) } else { f32::MAX };
        for ((_, path), module) in &modules {
            let mut values = module.down.iter().chain(&module.up).chain([&module.alpha]);
            if let Some(value) = values.find(|v| v.is_nan() || v.abs() > most) {
                return Err(Error::Lora(format!(
                    "{path} comes to hold {value}, too large for {}; take less of the LoRAs, smaller ratios",
                    dtype.wgsl()
                )));
            }
        }
        Ok(Self { modules, embeddings, dtype, metadata })
    }
}

impl LoraModule {
    /// r: how many rows `down` has.
    pub fn rank(&self) -> usize {
        self.down_shape.first().copied().unwrap_or(0)
    }

    /// ‖ΔW‖, the root of the sum of its squares; of DoRA without its magnitudes. Of up and down only products of rank × rank numbers are made:
    /// ‖up · down‖² = Σ (upᵀ up) (down downᵀ).
    pub fn norm(&self) -> f64 {
        let rank = self.rank();
        let columns: Vec<Vec<f64>> = (0..rank)
            .map(|r| self.up.iter().skip(r).step_by(rank).map(|v| f64::from(*v)).collect())
            .collect();
        let rows: Vec<Vec<f64>> = self
            .down
            .chunks_exact((self.down.len() / rank).max(1))
            .map(|row| row.iter().map(|v| f64::from(*v)).collect())
            .collect();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let pairs = (0..rank).flat_map(|i| (0..=i).map(move |j| (i, j)));
        let square: f64 = pairs
            .map(|(i, j)| {
                let twice = if i == j { 1.0 } else { 2.0 };
                twice * dot(&columns[i], &columns[j]) * dot(&rows[i], &rows[j])
            })
            .sum();
        f64::from(self.scale().abs()) * square.max(0.0).sqrt()
    }

    /// What ΔW is multiplied with: alpha / rank.
    pub fn scale(&self) -> f32 {
        self.alpha / self.rank() as f32
    }

    /// ΔW, row-major [out, in · k · k].
    pub fn delta(&self) -> Vec<f32> {
        let (rank, scale) = (self.rank(), f64::from(self.alpha) / self.rank() as f64);
        let columns = self.down.len() / rank;
        let mut delta = Vec::with_capacity(self.up.len() / rank * columns);
        let mut row = vec![0.0_f64; columns];
        for weights in self.up.chunks_exact(rank) {
            row.fill(0.0);
            for (weight, down) in weights.iter().zip(self.down.chunks_exact(columns)) {
                let weight = f64::from(*weight) * scale;
                row.iter_mut().zip(down).for_each(|(sum, v)| *sum += weight * f64::from(*v));
            }
            delta.extend(row.iter().map(|v| *v as f32));
        }
        delta
    }

    /// What the layer's W becomes more, row-major [out, in · k · k]: ΔW; with DoRA's magnitudes what takes `matrix`, W, to
    /// m (W + ΔW) / ‖W + ΔW‖, with norms of rows.
    pub(crate) fn change(&self, matrix: &[f32]) -> Vec<f32> {
        let delta = self.delta();
        let Some(magnitudes) = &self.magnitude else { return delta };
        let columns = matrix.len() / self.up_shape[0];
        let mut change = Vec::with_capacity(matrix.len());
        let rows = matrix.chunks_exact(columns).zip(delta.chunks_exact(columns));
        for ((row, delta), magnitude) in rows.zip(magnitudes) {
            let sum = || row.iter().zip(delta).map(|(w, d)| f64::from(*w) + f64::from(*d));
            let norm = sum().map(|v| v * v).sum::<f64>().sqrt();
            let factor = f64::from(*magnitude) / norm;
            change.extend(sum().zip(row).map(|(v, w)| (v * factor - f64::from(*w)) as f32));
        }
        change
    }

    /// DoRA at a layer as a branch of full rank, whose ΔW is its [`change`](Self::change).
    pub(crate) fn renormed(&self, matrix: &[f32]) -> Self {
        let outputs = self.up_shape[0];
        let down = self.change(matrix);
        let mut up = vec![0.0; outputs * outputs];
        up.iter_mut().step_by(outputs + 1).for_each(|v| *v = 1.0);
        let (mut down_shape, mut up_shape) = (self.down_shape.clone(), self.up_shape.clone());
        (down_shape[0], up_shape[1]) = (outputs, outputs);
        Self { down, down_shape, up, up_shape, alpha: outputs as f32, magnitude: None }
    }

    /// Checks shapes against each other and against the number of values.
    pub(crate) fn check(&self, path: &Path, module: &str) -> Result<()> {
        let (down, up) = (&self.down_shape, &self.up_shape);
        let shapes = format!("{module}: lora_down {down:?} and lora_up {up:?}");
        let fail = |message: &str| Err(Error::file(path, format!("{shapes} {message}")));
        if !matches!(down.len(), 2 | 4) || !matches!(up.len(), 2 | 4) {
            return fail("must have 2 dimensions, or 4 for convolutions");
        }
        if up[2..].iter().any(|&side| side != 1) {
            return fail("are not a LoRA: the kernel of lora_up must be 1×1");
        }
        if down[0] != up[1] || down[0] == 0 {
            return fail(
                "do not share a rank: lora_down's first dimension must equal lora_up's second, and not be 0",
            );
        }
        if self.down.len() != down.iter().product::<usize>() || self.up.len() != up.iter().product::<usize>()
        {
            return fail(&format!("do not hold {} and {} values", self.down.len(), self.up.len()));
        }
        Ok(())
    }

    /// Both modules as one: y = x (down₁ ‖ down₂)ᵀ (s₁ up₁ ‖ s₂ up₂)ᵀ, with s = alpha / rank.
    fn beside(&self, other: &Self, name: &str) -> Result<Self> {
        if self.magnitude.is_some() || other.magnitude.is_some() {
            return Err(Error::Lora(format!(
                "{name} is DoRA, which is no sum; it cannot be put beside another LoRA"
            )));
        }
        let (down, up) = (&self.down_shape, &self.up_shape);
        if down[1..] != other.down_shape[1..] || up[0] != other.up_shape[0] || up[2..] != other.up_shape[2..]
        {
            return Err(Error::Lora(format!(
                "{name} has lora_down {down:?} and lora_up {up:?} in one file, {:?} and {:?} in another; they were made \
                 for different models",
                other.down_shape, other.up_shape
            )));
        }
        let ranks = [self.rank(), other.rank()];
        let rank = ranks[0] + ranks[1];
        let scale = |module: &Self| module.alpha / module.rank() as f32;
        let rows = |module: &Self| {
            let (scale, rank) = (scale(module), module.rank());
            module
                .up
                .chunks_exact(rank)
                .map(|row| row.iter().map(|v| v * scale).collect())
                .collect::<Vec<Vec<f32>>>()
        };
        let pairs = rows(self).into_iter().zip(rows(other));
        let (mut down_shape, mut up_shape) = (down.clone(), up.clone());
        (down_shape[0], up_shape[1]) = (rank, rank);
        Ok(Self {
            down: [&self.down[..], &other.down[..]].concat(),
            down_shape,
            up: pairs.flat_map(|(a, b)| [a, b].concat()).collect(),
            up_shape,
            alpha: rank as f32,
            magnitude: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norm_of_the_product() {
        let module = LoraModule {
            down: vec![1.0, -2.0, 0.5, 3.0, 0.0, 1.0],
            down_shape: vec![2, 3],
            up: vec![1.0, 2.0, -1.0, 4.0],
            up_shape: vec![2, 2],
            alpha: 1.0,
            magnitude: None,
        };
        // up · down = [[7, -2, 2.5], [11, 2, 3.5]], times 1/2
        let square = 49.0 + 4.0 + 6.25 + 121.0 + 4.0 + 12.25;
        assert!((module.norm() - 0.5 * f64::sqrt(square)).abs() < 1e-12);
    }
}
