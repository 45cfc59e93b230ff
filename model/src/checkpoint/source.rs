//! Where the parts of a model lie.

use std::path::{Path, PathBuf};

use sha2::Sha256;

use super::single::SingleFile;
use super::{Component, Family, digest, folder};
use crate::config::{ModelIndex, PredictionType, SchedulerConfig, UnetConfig};
use crate::{ClipTokenizer, Error, Result};

/// A model as a whole.
#[derive(Debug, Clone)]
pub(super) enum Source {
    /// A folder in diffusers' layout: model_index.json beside a folder for each component.
    Folder(PathBuf),
    /// The folder of a U-Net, out of such a one.
    Unet(PathBuf),
    /// A single file, and the folder in diffusers' layout that has what the file lacks.
    File(SingleFile, Option<PathBuf>),
}

/// One part of it.
pub(super) enum Place<'a> {
    /// In a component's folder of diffusers'.
    Folder(PathBuf),
    /// In a single file.
    File(&'a SingleFile),
}

impl Source {
    /// Of a path that exists.
    ///
    /// # Errors
    /// It is no model, or `config` is given for a folder.
    pub fn open(path: &Path, config: Option<&Path>) -> Result<Self> {
        if path.is_file() {
            config.map(ModelIndex::open).transpose()?;
            return Ok(Self::File(SingleFile::open(path)?, config.map(Path::to_owned)));
        }
        ModelIndex::open(path)?;
        Self::Folder(path.into()).without(config)
    }

    /// As [`open`](Self::open), or the folder of a U-Net.
    ///
    /// # Errors
    /// It is none of these, or `config` is given for a folder.
    pub fn open_unet(path: &Path, config: Option<&Path>) -> Result<Self> {
        if path.is_file() {
            return Self::open(path, config);
        }
        let has_unet =
            |source: &Self| matches!(source.config(Component::Unet), Ok(Some(file)) if file.is_file());
        match [Self::Folder(path.into()), Self::Unet(path.into())].into_iter().find(has_unet) {
            Some(source) => source.without(config),
            None => {
                let message = "no unet/config.json and no config.json here; give a checkpoint in one .safetensors file, or the \
                               folder of a diffusers model";
                Err(Error::file(path, message))
            }
        }
    }

    fn without(self, config: Option<&Path>) -> Result<Self> {
        match config {
            None => Ok(self),
            Some(_) => Err(Error::file(
                self.path(),
                "is a folder, which has configurations of its own; leave out `config` (--config), which is for single files",
            )),
        }
    }

    pub fn path(&self) -> &Path {
        match self {
            Self::Folder(path) | Self::Unet(path) => path,
            Self::File(file, _) => file.path(),
        }
    }

    /// Where a component's weights lie.
    ///
    /// # Errors
    /// They are nowhere.
    pub fn place(&self, component: Component) -> Result<Place<'_>> {
        match self {
            Self::File(file, _) if file.has(component) => Ok(Place::File(file)),
            _ => self.folder(component).map(Place::Folder),
        }
    }

    /// A component's folder, also of what is in a single file.
    fn folder(&self, component: Component) -> Result<PathBuf> {
        let name = folder::name(component);
        match self {
            Self::Folder(root) | Self::File(_, Some(root)) => Ok(root.join(name)),
            Self::Unet(folder) if component == Component::Unet => Ok(folder.clone()),
            Self::Unet(path) => {
                let message =
                    format!("is the folder of a U-Net alone; `{name}` is in the folder of the whole model");
                Err(Error::file(path, message))
            }
            Self::File(file, None) => {
                let vae =
                    if component == Component::Vae { "one, `vae = \"FILE\"` (--vae FILE), or " } else { "" };
                let message = format!(
                    "has no {component}; give {vae}a diffusers folder that has one, `config = \"FOLDER\"` (--config FOLDER)"
                );
                Err(Error::file(file.path(), message))
            }
        }
    }

    /// The configuration of a component; `None` where Stable Diffusion's own is meant.
    ///
    /// # Errors
    /// There cannot be one.
    pub fn config(&self, component: Component) -> Result<Option<PathBuf>> {
        match self {
            Self::File(_, None) => Ok(None),
            _ => Ok(Some(folder::config(&self.folder(component)?, component))),
        }
    }

    /// Which Stable Diffusion it is, and what its U-Net looks like. `prediction` is what is said of it.
    ///
    /// # Errors
    /// The configuration is missing or of another kind of model, or what the file holds does not tell it.
    pub fn unet(&self, prediction: Option<PredictionType>) -> Result<(Family, UnetConfig)> {
        let config = self.config(Component::Unet)?.map(|path| UnetConfig::open(&path)).transpose()?;
        let (family, config) = match (self, config) {
            (Self::File(file, _), Some(config)) => (file.family, config),
            (Self::File(file, _), None) => {
                let velocity = self.scheduler(prediction)?.prediction_type == PredictionType::VPrediction;
                let standard = match file.family {
                    Family::Sd1 => UnetConfig::sd15(),
                    // those that predict velocity were trained on pictures of 768 × 768
                    Family::Sd2 => {
                        UnetConfig { sample_size: if velocity { 96 } else { 64 }, ..UnetConfig::sd2() }
                    }
                };
                (file.family, file.unet_config(standard)?)
            }
            // SD2's U-Net is told by its linear projections
            (_, Some(config)) if config.use_linear_projection => (Family::Sd2, config),
            (_, config) => (Family::Sd1, config.unwrap_or_else(UnetConfig::sd15)),
        };
        Ok((family, config))
    }

    /// How noise and sampling are set. `prediction` is what is said of it.
    ///
    /// # Errors
    /// The configuration is missing, damaged, or of another kind of scheduler.
    pub fn scheduler(&self, prediction: Option<PredictionType>) -> Result<SchedulerConfig> {
        let config =
            self.config(Component::Scheduler)?.map(|path| SchedulerConfig::open(&path)).transpose()?;
        let mut scheduler = match self {
            Self::File(file, _) => file.scheduler(config),
            _ => config.unwrap_or_else(SchedulerConfig::sd15),
        };
        scheduler.prediction_type = prediction.unwrap_or(scheduler.prediction_type);
        Ok(scheduler)
    }

    /// # Errors
    /// It is missing, damaged or of another kind.
    pub fn tokenizer(&self) -> Result<ClipTokenizer> {
        match self {
            Self::File(file, None) => ClipTokenizer::standard(match file.family {
                Family::Sd1 => ClipTokenizer::SD1_PAD,
                Family::Sd2 => ClipTokenizer::SD2_PAD,
            }),
            _ => ClipTokenizer::open(&self.folder(Component::Tokenizer)?),
        }
    }

    /// Adds what tells the model from others.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn digest(&self, hash: &mut Sha256) -> Result<()> {
        let file = match self {
            Self::File(file, _) => {
                digest::file(hash, file.path())?;
                Some(file)
            }
            _ => None,
        };
        if matches!(self, Self::File(_, None)) {
            return Ok(());
        }
        for component in folder::components() {
            // weights that are in the file are not the folder's
            let extensions: &[&str] = match file.is_some_and(|file| file.has(component)) {
                true => &["json", "txt"],
                false => &["json", "safetensors", "txt"],
            };
            digest::folder(hash, &self.folder(component)?, extensions)?;
        }
        Ok(())
    }
}
