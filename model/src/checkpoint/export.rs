//! A model to be written again, as a single file or as a folder: which tensors go into which file, and what else belongs there.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use super::ldm::Naming;
use super::save::{Entry, Layer, Output};
use super::source::Source;
use super::{Checkpoint, Component, Family, folder, single};
use crate::build::{WeightInfo, sketch};
use crate::clip::{self, PREFIX};
use crate::config::PredictionType;
use crate::layers::{LayerInfo, LayerKind};
use crate::tensor_file::{Chunk, TensorFile};
use crate::unet::{layers_of, unet_tensors};
use crate::weights::{Place, Weights};
use crate::{Blocks, Error, Part, Result, make_folder};

/// The parts that have weights.
const PARTS: [Component; 3] = [Component::Unet, Component::TextEncoder, Component::Vae];
/// What files of weights end in.
const WEIGHTS: [&str; 8] = ["safetensors", "bin", "ckpt", "pt", "pth", "msgpack", "h5", "onnx"];

/// What is to be written.
pub(super) struct Export {
    pub outputs: Vec<Output>,
    /// Files that are copied as they are: from where, and to where.
    pub copies: Vec<(PathBuf, PathBuf)>,
}

/// A layer that a LoRA may be on, and where its weights lie.
pub(super) struct Target {
    pub info: LayerInfo,
    pub place: Place,
}

impl Checkpoint {
    /// The tensors of a part by diffusers' names, and where they lie.
    fn tensors(&self, component: Component) -> Result<(Vec<WeightInfo>, Weights)> {
        Ok(match component {
            Component::Vae => {
                let (config, weights) = self.vae_parts()?;
                (sketch(&config)?.1, weights)
            }
            Component::TextEncoder => {
                let (config, weights) = self.text_parts()?;
                (sketch(&config)?.1, clip::named(weights)?)
            }
            _ => (unet_tensors(&self.unet)?, self.unet_weights()?),
        })
    }

    /// All layers that a LoRA may be on.
    ///
    /// # Errors
    /// Weights are missing, or do not fit the configuration.
    pub(super) fn targets(&self) -> Result<BTreeMap<Layer, Target>> {
        let mut targets = BTreeMap::new();
        for (part, component) in [(Part::Unet, PARTS[0]), (Part::TextEncoder, PARTS[1])] {
            let (tensors, weights) = self.tensors(component)?;
            let of_unet = layers_of(&self.unet)?;
            for tensor in tensors {
                let Some(path) = tensor.names[0].strip_suffix(".weight") else { continue };
                let info = match part {
                    Part::Unet => of_unet.iter().find(|layer| layer.path == path).cloned(),
                    _ => of_text(path, &tensor.shapes[0]),
                };
                if let Some(info) = info {
                    let place = tensor.place(&weights)?;
                    targets.insert((part, info.path.clone()), Target { info, place });
                }
            }
        }
        Ok(targets)
    }

    /// What writing the model to `out` takes, a single file if its name ends in `.safetensors`, else a folder: the weights of
    /// `targets` are marked as theirs.
    ///
    /// # Errors
    /// A folder has no place to get its configurations from, or the model is not whole.
    pub(super) fn export(&self, out: &Path, targets: &BTreeMap<Layer, Target>) -> Result<Export> {
        if self.vae.is_some() {
            let message =
                "with another VAE is not written; leave out the VAE, or put it into the model's folder";
            return Err(Error::file(self.path(), message));
        }
        let to_file = out.extension().is_some_and(|end| end == "safetensors");
        let marked = Marked::new(targets);
        match &self.source {
            Source::File(file, _) if to_file => {
                let file = TensorFile::open(file.path())?;
                let metadata = file.metadata().clone();
                // averages of what was trained would be those of another model
                let keep = |name: &str| !name.starts_with("model_ema.");
                let entries = marked.whole(&file, keep);
                Ok(Export {
                    outputs: vec![Output { path: out.into(), entries, metadata }],
                    copies: Vec::new(),
                })
            }
            Source::Folder(_) if to_file => self.as_file(out, &marked),
            Source::Folder(root) => self.same_folder(root, out, &marked),
            Source::File(_, Some(config)) => self.as_folder(config, out, &marked),
            Source::File(file, None) => {
                let message = format!(
                    "has no configurations, which a folder needs: give a diffusers folder that has them (--config FOLDER), or \
                     name a .safetensors file in place of {}",
                    out.display()
                );
                Err(Error::file(file.path(), message))
            }
            Source::Unet(path) => {
                Err(Error::file(path, "is the folder of a U-Net alone; give that of the whole model"))
            }
        }
    }

    /// A folder as a single file in LDM's names.
    fn as_file(&self, out: &Path, marked: &Marked<'_>) -> Result<Export> {
        let scheduler = self.scheduler()?;
        let velocity = scheduler.prediction_type == PredictionType::VPrediction;
        let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
        for component in PARTS {
            let (tensors, weights) = self.tensors(component)?;
            let (naming, prefix) = match (component, self.family) {
                (Component::Vae, _) => {
                    let levels = self.vae_parts()?.0.block_out_channels.len();
                    (Naming::Vae { levels }, single::VAE[0])
                }
                (Component::TextEncoder, Family::Sd1) => (Naming::Clip, single::CLIP[0]),
                (Component::TextEncoder, Family::Sd2) => {
                    let layers = self.text_config()?.num_hidden_layers;
                    (Naming::OpenClip { layers }, single::OPEN_CLIP)
                }
                _ => (Naming::Unet(Blocks::new(&layers_of(&self.unet)?)), single::UNET),
            };
            for tensor in tensors {
                let name = &tensor.names[0];
                let Some(stored) = naming.stored(name) else {
                    let message = format!("`{name}` has no name in single files; write a folder");
                    return Err(Error::file(self.path(), message));
                };
                let mut shape = tensor.shapes[0].clone();
                // the VAE's attention is of 1×1 convolutions there
                if component == Component::Vae && shape.len() == 2 {
                    shape.extend([1, 1]);
                }
                shape[0] *= stored.chunk.of;
                let place = tensor.place(&weights)?;
                let changes = marked.of(&place, stored.chunk);
                let named = format!("{prefix}{}", stored.name);
                let entry = entries.entry(named.clone()).or_insert_with(|| Entry {
                    name: named,
                    shape,
                    parts: Vec::new(),
                    changes: Vec::new(),
                });
                // joined tensors are asked for in the order in which they are joined
                entry.parts.push(place);
                entry.changes.extend(changes);
            }
        }
        let marks = [(single::V, velocity), (single::ZERO_SNR, scheduler.rescale_betas_zero_snr)];
        for (mark, _) in marks.into_iter().filter(|(_, is)| *is) {
            let entry = Entry { name: mark.into(), shape: vec![0], parts: Vec::new(), changes: Vec::new() };
            entries.insert(mark.into(), entry);
        }
        let predicts = if velocity { "v" } else { "epsilon" };
        let metadata = BTreeMap::from([
            ("format".to_owned(), "pt".to_owned()),
            ("modelspec.prediction_type".to_owned(), predicts.to_owned()),
        ]);
        let output = Output { path: out.into(), entries: entries.into_values().collect(), metadata };
        Ok(Export { outputs: vec![output], copies: Vec::new() })
    }

    /// A folder as it is, with weights in the files that they are in.
    fn same_folder(&self, root: &Path, out: &Path, marked: &Marked<'_>) -> Result<Export> {
        let mut outputs = Vec::new();
        let mut sharded = false;
        for component in [Component::Unet, Component::TextEncoder] {
            let (_, weights) = self.tensors(component)?;
            sharded |= weights.files().count() > 1;
            for file in weights.files() {
                let name = file.path().file_name().unwrap_or_default();
                let path = out.join(folder::name(component)).join(name);
                let entries = marked.whole(file, |_| true);
                outputs.push(Output { path, entries, metadata: file.metadata().clone() });
            }
        }
        let skip = |path: &Path| {
            let of_part = [PARTS[0], PARTS[1]].iter().any(|c| path.starts_with(root.join(folder::name(*c))));
            let at_root = path.parent() == Some(root);
            (of_part || at_root) && is_weights(path) || of_part && !sharded && is_index(path)
        };
        Ok(Export { outputs, copies: copies(root, out, &skip)? })
    }

    /// A single file as a folder, with the configurations of another.
    fn as_folder(&self, config: &Path, out: &Path, marked: &Marked<'_>) -> Result<Export> {
        let mut outputs = Vec::new();
        for component in PARTS {
            let (tensors, weights) = self.tensors(component)?;
            let prefix = if component == Component::TextEncoder { PREFIX } else { "" };
            let mut entries = Vec::new();
            for tensor in tensors {
                let place = tensor.place(&weights)?;
                let changes = marked.of(&place, Chunk::WHOLE);
                let name = format!("{prefix}{}", tensor.names[0]);
                entries.push(Entry { name, shape: tensor.shapes[0].clone(), parts: vec![place], changes });
            }
            let path = out.join(folder::name(component)).join(folder::weights_name(component));
            let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
            outputs.push(Output { path, entries, metadata });
        }
        let skip = |path: &Path| {
            let of_part = PARTS.iter().any(|c| path.starts_with(config.join(folder::name(*c))));
            let at_root = path.parent() == Some(config);
            (of_part || at_root) && is_weights(path) || of_part && is_index(path)
        };
        Ok(Export { outputs, copies: copies(config, out, &skip)? })
    }
}

/// A linear layer of the text encoder, by its path without `text_model.`.
fn of_text(path: &str, shape: &[usize]) -> Option<LayerInfo> {
    let &[outputs, inputs] = shape else { return None };
    let path = format!("{PREFIX}{}", path.starts_with("encoder.").then_some(path)?);
    Some(LayerInfo { path, kind: LayerKind::Linear, inputs, outputs })
}

fn is_weights(path: &Path) -> bool {
    path.extension().and_then(OsStr::to_str).is_some_and(|end| WEIGHTS.contains(&end))
}

fn is_index(path: &Path) -> bool {
    path.file_name().and_then(OsStr::to_str).is_some_and(|name| name.contains(".index."))
}

/// All files of a folder but hidden ones and those to `skip`, and where they go; the model's index comes last, so that a folder
/// which was not written whole is no model.
fn copies(from: &Path, to: &Path, skip: &dyn Fn(&Path) -> bool) -> Result<Vec<(PathBuf, PathBuf)>> {
    fn walk(
        from: &Path,
        to: &Path,
        skip: &dyn Fn(&Path) -> bool,
        all: &mut Vec<(PathBuf, PathBuf)>,
    ) -> Result<()> {
        for entry in fs::read_dir(from).map_err(Error::io("read", from))? {
            let path = entry.map_err(Error::io("read", from))?.path();
            let name = path.file_name().unwrap_or_default();
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let target = to.join(name);
            if path.is_dir() {
                walk(&path, &target, skip, all)?;
            } else if !skip(&path) {
                all.push((path, target));
            }
        }
        Ok(())
    }
    let mut all = Vec::new();
    walk(from, to, skip, &mut all)?;
    all.sort_by_key(|(path, _)| (path.ends_with("model_index.json"), path.clone()));
    Ok(all)
}

/// Copies files, and makes the folders that they lie in.
///
/// # Errors
/// The system's.
pub(super) fn copy(copies: &[(PathBuf, PathBuf)]) -> Result<()> {
    for (from, to) in copies {
        make_folder(to.parent().unwrap_or(Path::new(".")))?;
        fs::copy(from, to).map(drop).map_err(Error::io("write", to))?;
    }
    Ok(())
}

/// Which layer the tensors of files are weights of, and which share of their rows.
struct Marked<'a>(BTreeMap<(&'a Path, &'a str), Vec<(Chunk, &'a Layer)>>);

impl<'a> Marked<'a> {
    fn new(targets: &'a BTreeMap<Layer, Target>) -> Self {
        let mut marked: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (layer, Target { place, .. }) in targets {
            let at = (place.file.as_path(), place.name.as_str());
            marked.entry(at).or_default().push((place.chunk, layer));
        }
        Self(marked)
    }

    /// What a place is of, which becomes a share of another tensor.
    fn of(&self, place: &Place, to: Chunk) -> Vec<(Chunk, Layer)> {
        let own = self.0.get(&(place.file.as_path(), place.name.as_str())).into_iter().flatten();
        own.filter(|(chunk, _)| *chunk == place.chunk).map(|(_, layer)| (to, (*layer).clone())).collect()
    }

    /// The tensors of a file to `keep`, as they are in it.
    fn whole(&self, file: &TensorFile, keep: impl Fn(&str) -> bool) -> Vec<Entry> {
        let entry = |(name, info): (&String, &safetensors::tensor::TensorInfo)| {
            let own = self.0.get(&(file.path(), name.as_str())).into_iter().flatten();
            Entry {
                name: name.clone(),
                shape: info.shape.clone(),
                parts: vec![Place { file: file.path().into(), name: name.clone(), chunk: Chunk::WHOLE }],
                changes: own.map(|(chunk, layer)| (*chunk, (*layer).clone())).collect(),
            }
        };
        file.tensors().iter().filter(|(name, _)| keep(name)).map(entry).collect()
    }
}
