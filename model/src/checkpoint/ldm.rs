//! The names that single files have for tensors: those of the code that Stable Diffusion was first trained with (LDM).

use crate::tensor_file::{Chunk, TensorFile};
use crate::weights::{Stored, Weights};
use crate::{Blocks, WeightInfo};

/// How one component is named, after a prefix of its own.
#[derive(Debug, Clone)]
pub(super) enum Naming {
    /// By numbered blocks.
    Unet(Blocks),
    /// With up blocks counted from the finest of so many levels.
    Vae { levels: usize },
    /// As transformers names it.
    Clip,
    /// With query, key and value in one tensor. There is one more layer than the `layers` that are used.
    OpenClip { layers: usize },
}

impl Naming {
    /// What a single file calls a tensor that diffusers calls `tensor`.
    pub fn stored(&self, tensor: &str) -> Option<Stored> {
        let whole = |name: String| Stored { name, chunk: Chunk::WHOLE };
        match self {
            Self::Unet(blocks) => {
                let (module, end) = tensor.rsplit_once('.')?;
                Some(whole(format!("{}.{end}", blocks.ldm_path(module)?)))
            }
            Self::Vae { levels } => vae(tensor, *levels).map(whole),
            Self::Clip => Some(whole(tensor.to_owned())),
            Self::OpenClip { .. } => open_clip(tensor),
        }
    }

    /// Whether a tensor, whose name in the file this is, has no part in what is computed: counters, what belongs to CLIP's
    /// other half or to training, and the layer that Stable Diffusion 2 leaves out.
    fn carries_nothing(&self, name: &str) -> bool {
        match self {
            Self::Unet(_) => false,
            Self::Vae { .. } => name.starts_with("loss.") || name.starts_with("model_ema."),
            Self::Clip => {
                name.ends_with("position_ids")
                    || ["text_projection", "logit_scale"].iter().any(|part| name.starts_with(part))
            }
            Self::OpenClip { layers } => {
                ["text_projection", "logit_scale", "attn_mask", "visual."]
                    .iter()
                    .any(|part| name.starts_with(part))
                    || name.starts_with(&format!("transformer.resblocks.{layers}."))
            }
        }
    }

    /// A component's share of a file, as diffusers names it. `tensors` are those of the component's configuration; names in
    /// the file begin with `prefix`.
    pub fn weights(&self, file: TensorFile, prefix: &str, tensors: Vec<WeightInfo>) -> Weights {
        let wanted: Vec<(String, Stored)> = tensors
            .into_iter()
            .filter_map(|mut info| {
                let tensor = info.names.swap_remove(0);
                let Stored { name, chunk } = self.stored(&tensor)?;
                Some((tensor, Stored { name: format!("{prefix}{name}"), chunk }))
            })
            .collect();
        let own = |name: &&String| name.strip_prefix(prefix).is_some_and(|name| !self.carries_nothing(name));
        let own: Vec<String> = file.tensors().keys().filter(own).cloned().collect();
        Weights::renamed(file, wanted, own)
    }
}

fn vae(tensor: &str, levels: usize) -> Option<String> {
    let parts: Vec<&str> = tensor.split('.').collect();
    let from_finest = |block: &str| levels.checked_sub(block.parse::<usize>().ok()? + 1);
    Some(match parts[..] {
        [side, "down_blocks", i, "resnets", j, ref rest @ ..] => {
            format!("{side}.down.{i}.block.{j}.{}", vae_resnet(rest))
        }
        [side, "down_blocks", i, "downsamplers", _, ref rest @ ..] => {
            format!("{side}.down.{i}.downsample.{}", rest.join("."))
        }
        [side, "up_blocks", i, "resnets", j, ref rest @ ..] => {
            format!("{side}.up.{}.block.{j}.{}", from_finest(i)?, vae_resnet(rest))
        }
        [side, "up_blocks", i, "upsamplers", _, ref rest @ ..] => {
            format!("{side}.up.{}.upsample.{}", from_finest(i)?, rest.join("."))
        }
        [side, "mid_block", "resnets", j, ref rest @ ..] => {
            format!("{side}.mid.block_{}.{}", j.parse::<usize>().ok()? + 1, vae_resnet(rest))
        }
        [side, "mid_block", "attentions", _, layer, ref rest @ ..] => {
            let layer = match layer {
                "group_norm" => "norm",
                "to_q" => "q",
                "to_k" => "k",
                "to_v" => "v",
                "to_out" => "proj_out",
                _ => return None,
            };
            format!("{side}.mid.attn_1.{layer}.{}", rest.last()?)
        }
        [side, "conv_norm_out", end] => format!("{side}.norm_out.{end}"),
        _ => tensor.to_owned(),
    })
}

fn vae_resnet(rest: &[&str]) -> String {
    rest.join(".").replace("conv_shortcut", "nin_shortcut")
}

fn open_clip(tensor: &str) -> Option<Stored> {
    let whole = |name: String| Some(Stored { name, chunk: Chunk::WHOLE });
    let Some((layer, rest)) = tensor.strip_prefix("encoder.layers.").and_then(|rest| rest.split_once('.'))
    else {
        return whole(match tensor {
            "embeddings.position_embedding.weight" => "positional_embedding".to_owned(),
            "embeddings.token_embedding.weight" => "token_embedding.weight".to_owned(),
            _ => format!("ln_final.{}", tensor.strip_prefix("final_layer_norm.")?),
        });
    };
    let (module, end) = rest.rsplit_once('.')?;
    let name = match module {
        "self_attn.out_proj" => "attn.out_proj",
        "layer_norm1" => "ln_1",
        "layer_norm2" => "ln_2",
        "mlp.fc1" => "mlp.c_fc",
        "mlp.fc2" => "mlp.c_proj",
        _ => {
            let projections = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];
            let index = projections.iter().position(|projection| *projection == module)?;
            let name = format!("transformer.resblocks.{layer}.attn.in_proj_{end}");
            return Some(Stored { name, chunk: Chunk { index, of: 3 } });
        }
    };
    whole(format!("transformer.resblocks.{layer}.{name}.{end}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{UnetConfig, layers_of};

    #[test]
    fn names_of_each_part() {
        let unet = Naming::Unet(Blocks::new(&layers_of(&UnetConfig::sd15()).unwrap()));
        let (vae, text) = (Naming::Vae { levels: 4 }, Naming::OpenClip { layers: 23 });
        for (naming, diffusers, ldm) in [
            (&unet, "conv_norm_out.bias", "out.0.bias"),
            (&unet, "conv_out.weight", "out.2.weight"),
            (&unet, "time_embedding.linear_2.weight", "time_embed.2.weight"),
            (&unet, "down_blocks.1.resnets.0.norm1.weight", "input_blocks.4.0.in_layers.0.weight"),
            (&unet, "down_blocks.0.downsamplers.0.conv.bias", "input_blocks.3.0.op.bias"),
            (&unet, "mid_block.resnets.1.norm2.bias", "middle_block.2.out_layers.0.bias"),
            (&unet, "mid_block.attentions.0.norm.bias", "middle_block.1.norm.bias"),
            (&unet, "up_blocks.0.upsamplers.0.conv.weight", "output_blocks.2.1.conv.weight"),
            (&unet, "up_blocks.1.upsamplers.0.conv.weight", "output_blocks.5.2.conv.weight"),
            (
                &unet,
                "up_blocks.3.attentions.2.transformer_blocks.0.attn1.to_out.0.bias",
                "output_blocks.11.1.transformer_blocks.0.attn1.to_out.0.bias",
            ),
            (
                &vae,
                "decoder.up_blocks.0.resnets.2.conv_shortcut.bias",
                "decoder.up.3.block.2.nin_shortcut.bias",
            ),
            (&vae, "decoder.up_blocks.2.upsamplers.0.conv.bias", "decoder.up.1.upsample.conv.bias"),
            (&vae, "encoder.down_blocks.1.downsamplers.0.conv.bias", "encoder.down.1.downsample.conv.bias"),
            (&vae, "encoder.mid_block.attentions.0.to_out.0.weight", "encoder.mid.attn_1.proj_out.weight"),
            (&vae, "encoder.mid_block.resnets.1.norm1.bias", "encoder.mid.block_2.norm1.bias"),
            (&vae, "encoder.conv_norm_out.bias", "encoder.norm_out.bias"),
            (&vae, "post_quant_conv.bias", "post_quant_conv.bias"),
            (&text, "final_layer_norm.bias", "ln_final.bias"),
            (&text, "encoder.layers.22.mlp.fc2.bias", "transformer.resblocks.22.mlp.c_proj.bias"),
        ] {
            let stored = Stored { name: ldm.into(), chunk: Chunk::WHOLE };
            assert_eq!(naming.stored(diffusers), Some(stored), "{diffusers}");
        }
        let key = text.stored("encoder.layers.0.self_attn.k_proj.bias");
        let joined = "transformer.resblocks.0.attn.in_proj_bias".to_owned();
        assert_eq!(key, Some(Stored { name: joined, chunk: Chunk { index: 1, of: 3 } }));
        assert!(text.carries_nothing("transformer.resblocks.23.ln_1.bias"));
        assert!(!text.carries_nothing("transformer.resblocks.24.ln_1.bias"));
    }
}
