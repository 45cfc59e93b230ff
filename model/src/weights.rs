//! The tensors of one component folder (`unet/`, `vae/`, `text_encoder/`), handed out one by one, each exactly once.
//!
//! A model is loaded by taking every tensor its layers need and then calling [`Weights::finish`]. Nothing is guessed:
//! a tensor that is missing, misshapen, of a strange dtype, taken twice or left over is an error naming it.

use crate::tensor_file::{ShardIndex, TensorFile};
use crate::{Error, Result};
use safetensors::tensor::Dtype;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The tensors of one component folder.
pub struct Weights {
    /// The component folder, for errors about a tensor that no file has.
    folder: PathBuf,
    files: Vec<TensorFile>,
    slots: BTreeMap<String, Slot>,
}

/// Where a tensor lies. `name` is the one in the file; the key in `slots` may have lost a prefix.
struct Slot {
    file: usize,
    name: String,
    taken: bool,
}

impl Weights {
    /// Opens the weights of a component folder: `<stem>.safetensors`, else `<stem>.fp16.safetensors`, else the shards
    /// named by `<stem>.safetensors.index.json` (or its fp16 form). `stem` is `diffusion_pytorch_model` for U-Net and
    /// VAE, `model` for text encoders. Only headers are read here.
    ///
    /// # Errors
    /// None of these exists (pickled `.bin` and `.ckpt` files are never read), or one is damaged.
    pub fn open(folder: &Path, stem: &str) -> Result<Self> {
        let whole = |variant: &str| folder.join(format!("{stem}{variant}.safetensors"));
        let index = |variant: &str| folder.join(format!("{stem}.safetensors.index{variant}.json"));
        for variant in ["", ".fp16"] {
            if whole(variant).is_file() {
                return Self::from_files(folder, vec![TensorFile::open(&whole(variant))?]);
            }
            if index(variant).is_file() {
                return Self::from_index(folder, &index(variant));
            }
        }
        Err(no_weights(folder, stem))
    }

    fn from_index(folder: &Path, index: &Path) -> Result<Self> {
        let text = fs::read(index).map_err(Error::io("read", index))?;
        let parsed: ShardIndex = serde_json::from_slice(&text)
            .map_err(|e| Error::file(index, format!("damaged shard index: {e}")))?;
        let shards: BTreeSet<&String> = parsed.weight_map.values().collect();
        let mut files = Vec::new();
        for shard in shards {
            // A shard is a sibling of its index; anything else would read files from elsewhere on the machine.
            if Path::new(shard).file_name() != Some(shard.as_ref()) {
                return Err(Error::file(index, format!("shard `{shard}` is not a plain file name")));
            }
            files.push(TensorFile::open(&folder.join(shard))?);
        }
        let weights = Self::from_files(folder, files)?;
        for (name, shard) in &parsed.weight_map {
            let found =
                weights.slots.get(name).is_some_and(|slot| weights.files[slot.file].path().ends_with(shard));
            if !found {
                return Err(Error::file(
                    index,
                    format!("tensor `{name}` should be in `{shard}`, but is not; fetch the shards again"),
                ));
            }
        }
        Ok(weights)
    }

    fn from_files(folder: &Path, files: Vec<TensorFile>) -> Result<Self> {
        let mut slots = BTreeMap::new();
        for (i, file) in files.iter().enumerate() {
            for name in file.tensors().keys() {
                let slot = Slot { file: i, name: name.clone(), taken: false };
                if slots.insert(name.clone(), slot).is_some() {
                    return Err(Error::file(
                        file.path(),
                        format!("tensor `{name}` is also in another shard"),
                    ));
                }
            }
        }
        Ok(Self { folder: folder.into(), files, slots })
    }

    /// Drops `prefix` from every name that carries it, so that files with and without it read alike (CLIP's
    /// `text_model.`). Errors still show the names as they are in the file.
    ///
    /// # Errors
    /// A tensor is there both with and without the prefix.
    pub fn strip_prefix(&mut self, prefix: &str) -> Result<()> {
        let mut renamed = BTreeMap::new();
        for (name, slot) in std::mem::take(&mut self.slots) {
            let (short, path) =
                (name.strip_prefix(prefix).unwrap_or(&name).to_string(), self.files[slot.file].path());
            if renamed.contains_key(&short) {
                return Err(Error::file(
                    path,
                    format!("holds `{short}` both with and without the prefix `{prefix}`"),
                ));
            }
            renamed.insert(short, slot);
        }
        self.slots = renamed;
        Ok(())
    }

    /// Whether the file has the tensor, under the name without a stripped prefix.
    pub fn contains(&self, name: &str) -> bool {
        self.slots.contains_key(name)
    }

    /// The tensor's shape as the file has it.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        let slot = self.slots.get(name)?;
        Some(&self.files[slot.file].tensors()[&slot.name].shape)
    }

    /// True if every tensor is stored in 16 bits, so that f16 storage loses nothing that the file has (bf16 aside).
    pub fn is_half(&self) -> bool {
        let mut infos = self.files.iter().flat_map(|file| file.tensors().values());
        infos.all(|info| matches!(info.dtype, Dtype::F16 | Dtype::BF16))
    }

    /// Reads tensor `name` as f32 and marks it taken.
    ///
    /// # Errors
    /// It is missing, already taken, of another shape or of an unreadable dtype.
    pub fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.take_any(&[name], &[shape])
    }

    /// As [`take`](Self::take), for a tensor that has had several names (`to_q` and `query`) or shapes ([C, C] and
    /// [C, C, 1, 1]) over the years. The first name present is read; errors speak of the first name and shape.
    ///
    /// # Errors
    /// Those of [`take`](Self::take).
    pub fn take_any(&mut self, names: &[&str], shapes: &[&[usize]]) -> Result<Vec<f32>> {
        let expected = || shapes.first().map_or(Vec::new(), |s| s.to_vec());
        let Some(name) = names.iter().find(|name| self.contains(name)) else {
            let name = names.first().copied().unwrap_or_default().to_string();
            return Err(Error::MissingTensor { path: self.source(), name, shape: expected() });
        };
        let folder = self.source();
        let missing = || Error::MissingTensor { path: folder, name: name.to_string(), shape: expected() };
        let slot = self.slots.get_mut(*name).ok_or_else(missing)?;
        let file = &mut self.files[slot.file];
        let error = (file.path().to_path_buf(), slot.name.clone());
        if slot.taken {
            return Err(Error::TensorTaken { path: error.0, name: error.1 });
        }
        let found = &file.tensors()[&slot.name].shape;
        if !shapes.contains(&found.as_slice()) {
            return Err(Error::TensorShape {
                path: error.0,
                name: error.1,
                expected: expected(),
                found: found.clone(),
            });
        }
        slot.taken = true;
        file.read(&slot.name)
    }

    /// Marks a tensor that is known to carry nothing (`embeddings.position_ids`) as taken, if it is there.
    pub fn ignore(&mut self, name: &str) {
        if let Some(slot) = self.slots.get_mut(name) {
            slot.taken = true;
        }
    }

    /// Ends the loading.
    ///
    /// # Errors
    /// Tensors were left over: the file is of another architecture, and running without them would be silently wrong.
    pub fn finish(self) -> Result<()> {
        let names: Vec<_> =
            self.slots.values().filter(|slot| !slot.taken).map(|slot| slot.name.clone()).collect();
        if names.is_empty() { Ok(()) } else { Err(Error::UnusedTensors { path: self.source(), names }) }
    }

    /// What errors about the whole point at: the file, or the folder when there are several.
    pub(crate) fn source(&self) -> PathBuf {
        match &self.files[..] {
            [file] => file.path().into(),
            _ => self.folder.clone(),
        }
    }
}

/// Says what is there instead of safetensors weights, and how to get them.
fn no_weights(folder: &Path, stem: &str) -> Error {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(source) => return Error::Io { action: "open", path: folder.into(), source },
    };
    let pickled = |name: &String| [".bin", ".ckpt", ".pt", ".pth"].iter().any(|end| name.ends_with(end));
    let found = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).find(pickled);
    match found {
        Some(name) => Error::file(
            folder,
            format!(
                "only pickled weights (`{name}`), which can run code when read and are not supported; convert them once with \
                 diffusers: `DiffusionPipeline.from_pretrained(old).save_pretrained(new, safe_serialization=True)`"
            ),
        ),
        None => Error::file(
            folder.join(format!("{stem}.safetensors")),
            "is missing, and so are its `.fp16.safetensors` and its shards (`.safetensors.index.json`): the model was not \
             fetched whole; fetch one of these from where the model came from",
        ),
    }
}
