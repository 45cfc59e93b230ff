//! LoRA files in kohya's naming, the one form that every Stable Diffusion program reads.
//!
//! Per module three tensors: `<module>.lora_down.weight` [r, in], `<module>.lora_up.weight` [out, r] and `<module>.alpha`,
//! a scalar. Convolutions have [r, in, k, k] and [out, r, 1, 1]. ΔW = alpha / r · up · down.

use crate::atomic::write_atomic;
use crate::tensor_file::{TensorFile, header};
use crate::{Error, Result};
use half::f16;
use safetensors::tensor::Dtype;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

/// A LoRA as it lies on disk.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraFile {
    /// By kohya's module name; see [`kohya_name`].
    pub modules: BTreeMap<String, LoraModule>,
    /// The type tensors are written in.
    pub dtype: LoraDtype,
    /// The header's free-form strings (`ss_*`, `modelspec.*`).
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
}

/// The number format of a LoRA file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoraDtype {
    /// 32 bits.
    F32,
    /// 16 bits.
    F16,
}

/// Kohya's name of a U-Net module: `lora_unet_` and the diffusers path with `.` turned into `_`.
pub fn kohya_name(diffusers_path: &str) -> String {
    format!("lora_unet_{}", diffusers_path.replace('.', "_"))
}

const DOWN: &str = ".lora_down.weight";
const UP: &str = ".lora_up.weight";
const ALPHA: &str = ".alpha";

impl LoraModule {
    /// r: how many rows `down` has.
    pub fn rank(&self) -> usize {
        self.down_shape.first().copied().unwrap_or(0)
    }

    /// What ΔW is multiplied with: alpha / rank.
    pub fn scale(&self) -> f32 {
        self.alpha / self.rank() as f32
    }

    /// Checks shapes against each other and against the number of values.
    fn check(&self, path: &Path, module: &str) -> Result<()> {
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
}

impl LoraModule {
    /// Both modules as one: y = x (down₁ ‖ down₂)ᵀ (s₁ up₁ ‖ s₂ up₂)ᵀ, with s = alpha / rank.
    fn beside(&self, other: &Self, name: &str) -> Result<Self> {
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
        })
    }
}

impl LoraFile {
    /// Reads a kohya file: F16, BF16, F32 or F64 (alphas also I64), any mix of modules. A missing alpha means
    /// alpha = rank. `dtype` comes out as F16 if every tensor is, else as F32, so that writing again loses nothing.
    ///
    /// # Errors
    /// The file is damaged; a key is of another kind of adaptation (LoHa, LoKr, DoRA, …), of another naming, or
    /// unknown; a module lacks one of its halves; shapes do not fit.
    pub fn read(path: &Path) -> Result<Self> {
        let mut file = TensorFile::open(path)?;
        let infos = file.tensors();
        let dtype =
            if infos.values().all(|info| info.dtype == Dtype::F16) { LoraDtype::F16 } else { LoraDtype::F32 };
        let keys: Vec<(String, Vec<usize>)> =
            infos.iter().map(|(key, info)| (key.clone(), info.shape.clone())).collect();
        if keys.is_empty() {
            return Err(Error::file(path, "holds no tensors, so no LoRA"));
        }

        let mut modules: BTreeMap<String, LoraModule> = BTreeMap::new();
        for (key, shape) in keys {
            let part =
                [DOWN, UP, ALPHA].into_iter().find_map(|suffix| Some((key.strip_suffix(suffix)?, suffix)));
            let Some((module, suffix)) = part else { return Err(foreign_key(path, &key)) };
            let nothing = || LoraModule {
                down: vec![],
                down_shape: vec![],
                up: vec![],
                up_shape: vec![],
                alpha: f32::NAN,
            };
            let module = modules.entry(module.to_string()).or_insert_with(nothing);
            let values = file.read(&key)?;
            match suffix {
                DOWN => (module.down, module.down_shape) = (values, shape),
                UP => (module.up, module.up_shape) = (values, shape),
                _ => match values[..] {
                    [alpha] if alpha.is_finite() => module.alpha = alpha,
                    _ => {
                        return Err(Error::file(
                            path,
                            format!("{key} must be one finite number, not {values:?} of shape {shape:?}"),
                        ));
                    }
                },
            }
        }
        for (name, module) in &mut modules {
            for (half, shape) in [(DOWN, &module.down_shape), (UP, &module.up_shape)] {
                if shape.is_empty() {
                    return Err(Error::file(
                        path,
                        format!("{name}{half} is missing, but other tensors of this module are there"),
                    ));
                }
            }
            module.check(path, name)?;
            if module.alpha.is_nan() {
                module.alpha = module.rank() as f32;
            }
        }
        Ok(Self { modules, dtype, metadata: file.metadata().clone() })
    }

    /// Writes the file whole or not at all. Equal contents give equal bytes.
    ///
    /// # Errors
    /// Shapes do not fit; a value is not finite, or would not be as F16; or the file cannot be written (what was at
    /// `path` before is then still there).
    pub fn write(&self, path: &Path) -> Result<()> {
        // Sorted by full key: the order of the data, and of the header.
        let mut tensors: BTreeMap<String, (Vec<usize>, &[f32])> = BTreeMap::new();
        for (name, module) in &self.modules {
            module.check(path, name)?;
            tensors.insert(format!("{name}{DOWN}"), (module.down_shape.clone(), &module.down));
            tensors.insert(format!("{name}{UP}"), (module.up_shape.clone(), &module.up));
            tensors.insert(format!("{name}{ALPHA}"), (vec![], std::slice::from_ref(&module.alpha)));
        }
        for (key, (_, values)) in &tensors {
            self.check_finite(path, key, values)?;
        }
        let dtype = match self.dtype {
            LoraDtype::F32 => Dtype::F32,
            LoraDtype::F16 => Dtype::F16,
        };
        let shapes = tensors.iter().map(|(key, (shape, _))| (key.as_str(), shape.clone()));
        let header = header(dtype, shapes, &self.metadata).map_err(|e| Error::file(path, e.to_string()))?;
        write_atomic(path, |out| {
            out.write_all(&header)?;
            tensors.values().try_for_each(|(_, values)| self.write_values(out, values))
        })
    }

    /// One file that does what several do together: where several have a module, their ranks lie side by side, each
    /// `up` multiplied by its alpha / rank, and alpha is the sum of the ranks. Of metadata the files agree on is kept;
    /// the tags of all are in `strata_tags`.
    ///
    /// # Errors
    /// A module has another size, or is another kind of layer, in one file than in another.
    pub fn combine(files: &[LoraFile]) -> Result<Self> {
        let mut modules: BTreeMap<String, LoraModule> = BTreeMap::new();
        for (name, module) in files.iter().flat_map(|file| &file.modules) {
            let together = match modules.remove(name) {
                None => module.clone(),
                Some(before) => before.beside(module, name)?,
            };
            modules.insert(name.clone(), together);
        }
        let all_half = files.iter().all(|file| file.dtype == LoraDtype::F16);
        let dtype = if all_half { LoraDtype::F16 } else { LoraDtype::F32 };
        let mut metadata = files.first().map_or_else(BTreeMap::new, |file| file.metadata.clone());
        metadata.retain(|key, value| files.iter().all(|file| file.metadata.get(key) == Some(value)));
        let mut tags = Vec::new();
        for file in files {
            tags.extend(crate::trigger::tags_of(&file.metadata)?);
        }
        metadata.insert("strata_tags".into(), serde_json::json!(tags).to_string());
        metadata.insert("modelspec.trigger_phrase".into(), tags.join(", "));
        Ok(Self { modules, dtype, metadata })
    }

    fn write_values(&self, out: &mut dyn Write, values: &[f32]) -> io::Result<()> {
        let bytes: Vec<u8> = match self.dtype {
            LoraDtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            LoraDtype::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        };
        out.write_all(&bytes)
    }

    fn check_finite(&self, path: &Path, key: &str, values: &[f32]) -> Result<()> {
        if let Some(bad) = values.iter().find(|v| !v.is_finite()) {
            return Err(Error::file(
                path,
                format!("not written: {key} holds {bad}; the training has diverged, lower the learning rate"),
            ));
        }
        let overflows = |v: &&f32| self.dtype == LoraDtype::F16 && f16::from_f32(**v).is_infinite();
        if let Some(big) = values.iter().find(overflows) {
            return Err(Error::file(
                path,
                format!("not written: {key} holds {big}, too large for F16; save as F32"),
            ));
        }
        Ok(())
    }
}

/// Says what a key that is not kohya LoRA is instead.
fn foreign_key(path: &Path, key: &str) -> Error {
    let kinds = [
        (".hada_", "of a LoHa file, which Strata does not read"),
        (".lokr_", "of a LoKr file, which Strata does not read"),
        (".dora_scale", "of a DoRA file, which Strata does not read"),
        (".lora_magnitude_vector", "of a DoRA file, which Strata does not read"),
        (".lora_mid.", "of a LoCon file with Tucker decomposition, which Strata does not read"),
        (".oft_", "of an OFT file, which Strata does not read"),
        (".diff", "of a file of full weight differences, which Strata does not read"),
        (
            "bundle_emb.",
            "an embedding bundled with the LoRA, which Strata does not read; save the LoRA without it",
        ),
        (".lora_A.", "PEFT's naming; convert it with diffusers' `convert_state_dict_to_kohya`"),
        (".lora.", "diffusers' naming; convert it with diffusers' `convert_state_dict_to_kohya`"),
        ("_lora.", "diffusers' old naming; convert it with diffusers' `convert_state_dict_to_kohya`"),
    ];
    let kind = kinds.iter().find(|(mark, _)| key.contains(mark)).map(|(_, kind)| *kind);
    let kind =
        kind.unwrap_or("unknown; expected names that end in .lora_down.weight, .lora_up.weight or .alpha");
    Error::file(path, format!("not a kohya LoRA: the key `{key}` is {kind}"))
}
