//! A VAE that lies elsewhere than its model.

use std::path::{Path, PathBuf};

use sha2::Sha256;

use super::{Component, digest, folder, single};
use crate::config::VaeConfig;
use crate::tensor_file::TensorFile;
use crate::weights::Weights;
use crate::{Error, Result, sniff};

/// Where it lies.
#[derive(Debug, Clone)]
pub(super) enum OtherVae {
    /// In a component's folder of diffusers', with its configuration.
    Folder(PathBuf),
    /// In a file with diffusers' names.
    Diffusers(PathBuf),
    /// In a file with LDM's names, which begin with this.
    Ldm(PathBuf, &'static str),
}

impl OtherVae {
    /// Finds out which it is. A folder may be that of a VAE or of a model, a file may hold a whole checkpoint.
    ///
    /// # Errors
    /// There is no VAE.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            let inner = path.join(folder::name(Component::Vae));
            let places = [path.to_owned(), inner];
            let found = places.into_iter().find(|place| folder::config(place, Component::Vae).is_file());
            let message = "no VAE here: neither config.json nor vae/config.json";
            return found.map(Self::Folder).ok_or_else(|| Error::file(path, message));
        }
        let file = TensorFile::open(path)?;
        let starts = |prefix: String| file.tensors().keys().any(|name| name.starts_with(&prefix));
        if let Some(prefix) =
            single::VAE.into_iter().chain([""]).find(|p| starts(format!("{p}encoder.down.")))
        {
            return Ok(Self::Ldm(path.into(), prefix));
        }
        if starts("encoder.down_blocks.".into()) {
            return Ok(Self::Diffusers(path.into()));
        }
        let message = format!("is no VAE; it seems to be {}", sniff::by_tensors(&file));
        Err(Error::file(path, message))
    }

    /// Its configuration, where it has one of its own.
    ///
    /// # Errors
    /// It is of another kind.
    pub fn config(&self) -> Result<Option<VaeConfig>> {
        match self {
            Self::Folder(path) => VaeConfig::open(&folder::config(path, Component::Vae)).map(Some),
            Self::Diffusers(_) | Self::Ldm(..) => Ok(None),
        }
    }

    /// Its weights.
    ///
    /// # Errors
    /// They are missing or damaged.
    pub fn weights(&self, config: &VaeConfig) -> Result<Weights> {
        match self {
            Self::Folder(path) => folder::weights(path, Component::Vae),
            Self::Diffusers(path) => Weights::from_file(TensorFile::open(path)?),
            Self::Ldm(path, prefix) => single::vae(TensorFile::open(path)?, prefix, config),
        }
    }

    /// Adds what tells it from others.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn digest(&self, hash: &mut Sha256) -> Result<()> {
        match self {
            Self::Folder(path) => digest::folder(hash, path, &["json", "safetensors"]),
            Self::Diffusers(path) | Self::Ldm(path, _) => digest::file(hash, path),
        }
    }
}
