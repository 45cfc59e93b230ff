//! How files spell LoRAs: a module for each spelling, which alone knows its names, shapes and alphas.
//!
//! Which spelling a file has is told from its keys: it must know all of them.

pub(crate) mod diffusers;
pub(crate) mod kohya;
mod module;
pub(crate) mod peft;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use half::f16;
use safetensors::tensor::Dtype;
use strata_engine::DType;

use crate::atomic::write_atomic;
use crate::embedding::BUNDLED;
use crate::tensor_file::{TensorFile, header};
use crate::{Embedding, Error, LoraModule, LoraWeights, Part, Result};
use module::{Array, Role, Tensors, compose};
use peft::PeftConfig;

/// How a LoRA is spelled in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spelling {
    /// Kohya's, which every Stable Diffusion program reads.
    Kohya,
    /// PEFT's folder.
    Peft,
    /// Diffusers' single file.
    Diffusers,
}

/// What a key of a file stands for.
struct Key {
    part: Part,
    path: String,
    role: Role,
}

/// The alphas of parts that have no tensors for them.
type Scales = BTreeMap<Part, PeftConfig>;

/// What a key of a spelling stands for.
type KeyOf = fn(&str) -> Option<Key>;

/// The spellings: their names, and their keys.
const SPELLINGS: [(&str, KeyOf); 3] =
    [("kohya", kohya::key), ("diffusers", diffusers::key), ("PEFT", peft::key)];

/// Reads a file of any spelling, or PEFT's folder; see [`LoraWeights::read`].
pub fn read(path: &Path) -> Result<LoraWeights> {
    match peft::folder_of(path) {
        Some(folder) => peft::read_folder(folder),
        None => read_file(path, None),
    }
}

/// Writes in a spelling; see [`LoraWeights::write_as`].
pub fn write(lora: &LoraWeights, spelling: Spelling, path: &Path) -> Result<()> {
    if let Some(word) = lora.embeddings.keys().next().filter(|_| spelling != Spelling::Kohya) {
        let message = format!(
            "not written: the LoRA has the embedding {word:?} bundled, which kohya's spelling alone has a place for (--to kohya)"
        );
        return Err(Error::file(path, message));
    }
    match spelling {
        Spelling::Kohya => kohya::write(lora, path),
        Spelling::Peft => peft::write(lora, path),
        Spelling::Diffusers => diffusers::write(lora, path),
    }
}

/// F16, BF16, F32 or F64 (alphas also I64), any mix of modules. The type comes out as F16 if every tensor is, else as F32, so that
/// writing again loses nothing. Without `scales` they are those of the file.
fn read_file(path: &Path, scales: Option<Scales>) -> Result<LoraWeights> {
    let mut file = TensorFile::open(path)?;
    let infos = file.tensors();
    let dtype = if infos.values().all(|info| info.dtype == Dtype::F16) { DType::F16 } else { DType::F32 };
    let own = infos.iter().filter(|(key, _)| !key.starts_with(BUNDLED));
    let shapes: Vec<(String, Vec<usize>)> =
        own.map(|(key, info)| (key.clone(), info.shape.clone())).collect();
    if shapes.is_empty() {
        return Err(Error::file(path, "holds no tensors of layers, so no LoRA"));
    }
    let names: Vec<&str> = shapes.iter().map(|(key, _)| key.as_str()).collect();
    let keys = keys(&names).map_err(|message| Error::file(path, message))?;
    let scales = match scales {
        Some(scales) => scales,
        None => diffusers::scales(&file)?,
    };
    // the keys of a module begin alike
    let mut modules: BTreeMap<(Part, String), (String, Tensors)> = BTreeMap::new();
    for ((name, shape), Key { part, path: layer, role }) in shapes.iter().zip(keys) {
        let array = Array { shape: shape.clone(), values: file.read(name)? };
        let (_, tensors) = modules.entry((part, layer)).or_insert_with(|| (name.clone(), Tensors::new()));
        if tensors.insert(role, array).is_some() {
            return Err(Error::file(path, format!("holds the layer of `{name}` under two names")));
        }
    }
    let mut composed = BTreeMap::new();
    for ((part, layer), (name, tensors)) in modules {
        let alpha = |rank: usize| scales.get(&part).map_or(rank as f32, |config| config.alpha(&layer, rank));
        let module: LoraModule = compose(tensors, alpha)
            .map_err(|message| Error::file(path, format!("the module of `{name}`: {message}")))?;
        module.check(path, &layer)?;
        composed.insert((part, layer), module);
    }
    let mut metadata = file.metadata().clone();
    diffusers::forget(&mut metadata);
    let embeddings = Embedding::bundled(&mut file)?;
    Ok(LoraWeights { modules: composed, embeddings, dtype, metadata })
}

/// What every key stands for, in the spelling that knows most of them.
fn keys(names: &[&str]) -> Result<Vec<Key>, String> {
    let known = |key: KeyOf| names.iter().filter(|name| key(name).is_some()).count();
    let best = SPELLINGS.iter().max_by_key(|(_, key)| known(*key));
    let (own, key) = best.copied().unwrap_or(SPELLINGS[0]);
    let all: Option<Vec<Key>> = names.iter().map(|name| key(name)).collect();
    if let Some(keys) = all {
        return Ok(keys);
    }
    let name = names.iter().find(|name| key(name).is_none()).copied().unwrap_or_default();
    Err(match SPELLINGS.iter().find(|(_, key)| key(name).is_some()) {
        Some((other, _)) => {
            format!("a mixture: the key `{name}` is {other}'s naming, and most others are {own}'s")
        }
        None => format!("not a LoRA that Strata reads: the key `{name}` is {}", kind(name)),
    })
}

/// What a key of no spelling is.
fn kind(key: &str) -> &'static str {
    let kinds = [
        (".oft_", "of an OFT file, which is not supported"),
        (".on_input", "of an IA3 file, which is not supported"),
        (".a1.weight", "of a GLoRA file, which is not supported"),
        (".diff_b", "a difference of a bias, which is not supported"),
        (".w_norm", "a difference of a norm, which is not supported"),
        (".b_norm", "a difference of a norm, which is not supported"),
        (
            ".lora_down.",
            "of no part that is known; names begin with lora_unet_, lora_te_, lora_te1_ or lora_te2_",
        ),
    ];
    let kind = kinds.iter().find(|(mark, _)| key.contains(mark)).map(|(_, kind)| *kind);
    kind.unwrap_or(
        "unknown; kohya's, PEFT's and diffusers' names are read, with LoHa, LoKr, DoRA and full differences",
    )
}

/// Writes tensors, sorted by key: the order of the data, and of the header.
fn write_tensors(
    path: &Path,
    tensors: &BTreeMap<String, (Vec<usize>, &[f32])>,
    dtype: DType,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    for (key, (_, values)) in tensors {
        check_finite(path, key, values, dtype)?;
    }
    let spelled = if dtype == DType::F16 { Dtype::F16 } else { Dtype::F32 };
    let shapes = tensors.iter().map(|(key, (shape, _))| (key.as_str(), shape.clone()));
    let header = header(spelled, shapes, metadata).map_err(|e| Error::file(path, e.to_string()))?;
    write_atomic(path, |out| {
        out.write_all(&header)?;
        tensors.values().try_for_each(|(_, values)| write_values(out, values, dtype))
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
