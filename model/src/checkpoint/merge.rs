//! LoRAs folded into the weights of a model.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::tensor::Dtype;

use super::Checkpoint;
use super::export::{Target, copy};
use super::save::{Files, Layer};
use crate::error::listing;
use crate::lora::check_shapes;
use crate::progress::bar;
use crate::{Error, LoraWeights, Result, check_room, counted, make_folder};

/// The number format that a model is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbers {
    /// 16 bits, as most models have.
    F16,
    /// 16 bits of f32's range.
    Bf16,
    /// 32 bits.
    F32,
}

impl Checkpoint {
    /// Writes the model with LoRAs in its weights: W + Σ ratio · ΔW, summed in f32. `out` is a single file if its name ends in
    /// `.safetensors`, else a folder in diffusers' layout. Tensors keep their number format without `numbers`, and those that
    /// no LoRA changes their bits; 8-bit ones that one does become F16. Averaged weights of a single file are left out. Host memory
    /// holds a tensor at a time.
    ///
    /// # Errors
    /// A module is no layer of this model or of another size; a value is too large for its format; configurations for a folder
    /// are missing; or a file cannot be read or written.
    pub fn merge(&self, loras: &[(LoraWeights, f32)], out: &Path, numbers: Option<Numbers>) -> Result<()> {
        let fresh = !out.exists();
        let written = self.write_merged(loras, out, numbers);
        if written.is_err() && fresh && out.is_dir() {
            // what is there is no model; that it stays does no harm
            let _ = fs::remove_dir_all(out);
        }
        written
    }

    /// Holds a LoRA to the layers of this model.
    ///
    /// # Errors
    /// A module is no layer of this model or of another size, or the weights cannot be read.
    pub fn check_lora(&self, lora: &LoraWeights) -> Result<()> {
        self.check_fits(lora, &self.targets()?)
    }

    fn check_fits(&self, lora: &LoraWeights, targets: &BTreeMap<Layer, Target>) -> Result<()> {
        let mut left = Vec::new();
        for ((part, path), module) in &lora.modules {
            match targets.get(&(*part, path.clone())) {
                Some(target) => check_shapes(path, module, &target.info)?,
                None => left.push(format!("{path} of {part}")),
            }
        }
        if left.is_empty() {
            return Ok(());
        }
        let (count, names) = (counted(left.len(), "module"), listing(&left));
        let are = if left.len() == 1 { "is" } else { "are" };
        Err(Error::Lora(format!("{count} {are} no layer of {}: {names}", self.path().display())))
    }

    fn write_merged(&self, loras: &[(LoraWeights, f32)], out: &Path, numbers: Option<Numbers>) -> Result<()> {
        let mut targets = self.targets()?;
        loras.iter().try_for_each(|(lora, _)| self.check_fits(lora, &targets))?;
        let changes = |layer: &Layer| {
            loras.iter().any(|(lora, ratio)| *ratio != 0.0 && lora.modules.contains_key(layer))
        };
        targets.retain(|layer, _| changes(layer));
        let dtype = numbers.map(|numbers| match numbers {
            Numbers::F16 => Dtype::F16,
            Numbers::Bf16 => Dtype::BF16,
            Numbers::F32 => Dtype::F32,
        });
        let (export, mut files) = (self.export(out, &targets)?, Files::default());
        let mut size = 0;
        for output in &export.outputs {
            size += output.size(&mut files, dtype)?;
        }
        for output in &export.outputs {
            make_folder(output.path.parent().filter(|at| *at != Path::new("")).unwrap_or(Path::new(".")))?;
        }
        if let Some(first) = export.outputs.first() {
            check_room(&first.path, size)?;
        }
        let mut add = |layer: &Layer, values: &mut [f32]| {
            // all see the model's own weights
            let own = values.to_vec();
            for (lora, ratio) in loras.iter().filter(|(_, ratio)| *ratio != 0.0) {
                let Some(module) = lora.modules.get(layer) else { continue };
                let change = module.change(&own);
                values.iter_mut().zip(change).for_each(|(value, change)| *value += ratio * change);
            }
            Ok(())
        };
        let count: usize = export.outputs.iter().map(|output| output.entries.len()).sum();
        let progress = bar(count as u64, "tensors");
        for output in &export.outputs {
            output.write(&mut files, dtype, &mut add, || progress.inc(1))?;
        }
        progress.finish_and_clear();
        copy(&export.copies)
    }
}
