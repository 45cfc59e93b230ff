//! LoRA files in kohya's naming, the one form that every Stable Diffusion program reads.
//!
//! Per module three tensors: `<module>.lora_down.weight` [r, in], `<module>.lora_up.weight` [out, r] and `<module>.alpha`,
//! a scalar. Convolutions have [r, in, k, k] and [out, r, 1, 1]. ΔW = alpha / r · up · down. A module's name is the part of
//! the model and diffusers' path with `.` turned into `_`.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use half::f16;
use safetensors::tensor::Dtype;
use strata_engine::DType;

use crate::atomic::write_atomic;
use crate::tensor_file::{TensorFile, header};
use crate::{Error, LoraModule, LoraWeights, Part, Result};

const DOWN: &str = ".lora_down.weight";
const UP: &str = ".lora_up.weight";
const ALPHA: &str = ".alpha";

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

/// Reads a kohya file: F16, BF16, F32 or F64 (alphas also I64), any mix of modules. A missing alpha means alpha = rank.
/// The type comes out as F16 if every tensor is, else as F32, so that writing again loses nothing.
///
/// # Errors
/// The file is damaged; a key is of another kind of adaptation (LoHa, LoKr, DoRA, …), of another naming, or
/// unknown; a module lacks one of its halves; shapes do not fit.
pub fn read(path: &Path) -> Result<LoraWeights> {
    let mut file = TensorFile::open(path)?;
    let infos = file.tensors();
    let dtype = if infos.values().all(|info| info.dtype == Dtype::F16) { DType::F16 } else { DType::F32 };
    let keys: Vec<(String, Vec<usize>)> =
        infos.iter().map(|(key, info)| (key.clone(), info.shape.clone())).collect();
    if keys.is_empty() {
        return Err(Error::file(path, "holds no tensors, so no LoRA"));
    }

    let mut modules: BTreeMap<String, LoraModule> = BTreeMap::new();
    for (key, shape) in keys {
        let part = [DOWN, UP, ALPHA].into_iter().find_map(|suffix| Some((key.strip_suffix(suffix)?, suffix)));
        let Some((module, suffix)) = part else { return Err(foreign_key(path, &key)) };
        let nothing =
            || LoraModule { down: vec![], down_shape: vec![], up: vec![], up_shape: vec![], alpha: f32::NAN };
        let module = modules.entry(module.to_string()).or_insert_with(nothing);
        let values = file.read(&key)?;
        match suffix {
            DOWN => (module.down, module.down_shape) = (values, shape),
            UP => (module.up, module.up_shape) = (values, shape),
            _ => match values[..] {
                [alpha] if alpha.is_finite() => module.alpha = alpha,
                _ => {
                    let message =
                        format!("{key} must be one finite number, not {values:?} of shape {shape:?}");
                    return Err(Error::file(path, message));
                }
            },
        }
    }
    let mut placed = BTreeMap::new();
    for (name, mut module) in modules {
        for (half, shape) in [(DOWN, &module.down_shape), (UP, &module.up_shape)] {
            if shape.is_empty() {
                let message = format!("{name}{half} is missing, but other tensors of this module are there");
                return Err(Error::file(path, message));
            }
        }
        module.check(path, &name)?;
        if module.alpha.is_nan() {
            module.alpha = module.rank() as f32;
        }
        let Some(place) = place(&name) else {
            let begins = PREFIXES.map(|(prefix, _)| prefix).join(", ");
            let message =
                format!("the module `{name}` is of no part that is known; names begin with {begins}");
            return Err(Error::file(path, message));
        };
        if placed.insert(place, module).is_some() {
            return Err(Error::file(path, format!("holds the layer of `{name}` under two names")));
        }
    }
    Ok(LoraWeights { modules: placed, dtype, metadata: file.metadata().clone() })
}

/// Writes a LoRA; see [`LoraWeights::write`].
pub fn write(lora: &LoraWeights, path: &Path) -> Result<()> {
    // Sorted by full key: the order of the data, and of the header.
    let mut tensors: BTreeMap<String, (Vec<usize>, &[f32])> = BTreeMap::new();
    for ((part, layer), module) in &lora.modules {
        let name = kohya_name(*part, layer);
        module.check(path, &name)?;
        tensors.insert(format!("{name}{DOWN}"), (module.down_shape.clone(), &module.down));
        tensors.insert(format!("{name}{UP}"), (module.up_shape.clone(), &module.up));
        tensors.insert(format!("{name}{ALPHA}"), (vec![], std::slice::from_ref(&module.alpha)));
    }
    for (key, (_, values)) in &tensors {
        check_finite(path, key, values, lora.dtype)?;
    }
    let dtype = if lora.dtype == DType::F16 { Dtype::F16 } else { Dtype::F32 };
    let shapes = tensors.iter().map(|(key, (shape, _))| (key.as_str(), shape.clone()));
    let header = header(dtype, shapes, &lora.metadata).map_err(|e| Error::file(path, e.to_string()))?;
    write_atomic(path, |out| {
        out.write_all(&header)?;
        tensors.values().try_for_each(|(_, values)| write_values(out, values, lora.dtype))
    })
}

fn write_values(out: &mut dyn Write, values: &[f32], dtype: DType) -> io::Result<()> {
    let bytes: Vec<u8> = match dtype {
        DType::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    };
    out.write_all(&bytes)
}

fn check_finite(path: &Path, key: &str, values: &[f32], dtype: DType) -> Result<()> {
    if let Some(bad) = values.iter().find(|v| !v.is_finite()) {
        return Err(Error::file(
            path,
            format!("not written: {key} holds {bad}; the training has diverged, lower the learning rate"),
        ));
    }
    let overflows = |v: &&f32| dtype == DType::F16 && f16::from_f32(**v).is_infinite();
    if let Some(big) = values.iter().find(overflows) {
        return Err(Error::file(
            path,
            format!(
                "not written: {key} holds {big}, too large for F16; train with a lower lr, or with save_dtype = \"f32\""
            ),
        ));
    }
    Ok(())
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
