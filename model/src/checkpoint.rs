//! A model on disk: what it is, and where each part of it lies.
//!
//! A [`Checkpoint`] is opened once and hands out the parts: no other file knows the names of folders and files.

mod digest;
mod export;
mod extract;
mod folder;
mod ldm;
mod merge;
mod save;
mod single;
mod source;
mod vae;
mod words;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};
use strata_engine::{DType, Gpu};

use crate::config::{ClipConfig, PredictionType, SchedulerConfig, UnetConfig, VaeConfig};
use crate::unet::{layers_of, unet_tensors};
use crate::weights::Weights;
use crate::{
    Clip, ClipTokenizer, Embedding, Error, LayerInfo, NoiseSchedule, Result, Tag, TextEncoder, Unet, Vae,
    sniff,
};
pub use merge::Numbers;
use source::{Place, Source};
use vae::OtherVae;

/// What a model consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Component {
    /// Predicts noise.
    Unet,
    /// Between pictures and latents.
    Vae,
    /// Token ids to states.
    TextEncoder,
    /// Text to token ids.
    Tokenizer,
    /// How much noise each timestep has.
    Scheduler,
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unet => "U-Net",
            Self::Vae => "VAE",
            Self::TextEncoder => "text encoder",
            Self::Tokenizer => "tokenizer",
            Self::Scheduler => "scheduler",
        })
    }
}

/// Which Stable Diffusion a model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// 1.x: CLIP-L's text states.
    Sd1,
    /// 2.x: OpenCLIP-H's.
    Sd2,
}

/// What can be said of a model beside where it lies. By default nothing is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ModelOptions {
    /// Another VAE: a safetensors file with LDM's or diffusers' names, or a folder of diffusers'.
    pub vae: Option<PathBuf>,
    /// Of a single file: a folder in diffusers' layout that has the configurations, the tokenizer, and the parts that the file
    /// lacks. By default configurations and vocabulary are Stable Diffusion's.
    pub config: Option<PathBuf>,
    /// What the U-Net predicts, whatever the files say.
    pub prediction: Option<PredictionType>,
}

/// One part of a model, as its files have it.
#[derive(Debug, Clone, PartialEq)]
pub struct PartInfo {
    /// The file, or the folder where there are several.
    pub path: PathBuf,
    /// How many numbers there are of each format, which is named as safetensors does.
    pub numbers: BTreeMap<String, usize>,
}

/// A model on disk. Opening reads configurations and headers alone.
///
/// ```no_run
/// use strata_engine::{DType, Gpu, GpuOptions};
/// use strata_model::{Checkpoint, Reading};
///
/// let model = Checkpoint::open("v1-5-pruned-emaonly.safetensors".as_ref())?;
/// let gpu = Gpu::open(&GpuOptions::default())?;
/// let text = model.text_encoder(&gpu, DType::F32)?;
/// let told = text.encode(&text.read(&["a portrait"], Reading::Literal, &[])?, 0)?;
/// assert_eq!(told.states.shape(), [1, 77, 768]);
/// # Ok::<(), strata_model::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Checkpoint {
    source: Source,
    vae: Option<OtherVae>,
    prediction: Option<PredictionType>,
    family: Family,
    unet: UnetConfig,
    embeddings: Vec<Embedding>,
}

/// Refuses the name of a model where there is nothing of that name.
fn check_there(path: &Path) -> Result<()> {
    if path.is_file() || path.is_dir() {
        return Ok(());
    }
    if path.exists() {
        return Err(Error::file(path, sniff::NO_FILE));
    }
    let message = "there is no such file or folder here. Give the path of a Stable Diffusion 1.x or 2.x model: a checkpoint, \
                   one .safetensors file, or a folder in diffusers' layout, with model_index.json, unet/, vae/, text_encoder/, \
                   tokenizer/ and scheduler/. Names are not looked up on the internet";
    Err(Error::file(path, message))
}

impl Checkpoint {
    /// Opens a Stable Diffusion 1.x or 2.x model: a single file, or a folder in diffusers' layout.
    ///
    /// # Errors
    /// It is neither, a part is missing, or the U-Net is of another kind of model.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(path, &ModelOptions::default())
    }

    /// As [`open`](Self::open), with what else is said of the model.
    ///
    /// # Errors
    /// Those of [`open`](Self::open), also for what `options` name; or `config` is given for a folder, which has its own.
    pub fn open_with(path: &Path, options: &ModelOptions) -> Result<Self> {
        check_there(path)?;
        let checkpoint = Self::new(Source::open(path, options.config.as_deref())?, options)?;
        checkpoint.source.place(Component::TextEncoder)?;
        if checkpoint.vae.is_none() {
            checkpoint.source.place(Component::Vae)?;
        }
        Ok(checkpoint)
    }

    /// As [`open_with`](Self::open_with), or the folder of a U-Net alone; other parts may be missing.
    ///
    /// # Errors
    /// It is none of these, or the U-Net is of another kind of model.
    pub fn open_unet(path: &Path, options: &ModelOptions) -> Result<Self> {
        check_there(path)?;
        Self::new(Source::open_unet(path, options.config.as_deref())?, options)
    }

    fn new(source: Source, options: &ModelOptions) -> Result<Self> {
        let vae = options.vae.as_deref().map(OtherVae::open).transpose()?;
        let prediction = options.prediction;
        let (family, unet) = source.unet(prediction)?;
        Ok(Self { source, vae, prediction, family, unet, embeddings: Vec::new() })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        self.source.path()
    }

    /// Which Stable Diffusion it is.
    pub fn family(&self) -> Family {
        self.family
    }

    /// What the U-Net looks like.
    pub fn unet_config(&self) -> &UnetConfig {
        &self.unet
    }

    /// The layers of the U-Net: no GPU and no weights needed.
    ///
    /// # Errors
    /// The configuration cannot be built.
    pub fn layers(&self) -> Result<Vec<LayerInfo>> {
        layers_of(&self.unet)
    }

    /// Holds the headers of the U-Net's weights to its configuration, without reading them.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn check_unet(&self) -> Result<()> {
        let weights = self.unet_weights()?;
        unet_tensors(&self.unet)?.iter().try_for_each(|tensor| tensor.check(&weights))
    }

    /// The U-Net, its weights in `dtype`.
    ///
    /// # Errors
    /// The weights do not fit the configuration, or the GPU is out of memory.
    pub fn unet(&self, gpu: &Gpu, dtype: DType) -> Result<Unet> {
        Unet::load(gpu, &self.unet, self.unet_weights()?, dtype)
    }

    /// The VAE. Some overflow f16.
    ///
    /// # Errors
    /// As [`unet`](Self::unet), or it is of another kind.
    pub fn vae(&self, gpu: &Gpu, dtype: DType) -> Result<Vae> {
        let (config, weights) = self.vae_parts()?;
        Vae::load(gpu, &config, weights, dtype)
    }

    /// The tokenizer, with the words that were given vectors.
    ///
    /// # Errors
    /// It is missing, damaged or of another kind.
    pub fn tokenizer(&self) -> Result<ClipTokenizer> {
        let mut tokenizer = self.source.tokenizer()?;
        let word = |Embedding { word, key, .. }: &Embedding| {
            Ok(Tag::new(&tokenizer, word)?.with_key(Arc::new(key.clone())))
        };
        let words = self.embeddings.iter().map(word).collect::<Result<Vec<_>>>()?;
        tokenizer.add_words(words);
        Ok(tokenizer)
    }

    /// Tokenizer and text encoder.
    ///
    /// # Errors
    /// As [`unet`](Self::unet), or they are of another kind.
    pub fn text_encoder(&self, gpu: &Gpu, dtype: DType) -> Result<TextEncoder> {
        let (config, weights) = self.text_parts()?;
        let clip = Clip::load(gpu, &config, weights, dtype)?;
        Ok(TextEncoder::new(Arc::new(self.tokenizer()?), clip))
    }

    /// How many layers the text encoder has.
    ///
    /// # Errors
    /// Its configuration is missing, damaged or of another kind.
    pub fn text_layers(&self) -> Result<usize> {
        Ok(self.text_config()?.num_hidden_layers)
    }

    /// The vectors that tokens begin as, row-major, and their width.
    ///
    /// # Errors
    /// The text encoder's files are missing, damaged or of another kind.
    pub fn token_vectors(&self) -> Result<(Vec<f32>, usize)> {
        let (config, weights) = self.text_parts()?;
        Ok((Clip::token_vectors(&config, weights)?, config.hidden_size))
    }

    /// The weights of the U-Net by diffusers' names, not read yet.
    ///
    /// # Errors
    /// They are missing or damaged.
    pub fn unet_weights(&self) -> Result<Weights> {
        match self.source.place(Component::Unet)? {
            Place::Folder(folder) => folder::weights(&folder, Component::Unet),
            Place::File(file) => file.unet(&self.unet),
        }
    }

    /// What the VAE looks like, and its weights.
    ///
    /// # Errors
    /// As [`vae`](Self::vae).
    fn vae_parts(&self) -> Result<(VaeConfig, Weights)> {
        let own = self.vae.as_ref().map(OtherVae::config).transpose()?.flatten();
        let config = match (own, self.source.config(Component::Vae)?) {
            (Some(own), _) => own,
            (None, Some(path)) => VaeConfig::open(&path)?,
            (None, None) => VaeConfig::sd15(),
        };
        let weights = match &self.vae {
            Some(other) => other.weights(&config)?,
            None => match self.source.place(Component::Vae)? {
                Place::Folder(folder) => folder::weights(&folder, Component::Vae)?,
                Place::File(file) => file.vae(&config)?,
            },
        };
        Ok((config, weights))
    }

    fn text_config(&self) -> Result<ClipConfig> {
        match (self.source.config(Component::TextEncoder)?, self.family) {
            (Some(path), _) => ClipConfig::open(&path),
            (None, Family::Sd1) => Ok(ClipConfig::sd15()),
            (None, Family::Sd2) => Ok(ClipConfig::sd2()),
        }
    }

    /// What the text encoder looks like, and its weights.
    ///
    /// # Errors
    /// As [`text_encoder`](Self::text_encoder).
    fn text_parts(&self) -> Result<(ClipConfig, Weights)> {
        let config = self.text_config()?;
        let weights = match self.source.place(Component::TextEncoder)? {
            Place::Folder(folder) => folder::weights(&folder, Component::TextEncoder)?,
            Place::File(file) => file.text_encoder(&config)?,
        };
        Ok((config, weights))
    }

    /// How noise and sampling are set.
    ///
    /// # Errors
    /// The configuration is missing, damaged, or of another kind of scheduler.
    pub fn scheduler(&self) -> Result<SchedulerConfig> {
        self.source.scheduler(self.prediction)
    }

    /// How much noise each timestep has.
    ///
    /// # Errors
    /// Those of [`scheduler`](Self::scheduler), or it describes no schedule.
    pub fn schedule(&self) -> Result<NoiseSchedule> {
        NoiseSchedule::new(&self.scheduler()?)
    }

    /// A part with weights, as its files have it.
    ///
    /// # Errors
    /// There is none, or it is damaged or of another kind.
    pub fn part(&self, component: Component) -> Result<PartInfo> {
        let weights = match component {
            Component::Vae => self.vae_parts()?.1,
            Component::TextEncoder => self.text_parts()?.1,
            _ => self.unet_weights()?,
        };
        let mut info = PartInfo { path: weights.source(), numbers: BTreeMap::new() };
        for (dtype, count) in weights.numbers() {
            *info.numbers.entry(dtype).or_default() += count;
        }
        Ok(info)
    }

    /// Whether it is a single file, rather than a folder.
    pub fn is_single_file(&self) -> bool {
        matches!(self.source, Source::File(..))
    }

    /// What of the model is not used, and what was assumed where its files leave it open: a sentence each.
    ///
    /// # Errors
    /// Those of [`scheduler`](Self::scheduler).
    pub fn notes(&self) -> Result<Vec<String>> {
        let mut notes = self.scheduler()?.notes;
        if let Source::File(file, config) = &self.source {
            notes.extend(file.unused());
            if config.is_none() && self.prediction.is_none() && file.leaves_prediction_open() {
                let path = file.path().display();
                notes.push(format!(
                    "{path}: a Stable Diffusion 2 model that does not say what its U-Net predicts; taken to be v, as in 2.0-v and \
                     2.1. If pictures are noise, it is a base model: `prediction = \"epsilon\"` (--prediction epsilon)"
                ));
            }
        }
        Ok(notes)
    }

    /// Tells models apart without reading them whole: a hash over every file's size, its header, and samples all over it, and of
    /// folders the files' names.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn digest(&self) -> Result<[u8; 32]> {
        let mut hash = Sha256::new();
        self.source.digest(&mut hash)?;
        if let Some(vae) = &self.vae {
            vae.digest(&mut hash)?;
        }
        if let Some(prediction) = self.prediction {
            hash.update(format!("{prediction:?}"));
        }
        for Embedding { word, key, .. } in &self.embeddings {
            hash.update(format!("embedding {word:?} {}", key.channels()));
            key.vectors().iter().for_each(|v| hash.update(v.to_le_bytes()));
        }
        Ok(hash.finalize().into())
    }
}
