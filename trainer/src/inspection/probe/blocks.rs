//! Which blocks carry a feature: the LoRA of each block alone.

use std::collections::BTreeMap;

use strata_model::{LayerInfo, LoraWeights, Part as ModelPart};

use super::{Block, Matrix};

/// The part of a LoRA that lies in one block.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// `down_blocks.1`, `mid_block`, …; for layers in no block, the first part of their name, such as `time_embedding`.
    pub block: String,
    /// The modules in it.
    pub lora: LoraWeights,
}

/// Cuts a LoRA into those of the blocks that a U-Net with such layers has, in the order of the data.
pub fn parts(lora: &LoraWeights, layers: &[LayerInfo]) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for layer in layers {
        let Some(module) = lora.unet(&layer.path) else { continue };
        let block = block_of(&layer.path);
        let at = parts.iter().position(|part| part.block == block).unwrap_or_else(|| {
            let lora = LoraWeights {
                modules: BTreeMap::new(),
                embeddings: BTreeMap::new(),
                dtype: lora.dtype,
                metadata: BTreeMap::new(),
            };
            parts.push(Part { block: block.to_owned(), lora });
            parts.len() - 1
        });
        parts[at].lora.modules.insert((ModelPart::Unet, layer.path.clone()), module.clone());
    }
    parts
}

fn block_of(path: &str) -> &str {
    let mut dots = path.match_indices('.').map(|(at, _)| at);
    let first = dots.next().unwrap_or(path.len());
    match &path[..first] {
        "down_blocks" | "up_blocks" => &path[..dots.next().unwrap_or(path.len())],
        block => block,
    }
}

pub(super) fn blocks(parts: &[Part], matrices: Vec<Matrix>) -> Vec<Block> {
    let total: f64 = matrices.iter().map(Matrix::drift).sum();
    let block = |(part, matrix): (&Part, Matrix)| Block {
        block: part.block.clone(),
        layers: part.lora.modules.len(),
        parameters: part.lora.modules.values().map(|module| module.down.len() + module.up.len()).sum(),
        share: if total > 0.0 { matrix.drift() / total } else { 0.0 },
        alone: matrix,
    };
    parts.iter().zip(matrices).map(block).collect()
}

#[cfg(test)]
mod tests {
    use super::block_of;

    #[test]
    fn blocks_by_path() {
        let cases = [
            ("down_blocks.1.attentions.0.proj_in", "down_blocks.1"),
            ("up_blocks.3.resnets.2.time_emb_proj", "up_blocks.3"),
            ("mid_block.attentions.0.proj_in", "mid_block"),
            ("time_embedding.linear_1", "time_embedding"),
            ("conv_in", "conv_in"),
        ];
        cases.iter().for_each(|(path, block)| assert_eq!(block_of(path), *block));
    }
}
