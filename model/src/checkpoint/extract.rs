//! What a model was tuned to, as a LoRA.

use std::collections::BTreeMap;

use strata_engine::DType;

use super::Checkpoint;
use super::export::Target;
use super::save::{Files, Layer};
use crate::lora::{Spectrum, meant_layers};
use crate::progress::bar;
use crate::{Error, LoraWeights, Part, Result};

impl LoraWeights {
    /// The closest LoRA of a rank to what makes `tuned` of `base`, layer by layer: of the largest singular values of each ΔW. Layers
    /// that do not differ are left out. `pattern` says which are looked at, all without: terms as in a
    /// [`Selection`](crate::Selection), but with 3×3 convolutions wherever they are, and `text_encoder` for that. Host memory holds
    /// two layers at a time, beside the LoRA.
    ///
    /// # Errors
    /// The models are of different kinds or equal, a term hits nothing, the rank is 0, or a file cannot be read.
    pub fn extract(
        base: &Checkpoint,
        tuned: &Checkpoint,
        rank: usize,
        pattern: Option<&str>,
    ) -> Result<Self> {
        if rank == 0 {
            return Err(Error::Lora("rank 0; choose at least 1".into()));
        }
        let layers = base.layers()?;
        let (unet, text) = match pattern {
            Some(pattern) => meant_layers(pattern, &layers)?,
            None => (vec![true; layers.len()], true),
        };
        let meant = |(part, path): &Layer| match part {
            Part::Unet => layers.iter().zip(&unet).any(|(layer, hit)| *hit && layer.path == *path),
            _ => text,
        };
        let (mut own, others) = (base.targets()?, tuned.targets()?);
        own.retain(|layer, _| meant(layer));
        let names = [base, tuned].map(|model| model.path().display().to_string());
        let (mut files, mut modules, mut half) = (Files::default(), BTreeMap::new(), true);
        let progress = bar(own.len() as u64, "layers");
        for (layer, Target { info, place }) in &own {
            let Some(other) = others.get(layer).filter(|other| other.info == *info) else {
                return Err(Error::Lora(format!(
                    "{} of {} is no layer of {}, or of another size there: they are different kinds of model, and no LoRA makes one \
                     of the other",
                    layer.1, names[0], names[1]
                )));
            };
            half &= files.is_half(place)? && files.is_half(&other.place)?;
            let (before, after) = (files.read(place)?, files.read(&other.place)?);
            let change: Vec<f32> = after.iter().zip(&before).map(|(after, before)| after - before).collect();
            if change.iter().any(|v| *v != 0.0) {
                let spectrum = Spectrum::of_matrix(&change, info.outputs, rank)
                    .ok_or_else(|| Error::Lora(format!("{} has no singular values", layer.1)))?;
                let kept = rank.min(spectrum.values.len());
                let (down, up) = info.lora_shapes(kept);
                modules.insert(layer.clone(), spectrum.module(kept, down, up));
            }
            progress.inc(1);
        }
        progress.finish_and_clear();
        if modules.is_empty() {
            return Err(Error::Lora(format!(
                "{} and {} have the same weights at all {} layers that were looked at; there is nothing to extract",
                names[0],
                names[1],
                own.len()
            )));
        }
        let dtype = if half { DType::F16 } else { DType::F32 };
        let metadata = [
            ("ss_network_module", "networks.lora".to_owned()),
            ("ss_network_dim", rank.to_string()),
            ("ss_network_alpha", rank.to_string()),
        ];
        let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        Ok(Self { modules, embeddings: BTreeMap::new(), dtype, metadata })
    }
}
