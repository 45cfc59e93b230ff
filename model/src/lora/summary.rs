//! What a LoRA is, at a glance.

use std::collections::BTreeMap;

use super::weights::{LoraModule, LoraWeights, Part};
use crate::trigger::tags_of;
use crate::{Result, kohya_name};

/// What there is to say about a LoRA.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct LoraSummary {
    /// Layers that it changes.
    pub modules: usize,
    /// Numbers in it.
    pub parameters: usize,
    /// `f32` or `f16`: what its numbers are in files.
    pub dtype: &'static str,
    /// The smallest and the largest rank.
    pub rank: [usize; 2],
    /// The smallest and the largest alpha.
    pub alpha: [f32; 2],
    /// Modules with a magnitude (DoRA).
    pub dora: usize,
    /// The tags that its metadata name.
    pub tags: Vec<String>,
    /// Its blocks, in the order of their paths, the U-Net's first.
    pub blocks: Vec<BlockSummary>,
    /// Its header's strings.
    pub metadata: BTreeMap<String, String>,
}

/// The modules of a block together.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct BlockSummary {
    /// `down_blocks.1.attentions.0`; of a text encoder its name and layer.
    pub block: String,
    /// How many they are.
    pub modules: usize,
    /// The smallest and the largest rank.
    pub rank: [usize; 2],
    /// The smallest and the largest alpha.
    pub alpha: [f32; 2],
    /// The root of the sum of squares of every ΔW in it.
    pub norm: f64,
}

impl LoraSummary {
    /// Of a LoRA.
    ///
    /// # Errors
    /// Its `strata_tags` are not a list of strings.
    pub fn new(lora: &LoraWeights) -> Result<Self> {
        let mut blocks: BTreeMap<(Part, String), Vec<&LoraModule>> = BTreeMap::new();
        for ((part, path), module) in &lora.modules {
            blocks.entry((*part, block(*part, path))).or_default().push(module);
        }
        let all: Vec<&LoraModule> = lora.modules.values().collect();
        Ok(Self {
            modules: all.len(),
            parameters: all.iter().map(|module| module.down.len() + module.up.len()).sum(),
            dtype: lora.dtype.wgsl(),
            rank: ranks(&all),
            alpha: alphas(&all),
            dora: all.iter().filter(|module| module.magnitude.is_some()).count(),
            tags: tags_of(&lora.metadata)?,
            blocks: blocks
                .into_iter()
                .map(|((_, block), modules)| BlockSummary {
                    block,
                    modules: modules.len(),
                    rank: ranks(&modules),
                    alpha: alphas(&modules),
                    norm: modules.iter().map(|module| module.norm().powi(2)).sum::<f64>().sqrt(),
                })
                .collect(),
            metadata: lora.metadata.clone(),
        })
    }
}

fn ranks(modules: &[&LoraModule]) -> [usize; 2] {
    let all = || modules.iter().map(|module| module.rank());
    [all().min().unwrap_or(0), all().max().unwrap_or(0)]
}

fn alphas(modules: &[&LoraModule]) -> [f32; 2] {
    let all = || modules.iter().map(|module| module.alpha);
    [all().min_by(f32::total_cmp).unwrap_or(0.0), all().max_by(f32::total_cmp).unwrap_or(0.0)]
}

/// The block of a layer: a residual block, a transformer or a sampler, or a layer of a text encoder.
fn block(part: Part, path: &str) -> String {
    let names: Vec<&str> = path.split('.').collect();
    let first = |count: usize| names[..count.min(names.len())].join(".");
    match part {
        // `text_model.encoder.layers.3.mlp.fc1`
        Part::TextEncoder | Part::TextEncoder2 => {
            let prefix = kohya_name(part, "");
            format!("{} {}", prefix.trim_end_matches('_'), names.get(3).map_or(path, |layer| layer))
        }
        Part::Unet => match names[0] {
            "down_blocks" | "up_blocks" => first(4),
            "mid_block" => first(3),
            _ => first(1),
        },
    }
}
