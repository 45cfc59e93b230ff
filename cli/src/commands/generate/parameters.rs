//! What a picture's file says about how it was made, as A1111 writes and reads it.

use std::path::{Path, PathBuf};

use anyhow::Result;
use strata_model::{Embedding, Sigmas, embedding_hash, lora_hash};

use super::Generate;
use crate::commands::lora::Lora;

impl Generate {
    /// The text of the PNG's chunk `parameters`.
    pub(super) fn parameters(
        &self,
        loras: &[Lora],
        embeddings: &[Embedding],
        sigmas: Sigmas,
        [width, height]: [u32; 2],
        seed: u64,
    ) -> Result<String> {
        let mut text = self.prompt.clone();
        if !self.negative.is_empty() {
            text += &format!("\nNegative prompt: {}", self.negative);
        }
        let sampling = &self.sampling;
        let mut fields = vec![
            ("Steps", sampling.steps.to_string()),
            ("Sampler", sampling.sampler.title.to_owned()),
            ("Schedule type", if sigmas == Sigmas::Karras { "Karras" } else { "Automatic" }.to_owned()),
            ("CFG scale", sampling.guidance.to_string()),
            ("Seed", seed.to_string()),
            ("Size", format!("{width}x{height}")),
            ("Model", quoted(&stem(&self.model.model))),
        ];
        if self.init.is_some() {
            fields.push(("Denoising strength", self.strength().to_string()));
        }
        if self.clip_skip > 1 {
            fields.push(("Clip skip", self.clip_skip.to_string()));
        }
        if !loras.is_empty() {
            let hash = |lora: &Lora| Ok(format!("{}: {}", stem(&lora.path), lora_hash(&lora.path)?));
            let hashes = loras.iter().map(hash).collect::<Result<Vec<_>>>()?;
            fields.push(("Lora hashes", quoted(&hashes.join(", "))));
            let weight = |lora: &Lora| format!("{}: {}", stem(&lora.path), lora.weight);
            fields.push(("Lora weights", quoted(&loras.iter().map(weight).collect::<Vec<_>>().join(", "))));
        }
        if !embeddings.is_empty() {
            let paths = self.embedding.iter().map(|given| &given.path);
            let hash =
                |(own, path): (&Embedding, &PathBuf)| Ok(format!("{}: {}", own.word, embedding_hash(path)?));
            let hashes = embeddings.iter().zip(paths).map(hash).collect::<Result<Vec<_>>>()?;
            fields.push(("TI hashes", quoted(&hashes.join(", "))));
        }
        fields.push(("Version", format!("Strata {}", env!("CARGO_PKG_VERSION"))));
        let fields: Vec<String> = fields.into_iter().map(|(key, value)| format!("{key}: {value}")).collect();
        Ok(format!("{text}\n{}", fields.join(", ")))
    }
}

/// The name of a file or folder, without its extension.
fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// In quotes, as A1111 puts them, where a value has what separates values.
fn quoted(value: &str) -> String {
    if value.contains([',', ':', '\n']) { format!("{value:?}") } else { value.to_owned() }
}
