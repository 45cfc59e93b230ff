//! Kohya's naming, the one that every Stable Diffusion program reads, with LyCORIS' kinds of modules.
//!
//! `<module>.lora_down.weight` [r, in], `<module>.lora_up.weight` [out, r] and `<module>.alpha`, a scalar; convolutions have
//! [r, in, k, k] and [out, r, 1, 1]. ΔW = alpha / r · up · down, and alpha = r where it is missing. A module's name is the part
//! of the model and diffusers' path with `.` turned into `_`.

use std::collections::BTreeMap;
use std::path::Path;

use super::module::Role;
use super::{Key, write_tensors};
use crate::{Embedding, LoraWeights, Part, Result};

const DOWN: &str = "lora_down.weight";
const UP: &str = "lora_up.weight";
const ALPHA: &str = "alpha";
const MAGNITUDE: &str = "dora_scale";

/// What may stand behind the name of a module.
const ROLES: [(&str, Role); 19] = [
    (DOWN, Role::Down),
    (UP, Role::Up),
    (ALPHA, Role::Alpha),
    (MAGNITUDE, Role::Magnitude),
    ("lora_mid.weight", Role::Mid),
    ("diff", Role::Diff),
    ("hada_w1_a", Role::HadaW1A),
    ("hada_w1_b", Role::HadaW1B),
    ("hada_w2_a", Role::HadaW2A),
    ("hada_w2_b", Role::HadaW2B),
    ("hada_t1", Role::HadaT1),
    ("hada_t2", Role::HadaT2),
    ("lokr_w1", Role::LokrW1),
    ("lokr_w1_a", Role::LokrW1A),
    ("lokr_w1_b", Role::LokrW1B),
    ("lokr_w2", Role::LokrW2),
    ("lokr_w2_a", Role::LokrW2A),
    ("lokr_w2_b", Role::LokrW2B),
    ("lokr_t2", Role::LokrT2),
];

/// What module names begin with. SDXL's two text encoders are numbered.
const PREFIXES: [(&str, Part); 4] = [
    ("lora_unet_", Part::Unet),
    ("lora_te_", Part::TextEncoder),
    ("lora_te1_", Part::TextEncoder),
    ("lora_te2_", Part::TextEncoder2),
];

/// Names within a path that have a `_` of their own; all others come apart at it.
const WHOLE: [&str; 24] = [
    "add_embedding",
    "conv_in",
    "conv_out",
    "conv_shortcut",
    "down_blocks",
    "linear_1",
    "linear_2",
    "mid_block",
    "out_proj",
    "k_proj",
    "q_proj",
    "v_proj",
    "proj_in",
    "proj_out",
    "self_attn",
    "text_model",
    "time_emb_proj",
    "time_embedding",
    "to_k",
    "to_out",
    "to_q",
    "to_v",
    "transformer_blocks",
    "up_blocks",
];

/// Kohya's name of a module: `lora_unet_down_blocks_0_attentions_1_proj_in`.
pub fn kohya_name(part: Part, path: &str) -> String {
    let prefix = PREFIXES.iter().find(|(_, own)| *own == part).map_or("", |(prefix, _)| prefix);
    format!("{prefix}{}", path.replace('.', "_"))
}

/// The part and the path that kohya's name stands for. Names that no model has come apart at every `_`, so that they are
/// written again as they were read.
fn place(name: &str) -> Option<(Part, String)> {
    let (mut rest, part) =
        PREFIXES.iter().find_map(|(prefix, part)| Some((name.strip_prefix(prefix)?, *part)))?;
    let mut path = Vec::new();
    while !rest.is_empty() {
        let begins = |whole: &&&str| {
            rest.strip_prefix(**whole).is_some_and(|after| after.is_empty() || after.starts_with('_'))
        };
        let length =
            WHOLE.iter().find(begins).map_or(rest.find('_').unwrap_or(rest.len()), |whole| whole.len());
        path.push(&rest[..length]);
        rest = rest[length..].strip_prefix('_').unwrap_or("");
    }
    Some((part, path.join(".")))
}

/// What a key stands for, if it is kohya's.
pub(super) fn key(key: &str) -> Option<Key> {
    let (name, suffix) = key.split_once('.')?;
    let (_, role) = ROLES.iter().find(|(own, _)| *own == suffix)?;
    let (part, path) = place(name)?;
    Some(Key { part, path, role: *role })
}

/// Writes a LoRA; see [`LoraWeights::write`].
pub fn write(lora: &LoraWeights, path: &Path) -> Result<()> {
    let mut tensors: BTreeMap<String, (Vec<usize>, &[f32])> = BTreeMap::new();
    for ((part, layer), module) in &lora.modules {
        let name = kohya_name(*part, layer);
        module.check(path, &name)?;
        tensors.insert(format!("{name}.{DOWN}"), (module.down_shape.clone(), &module.down));
        tensors.insert(format!("{name}.{UP}"), (module.up_shape.clone(), &module.up));
        tensors.insert(format!("{name}.{ALPHA}"), (vec![], std::slice::from_ref(&module.alpha)));
        if let Some(magnitude) = &module.magnitude {
            let mut shape = vec![1; module.down_shape.len()];
            shape[0] = magnitude.len();
            tensors.insert(format!("{name}.{MAGNITUDE}"), (shape, magnitude));
        }
    }
    for (name, shape, values) in lora.embeddings.values().flat_map(Embedding::tensors) {
        tensors.insert(name, (shape, values));
    }
    write_tensors(path, &tensors, lora.dtype, &lora.metadata)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{UnetConfig, layers_of};

    #[test]
    fn names_stand_for_paths() {
        let unet = layers_of(&UnetConfig::sd15()).unwrap();
        assert_eq!(unet.len(), 282);
        let text = ["self_attn.q_proj", "self_attn.out_proj", "mlp.fc1"]
            .map(|layer| (Part::TextEncoder, format!("text_model.encoder.layers.11.{layer}")));
        let all = unet.into_iter().map(|layer| (Part::Unet, layer.path)).chain(text);
        let other = [(Part::Unet, "foo.bar.0".to_owned()), (Part::TextEncoder2, "text_model.x".into())];
        for (part, path) in all.chain(other) {
            assert_eq!(place(&kohya_name(part, &path)), Some((part, path)));
        }
        assert_eq!(place("lora_te1_text_model_x"), Some((Part::TextEncoder, "text_model.x".into())));
        assert_eq!(place("unet_conv_in"), None);
    }
}
