//! The tensors of one component (`unet/`, `vae/`, `text_encoder/`, or its share of a single file), handed out one by one, each
//! exactly once.
//!
//! A model is loaded by taking every tensor its layers need and then calling [`Weights::finish`]. Nothing is guessed:
//! a tensor that is missing, misshapen, of a strange dtype, taken twice or left over is an error naming it.

use crate::tensor_file::{Chunk, ShardIndex, TensorFile};
use crate::{Error, Result};
use safetensors::tensor::Dtype;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The tensors of one component.
pub struct Weights {
    /// The component folder, for errors about a tensor that no file has.
    folder: PathBuf,
    files: Vec<TensorFile>,
    slots: BTreeMap<String, Slot>,
    /// What the file would call a tensor that it lacks, where names in files are not those that are asked for.
    missing: BTreeMap<String, String>,
}

/// Where a tensor lies. `name` is the one in the file; the key in `slots` may have lost a prefix, or be diffusers' name of it.
struct Slot {
    file: usize,
    name: String,
    chunk: Chunk,
    shape: Vec<usize>,
    taken: bool,
}

/// What a single file calls a tensor, and the part of that which is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    pub name: String,
    pub chunk: Chunk,
}

/// A tensor, or a part of one, on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub file: PathBuf,
    pub name: String,
    pub chunk: Chunk,
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

    /// All of one file, under its own names.
    pub(crate) fn from_file(file: TensorFile) -> Result<Self> {
        let path = file.path().to_owned();
        Self::from_files(&path, vec![file])
    }

    /// What a single file holds of one component. `wanted` are the component's tensors by diffusers' names, with the file's names
    /// for them; `own` are all names in the file that belong to the component, so that those which nobody asks for are left over.
    pub(crate) fn renamed(file: TensorFile, wanted: Vec<(String, Stored)>, own: Vec<String>) -> Self {
        let (mut slots, mut missing) = (BTreeMap::new(), BTreeMap::new());
        let mut left: BTreeSet<String> = own.into_iter().collect();
        for (diffusers, stored) in wanted {
            match file.tensors().get(&stored.name) {
                Some(info) => {
                    left.remove(&stored.name);
                    slots.insert(diffusers, Slot::new(0, stored, &info.shape));
                }
                None => {
                    missing.insert(diffusers, stored.name);
                }
            }
        }
        for name in left {
            let shape = file.tensors().get(&name).map_or(Vec::new(), |info| info.shape.clone());
            slots.insert(name.clone(), Slot::new(0, Stored { name, chunk: Chunk::WHOLE }, &shape));
        }
        Self { folder: file.path().into(), files: vec![file], slots, missing }
    }

    fn from_files(folder: &Path, files: Vec<TensorFile>) -> Result<Self> {
        let mut slots = BTreeMap::new();
        for (i, file) in files.iter().enumerate() {
            for (name, info) in file.tensors() {
                let slot = Slot::new(i, Stored { name: name.clone(), chunk: Chunk::WHOLE }, &info.shape);
                if slots.insert(name.clone(), slot).is_some() {
                    return Err(Error::file(
                        file.path(),
                        format!("tensor `{name}` is also in another shard"),
                    ));
                }
            }
        }
        Ok(Self { folder: folder.into(), files, slots, missing: BTreeMap::new() })
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
        Some(&self.slots.get(name)?.shape)
    }

    /// Each tensor's number format as safetensors names it, and how many numbers it has.
    pub fn numbers(&self) -> impl Iterator<Item = (String, usize)> {
        let dtype = |slot: &Slot| self.files[slot.file].tensors()[&slot.name].dtype;
        let count = |slot: &Slot| slot.shape.iter().product::<usize>() / slot.chunk.of;
        self.slots.values().map(move |slot| (dtype(slot).to_string(), count(slot)))
    }

    /// True if every tensor is stored in 16 bits, so that f16 storage loses nothing that the file has (bf16 aside).
    pub fn is_half(&self) -> bool {
        let mut infos = self.slots.values().map(|slot| &self.files[slot.file].tensors()[&slot.name]);
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
        let Some(slot) =
            names.iter().find(|name| self.contains(name)).and_then(|name| self.slots.get_mut(*name))
        else {
            return Err(self.missing(names, shapes));
        };
        let file = &mut self.files[slot.file];
        let path = file.path().to_path_buf();
        if slot.taken {
            return Err(Error::TensorTaken { path, name: slot.name.clone() });
        }
        slot.check(shapes, path)?;
        slot.taken = true;
        file.read_part(&slot.name, slot.chunk)
    }

    /// Refuses what [`take_any`](Self::take_any) would, without reading.
    ///
    /// # Errors
    /// The tensor is missing or of another shape.
    pub fn check(&self, names: &[&str], shapes: &[&[usize]]) -> Result<()> {
        match names.iter().find_map(|name| self.slots.get(*name)) {
            Some(slot) => slot.check(shapes, self.files[slot.file].path().into()),
            None => Err(self.missing(names, shapes)),
        }
    }

    /// Where a tensor lies, and the shape that it has there; names and shapes are those that [`take_any`](Self::take_any) is given.
    ///
    /// # Errors
    /// The tensor is missing or of another shape.
    pub(crate) fn place(&self, names: &[&str], shapes: &[&[usize]]) -> Result<Place> {
        self.check(names, shapes)?;
        let slot = names.iter().find_map(|name| self.slots.get(*name));
        let slot = slot.ok_or_else(|| self.missing(names, shapes))?;
        let file = self.files[slot.file].path().to_owned();
        Ok(Place { file, name: slot.name.clone(), chunk: slot.chunk })
    }

    /// The files.
    pub(crate) fn files(&self) -> impl Iterator<Item = &TensorFile> {
        self.files.iter()
    }

    fn missing(&self, names: &[&str], shapes: &[&[usize]]) -> Error {
        let asked = names.first().copied().unwrap_or_default();
        let name = self.missing.get(asked).map_or(asked, String::as_str).to_owned();
        Error::MissingTensor {
            path: self.source(),
            name,
            shape: shapes.first().map_or(Vec::new(), |s| s.to_vec()),
        }
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

impl Slot {
    fn new(file: usize, stored: Stored, shape: &[usize]) -> Self {
        Self { file, name: stored.name, chunk: stored.chunk, shape: shape.to_vec(), taken: false }
    }

    /// Refuses another shape than one of those, of which the file has `chunk.of` along the first axis.
    fn check(&self, shapes: &[&[usize]], path: PathBuf) -> Result<()> {
        let whole = |shape: &[usize]| {
            let mut whole = shape.to_vec();
            whole.iter_mut().take(1).for_each(|first| *first *= self.chunk.of);
            whole
        };
        if shapes.iter().any(|shape| whole(shape) == self.shape) {
            return Ok(());
        }
        let (name, found) = (self.name.clone(), self.shape.clone());
        let expected = shapes.first().map_or(Vec::new(), |shape| whole(shape));
        Err(Error::TensorShape { path, name, expected, found })
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
