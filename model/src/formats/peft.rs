//! PEFT's naming and folder: `adapter_model.safetensors` and `adapter_config.json`.
//!
//! `base_model.model.<path>.lora_A.weight` [r, in] and `lora_B.weight` [out, r], for DoRA `lora_magnitude_vector` [out], of
//! convolutions [1, out, 1, 1]. The
//! configuration has rank and alpha of all modules, and of those that differ by patterns. A folder is one model's: the U-Net's,
//! with the text encoder's in a folder `text_encoder` inside.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use regex::Regex;
use serde_json::{Map, Value, json};

use super::module::Role;
use super::{Key, Scales, read_file, write_tensors};
use crate::{Error, LoraModule, LoraWeights, Part, Result, write_atomic};

const PREFIX: &str = "base_model.model.";
const WEIGHTS: &str = "adapter_model.safetensors";
const CONFIG: &str = "adapter_config.json";
/// Parts of folders: the folder's own comes first.
const FOLDERS: [(&str, Part); 3] =
    [("", Part::Unet), ("text_encoder", Part::TextEncoder), ("text_encoder_2", Part::TextEncoder2)];

const DOWN: &str = ".lora_A.weight";
const UP: &str = ".lora_B.weight";
const MAGNITUDE: &str = ".lora_magnitude_vector";

/// What a key stands for, if it is PEFT's.
pub(super) fn key(key: &str) -> Option<Key> {
    let rest = key.strip_prefix(PREFIX)?;
    let roles = [(DOWN, Role::Down), (UP, Role::Up), (MAGNITUDE, Role::MagnitudeVector)];
    let (path, role) = roles.iter().find_map(|(suffix, role)| Some((rest.strip_suffix(suffix)?, *role)))?;
    let part = if path.starts_with("text_model.") { Part::TextEncoder } else { Part::Unet };
    Some(Key { part, path: path.to_owned(), role })
}

/// The folder that `path` is, or whose weights it is.
pub(super) fn folder_of(path: &Path) -> Option<&Path> {
    let weights = || path.file_name().is_some_and(|name| name == WEIGHTS);
    let folder = if path.is_dir() { Some(path) } else { path.parent().filter(|_| weights()) };
    folder.filter(|folder| path.is_dir() || folder.join(CONFIG).is_file())
}

/// Reads a folder.
pub(super) fn read_folder(folder: &Path) -> Result<LoraWeights> {
    let mut all: Option<LoraWeights> = None;
    for (name, part) in FOLDERS {
        let place = folder.join(name);
        if !name.is_empty() && !place.join(WEIGHTS).is_file() {
            continue;
        }
        let path = place.join(CONFIG);
        let text = std::fs::read(&path).map_err(Error::io("read", &path))?;
        let config = serde_json::from_slice(&text).map_err(|e| Error::file(&path, e.to_string()))?;
        let config = PeftConfig::read(&path, config)?;
        let scales = [Part::Unet, Part::TextEncoder].map(|part| (part, config.clone()));
        let mut read = read_file(&place.join(WEIGHTS), Some(Scales::from(scales)))?;
        if part == Part::TextEncoder2 {
            read.modules =
                read.modules.into_iter().map(|((_, path), module)| ((part, path), module)).collect();
        }
        match &mut all {
            None => all = Some(read),
            Some(all) => all.modules.extend(read.modules),
        }
    }
    all.ok_or_else(|| Error::file(folder, format!("no {WEIGHTS}")))
}

/// Writes a folder; see [`LoraWeights::write_as`](crate::LoraWeights::write_as).
pub(super) fn write(lora: &LoraWeights, folder: &Path) -> Result<()> {
    for (name, part) in FOLDERS {
        let modules: Vec<_> = lora.modules.iter().filter(|((own, _), _)| *own == part).collect();
        if modules.is_empty() {
            continue;
        }
        // a LoRA of the text encoder alone has the folder to itself
        let alone = modules.len() == lora.modules.len() && part == Part::TextEncoder;
        let place = if alone { folder.to_owned() } else { folder.join(name) };
        std::fs::create_dir_all(&place).map_err(Error::io("make", &place))?;
        let mut all = BTreeMap::new();
        for ((_, layer), module) in &modules {
            module.check(folder, layer)?;
            tensors(&format!("{PREFIX}{layer}"), module, &mut all);
        }
        write_tensors(&place.join(WEIGHTS), &all, lora.dtype, &lora.metadata)?;
        let config = PeftConfig::of(modules.iter().map(|((_, path), module)| (path.as_str(), *module)));
        let text = serde_json::to_string_pretty(&Value::Object(config.to_json()))
            .map_err(|e| Error::file(&place, e.to_string()))?;
        let path: PathBuf = place.join(CONFIG);
        write_atomic(&path, |out| out.write_all(text.as_bytes()))?;
    }
    Ok(())
}

/// The tensors of a module whose name is `name`.
pub(super) fn tensors<'a>(
    name: &str,
    module: &'a LoraModule,
    tensors: &mut BTreeMap<String, (Vec<usize>, &'a [f32])>,
) {
    tensors.insert(format!("{name}{DOWN}"), (module.down_shape.clone(), &module.down));
    tensors.insert(format!("{name}{UP}"), (module.up_shape.clone(), &module.up));
    if let Some(magnitude) = &module.magnitude {
        let outputs = magnitude.len();
        let shape = if module.down_shape.len() == 2 { vec![outputs] } else { vec![1, outputs, 1, 1] };
        tensors.insert(format!("{name}{MAGNITUDE}"), (shape, magnitude));
    }
}

/// PEFT's `LoraConfig`, as far as it says what ΔW is.
#[derive(Debug, Clone)]
pub(super) struct PeftConfig {
    rank: usize,
    alpha: f64,
    ranks: BTreeMap<String, usize>,
    alphas: Vec<(String, Regex, f64)>,
    /// Whether scale = alpha / √r.
    rslora: bool,
    dora: bool,
    targets: Vec<String>,
}

impl PeftConfig {
    /// Of the file's JSON.
    ///
    /// # Errors
    /// It is of another kind than LoRA, a pattern is none, or a setting has another type.
    pub fn read(path: &Path, json: Map<String, Value>) -> Result<Self> {
        let fail = |message: String| Err(Error::file(path, message));
        match json.get("peft_type").and_then(Value::as_str) {
            None | Some("LORA") => {}
            Some(other) => return fail(format!("peft_type is {other}; only LORA is read")),
        }
        let yes = |key: &str| json.get(key).and_then(Value::as_bool).unwrap_or(false);
        if yes("fan_in_fan_out") {
            return fail("fan_in_fan_out is true, which no layer of Stable Diffusion needs".into());
        }
        let Some(rank) = json.get("r").and_then(Value::as_u64) else {
            return fail("has no rank `r`; it is no PEFT LoRA configuration".into());
        };
        let mut alphas = Vec::new();
        for (pattern, alpha) in json.get("alpha_pattern").and_then(Value::as_object).into_iter().flatten() {
            // as PEFT looks for it: at the end of a path, from a dot on
            let (Ok(regex), Some(alpha)) = (Regex::new(&format!("^(.*\\.)?({pattern})$")), alpha.as_f64())
            else {
                return fail(format!(
                    "alpha_pattern has {pattern}: {alpha}; it needs a pattern and a number"
                ));
            };
            alphas.push((pattern.clone(), regex, alpha));
        }
        Ok(Self {
            rank: rank as usize,
            alpha: json.get("lora_alpha").and_then(Value::as_f64).unwrap_or(8.0),
            ranks: BTreeMap::new(),
            alphas,
            rslora: yes("use_rslora"),
            dora: yes("use_dora"),
            targets: Vec::new(),
        })
    }

    /// Of modules: what most of them have, and patterns for the others.
    pub fn of<'a>(modules: impl Iterator<Item = (&'a str, &'a LoraModule)> + Clone) -> Self {
        let rank = most(modules.clone().map(|(_, module)| module.rank()));
        let alpha = f32::from_bits(most(modules.clone().map(|(_, module)| module.alpha.to_bits())));
        let pattern = |path: &str| format!("^{}", regex::escape(path));
        let other = modules.clone().filter(|(_, module)| module.rank() != rank);
        let ranks = other.map(|(path, module)| (pattern(path), module.rank())).collect();
        let other = modules.clone().filter(|(_, module)| module.alpha != alpha);
        let alphas = other.filter_map(|(path, module)| {
            let pattern = pattern(path);
            let regex = Regex::new(&format!("^(.*\\.)?({pattern})$")).ok()?;
            Some((pattern, regex, f64::from(module.alpha)))
        });
        Self {
            rank,
            alpha: alpha.into(),
            ranks,
            alphas: alphas.collect(),
            rslora: false,
            dora: modules.clone().any(|(_, module)| module.magnitude.is_some()),
            targets: modules.map(|(path, _)| path.to_owned()).collect(),
        }
    }

    /// The alpha of a module of this rank, so that alpha / r is the scale.
    pub fn alpha(&self, path: &str, rank: usize) -> f32 {
        let own = self.alphas.iter().find(|(_, regex, _)| regex.is_match(path));
        let alpha = own.map_or(self.alpha, |(_, _, alpha)| *alpha);
        (if self.rslora { alpha * (rank as f64).sqrt() } else { alpha }) as f32
    }

    /// As PEFT writes it.
    pub fn to_json(&self) -> Map<String, Value> {
        let alphas: Map<String, Value> =
            self.alphas.iter().map(|(pattern, _, alpha)| (pattern.clone(), json!(alpha))).collect();
        let value = json!({
            "peft_type": "LORA", "task_type": null, "base_model_name_or_path": null, "inference_mode": true,
            "r": self.rank, "lora_alpha": self.alpha, "rank_pattern": self.ranks, "alpha_pattern": alphas,
            "target_modules": self.targets, "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": false,
            "init_lora_weights": true, "use_rslora": self.rslora, "use_dora": self.dora, "modules_to_save": null,
        });
        match value {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }
}

/// The most frequent value; of several the largest.
fn most<T: Ord + Copy + Default>(values: impl Iterator<Item = T>) -> T {
    let mut counts: BTreeMap<T, usize> = BTreeMap::new();
    values.for_each(|value| *counts.entry(value).or_default() += 1);
    counts.into_iter().max_by_key(|(_, count)| *count).map_or(T::default(), |(value, _)| value)
}
