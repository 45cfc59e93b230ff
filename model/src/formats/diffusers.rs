//! Diffusers' naming: the part of the model, the path, and the half, in the spellings of three times.
//!
//! Today `unet.<path>.lora_A.weight` and `lora_B.weight`; before `unet.<path>.lora.down.weight`; at first
//! `unet.….attn1.processor.to_q_lora.down.weight`. Text encoders have `lora_linear_layer` too. There are no alphas: they are rank,
//! unless `lora_adapter_metadata` in the header has a PEFT configuration for the part.

use std::collections::BTreeMap;
use std::path::Path;

use super::module::Role;
use super::peft::PeftConfig;
use super::{Key, Scales, write_tensors};
use crate::tensor_file::TensorFile;
use crate::{Error, LoraWeights, Part, Result};

/// Where the header has PEFT's settings.
const METADATA: &str = "lora_adapter_metadata";

/// The first part of keys. Old files of the U-Net alone have none.
const PARTS: [(&str, Part); 3] =
    [("unet.", Part::Unet), ("text_encoder.", Part::TextEncoder), ("text_encoder_2.", Part::TextEncoder2)];
const BARE: [&str; 3] = ["down_blocks.", "mid_block.", "up_blocks."];

/// The last part of keys.
const ROLES: [(&str, Role); 10] = [
    (".lora_A.weight", Role::Down),
    (".lora_B.weight", Role::Up),
    (".lora_magnitude_vector", Role::MagnitudeVector),
    (".lora_linear_layer.down.weight", Role::Down),
    (".lora_linear_layer.up.weight", Role::Up),
    (".lora.down.weight", Role::Down),
    (".lora.up.weight", Role::Up),
    ("_lora.down.weight", Role::Down),
    ("_lora.up.weight", Role::Up),
    (".alpha", Role::Alpha),
];

/// What a key stands for, if it is diffusers'.
pub(super) fn key(key: &str) -> Option<Key> {
    let begins = PARTS.iter().find_map(|(prefix, part)| Some((key.strip_prefix(prefix)?, *part)));
    let bare = BARE.iter().any(|block| key.starts_with(block)).then_some((key, Part::Unet));
    let (rest, part) = begins.or(bare)?;
    let (path, role) = ROLES.iter().find_map(|(suffix, role)| Some((rest.strip_suffix(suffix)?, *role)))?;
    // `attn1.processor.to_out` is the layer `attn1.to_out.0`
    let path = match path.split_once(".processor.") {
        Some((block, "to_out")) => format!("{block}.to_out.0"),
        Some((block, layer)) => format!("{block}.{layer}"),
        None => path.to_owned(),
    };
    Some(Key { part, path, role })
}

/// The alphas that the header has for each part.
pub(super) fn scales(file: &TensorFile) -> Result<Scales> {
    let Some(text) = file.metadata().get(METADATA) else { return Ok(Scales::new()) };
    let fail = |e: serde_json::Error| Error::file(file.path(), format!("`{METADATA}` in its header: {e}"));
    let all: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).map_err(fail)?;
    let mut scales = Scales::new();
    for (prefix, part) in PARTS {
        let own =
            all.iter().filter_map(|(key, value)| Some((key.strip_prefix(prefix)?.to_owned(), value.clone())));
        let own: serde_json::Map<_, _> = own.collect();
        if !own.is_empty() {
            scales.insert(part, PeftConfig::read(file.path(), own)?);
        }
    }
    Ok(scales)
}

/// Takes out of a header what belongs to this spelling and not to the LoRA.
pub(super) fn forget(metadata: &mut BTreeMap<String, String>) {
    metadata.remove("format");
    metadata.remove(METADATA);
}

/// Writes a LoRA in today's spelling; see [`LoraWeights::write_as`](crate::LoraWeights::write_as).
pub(super) fn write(lora: &LoraWeights, path: &Path) -> Result<()> {
    let mut tensors: BTreeMap<String, (Vec<usize>, &[f32])> = BTreeMap::new();
    let mut settings = serde_json::Map::new();
    for (prefix, part) in PARTS {
        let modules: Vec<_> = lora.modules.iter().filter(|((own, _), _)| *own == part).collect();
        for ((_, layer), module) in &modules {
            module.check(path, layer)?;
            super::peft::tensors(&format!("{prefix}{layer}"), module, &mut tensors);
        }
        if !modules.is_empty() {
            let own =
                PeftConfig::of(modules.iter().map(|((_, path), module)| (path.as_str(), *module))).to_json();
            settings.extend(own.into_iter().map(|(key, value)| (format!("{prefix}{key}"), value)));
        }
    }
    let mut metadata = lora.metadata.clone();
    metadata.insert("format".into(), "pt".into());
    metadata.insert(METADATA.into(), serde_json::Value::Object(settings).to_string());
    write_tensors(path, &tensors, lora.dtype, &metadata)
}
