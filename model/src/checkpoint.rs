//! A model on disk: what it is, and where each part of it lies.
//!
//! A [`Checkpoint`] is opened once and hands out the parts: no other file knows the names of folders and files.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};
use strata_engine::{DType, Gpu};

use crate::build::{WeightInfo, sketch};
use crate::config::{ClipConfig, ModelIndex, SchedulerConfig, UnetConfig, VaeConfig};
use crate::unet::layers_of;
use crate::weights::Weights;
use crate::{Clip, ClipTokenizer, Error, LayerInfo, NoiseSchedule, Result, TextEncoder, Unet, Vae};

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

/// Which Stable Diffusion a model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// 1.x: CLIP-L's text states.
    Sd1,
    /// 2.x: OpenCLIP-H's.
    Sd2,
}

/// A model on disk. Opening reads configurations alone.
///
/// ```no_run
/// use strata_engine::{DType, Gpu, GpuOptions};
/// use strata_model::{Checkpoint, Reading};
///
/// let model = Checkpoint::open("stable-diffusion-v1-5".as_ref())?;
/// let gpu = Gpu::open(&GpuOptions::default())?;
/// let text = model.text_encoder(&gpu, DType::F32)?;
/// let told = text.encode(&text.read(&["a portrait"], Reading::Literal, &[])?, 0)?;
/// assert_eq!(told.states.shape(), [1, 77, 768]);
/// # Ok::<(), strata_model::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Checkpoint {
    source: Source,
    family: Family,
    unet: UnetConfig,
}

/// Where the parts lie.
#[derive(Debug, Clone)]
enum Source {
    /// A folder in diffusers' layout: model_index.json beside a folder for each component.
    Folder(PathBuf),
    /// The folder of a U-Net, out of such a one.
    Unet(PathBuf),
}

/// Diffusers' folder of each component, its configuration there, and what its weights are called.
const FOLDERS: [(Component, &str, &str, &str); 5] = [
    (Component::Unet, "unet", "config.json", "diffusion_pytorch_model"),
    (Component::Vae, "vae", "config.json", "diffusion_pytorch_model"),
    (Component::TextEncoder, "text_encoder", "config.json", "model"),
    (Component::Tokenizer, "tokenizer", "tokenizer_config.json", ""),
    (Component::Scheduler, "scheduler", "scheduler_config.json", ""),
];

/// How much of a file a digest reads at once: its header, and places all over it.
const SAMPLE: usize = 64 << 10;
const SAMPLES: u64 = 32;

/// Refuses the name of a model where there is nothing of that name.
fn check_there(path: &Path) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    let message = "there is no such folder here. Give the path of a Stable Diffusion 1.x or 2.x model in diffusers' layout: a \
                   folder with model_index.json, unet/, vae/, text_encoder/, tokenizer/ and scheduler/. Names are not looked up \
                   on the internet";
    Err(Error::file(path, message))
}

impl Checkpoint {
    /// Opens the folder of a Stable Diffusion 1.x or 2.x model in diffusers' layout.
    ///
    /// # Errors
    /// It is no such folder, a component's folder is missing, or the U-Net is of another kind of model.
    pub fn open(path: &Path) -> Result<Self> {
        check_there(path)?;
        ModelIndex::open(path)?;
        Self::new(Source::Folder(path.into()))
    }

    /// As [`open`](Self::open), or the folder of a U-Net alone, whose other parts are missing then.
    ///
    /// # Errors
    /// It is neither, or the U-Net is of another kind of model.
    pub fn open_unet(path: &Path) -> Result<Self> {
        check_there(path)?;
        let whole = Source::Folder(path.into());
        let alone = Source::Unet(path.into());
        let source = [whole, alone]
            .into_iter()
            .find(|source| source.config(Component::Unet).is_ok_and(|c| c.is_file()));
        let Some(source) = source else {
            let message = "no unet/config.json and no config.json here; give the folder of a diffusers model";
            return Err(Error::file(path, message));
        };
        Self::new(source)
    }

    fn new(source: Source) -> Result<Self> {
        let unet = UnetConfig::open(&source.config(Component::Unet)?)?;
        // SD2's U-Net is told by its linear projections
        let family = if unet.use_linear_projection { Family::Sd2 } else { Family::Sd1 };
        Ok(Self { source, family, unet })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        match &self.source {
            Source::Folder(path) | Source::Unet(path) => path,
        }
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
        let weights = self.weights(Component::Unet)?;
        for WeightInfo { names, shapes, .. } in sketch(&self.unet)?.1 {
            let expected = shapes[0].clone();
            let found = names.iter().find_map(|name| weights.shape(name));
            let (path, name) = (weights.source(), names[0].clone());
            match found {
                None => return Err(Error::MissingTensor { path, name, shape: expected }),
                Some(found) if !shapes.iter().any(|wanted| wanted == found) => {
                    return Err(Error::TensorShape { path, name, expected, found: found.to_vec() });
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// The U-Net, its weights in `dtype`.
    ///
    /// # Errors
    /// The weights do not fit the configuration, or the GPU is out of memory.
    pub fn unet(&self, gpu: &Gpu, dtype: DType) -> Result<Unet> {
        Unet::load(gpu, &self.unet, self.weights(Component::Unet)?, dtype)
    }

    /// The VAE. Some overflow f16.
    ///
    /// # Errors
    /// As [`unet`](Self::unet), or it is of another kind.
    pub fn vae(&self, gpu: &Gpu, dtype: DType) -> Result<Vae> {
        let config = VaeConfig::open(&self.source.config(Component::Vae)?)?;
        Vae::load(gpu, &config, self.weights(Component::Vae)?, dtype)
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// It is missing, damaged or of another kind.
    pub fn tokenizer(&self) -> Result<ClipTokenizer> {
        ClipTokenizer::open(&self.source.folder(Component::Tokenizer)?)
    }

    /// Tokenizer and text encoder.
    ///
    /// # Errors
    /// As [`unet`](Self::unet), or they are of another kind.
    pub fn text_encoder(&self, gpu: &Gpu, dtype: DType) -> Result<TextEncoder> {
        let config = ClipConfig::open(&self.source.config(Component::TextEncoder)?)?;
        let clip = Clip::load(gpu, &config, self.weights(Component::TextEncoder)?, dtype)?;
        Ok(TextEncoder::new(Arc::new(self.tokenizer()?), clip))
    }

    /// How many layers the text encoder has.
    ///
    /// # Errors
    /// Its configuration is missing, damaged or of another kind.
    pub fn text_layers(&self) -> Result<usize> {
        Ok(ClipConfig::open(&self.source.config(Component::TextEncoder)?)?.num_hidden_layers)
    }

    /// The vectors that tokens begin as, row-major, and their width.
    ///
    /// # Errors
    /// The text encoder's files are missing, damaged or of another kind.
    pub fn token_vectors(&self) -> Result<(Vec<f32>, usize)> {
        let config = ClipConfig::open(&self.source.config(Component::TextEncoder)?)?;
        let weights = self.weights(Component::TextEncoder)?;
        Ok((Clip::token_vectors(&config, weights)?, config.hidden_size))
    }

    /// The weights of some layers of the U-Net, as [outputs, inputs]: a reader that is asked by path.
    ///
    /// # Errors
    /// The weights are missing or damaged.
    pub fn unet_weights(&self) -> Result<Weights> {
        self.weights(Component::Unet)
    }

    /// How noise and sampling are set.
    ///
    /// # Errors
    /// The configuration is missing, damaged, or of another kind of scheduler.
    pub fn scheduler(&self) -> Result<SchedulerConfig> {
        SchedulerConfig::open(&self.source.config(Component::Scheduler)?)
    }

    /// How much noise each timestep has.
    ///
    /// # Errors
    /// Those of [`scheduler`](Self::scheduler), or it describes no schedule.
    pub fn schedule(&self) -> Result<NoiseSchedule> {
        NoiseSchedule::new(&self.scheduler()?)
    }

    /// Tells models apart without reading them whole: a hash over every file's name and size, its header, and samples all
    /// over it.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn digest(&self) -> Result<[u8; 32]> {
        let mut hash = Sha256::new();
        for (component, ..) in FOLDERS {
            let folder = self.source.folder(component)?;
            let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
                .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
                .map_err(Error::io("read", &folder))?;
            files.retain(|path| {
                path.extension().is_some_and(|e| e == "json" || e == "safetensors" || e == "txt")
            });
            files.sort();
            for path in files {
                hash.update(path.file_name().unwrap_or_default().as_encoded_bytes());
                sample(&path, &mut hash).map_err(Error::io("read", &path))?;
            }
        }
        Ok(hash.finalize().into())
    }

    fn weights(&self, component: Component) -> Result<Weights> {
        let stem = FOLDERS.iter().find(|(own, ..)| *own == component).map_or("", |(.., stem)| stem);
        Weights::open(&self.source.folder(component)?, stem)
    }
}

impl Source {
    /// The folder of a component.
    fn folder(&self, component: Component) -> Result<PathBuf> {
        let name = FOLDERS.iter().find(|(own, ..)| *own == component).map_or("", |(_, name, ..)| name);
        match self {
            Self::Folder(root) => Ok(root.join(name)),
            Self::Unet(folder) if component == Component::Unet => Ok(folder.clone()),
            Self::Unet(folder) => Err(Error::file(
                folder,
                format!("is the folder of a U-Net alone; `{name}` is in the folder of the whole model"),
            )),
        }
    }

    /// The configuration of a component.
    fn config(&self, component: Component) -> Result<PathBuf> {
        let name = FOLDERS.iter().find(|(own, ..)| *own == component).map_or("", |(_, _, config, _)| config);
        Ok(self.folder(component)?.join(name))
    }
}

/// Adds a file's size and evenly spaced samples, its beginning and end among them.
fn sample(path: &Path, hash: &mut Sha256) -> std::io::Result<()> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    hash.update(length.to_le_bytes());
    let last = length.saturating_sub(SAMPLE as u64);
    let mut buffer = Vec::with_capacity(SAMPLE);
    for i in 0..SAMPLES {
        let start = last * i / (SAMPLES - 1);
        buffer.clear();
        file.seek(SeekFrom::Start(start))?;
        (&mut file).take(SAMPLE as u64).read_to_end(&mut buffer)?;
        hash.update(&buffer);
        if last == 0 {
            break;
        }
    }
    Ok(())
}
