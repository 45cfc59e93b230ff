//! A single file that holds a whole model, or most of one.
//!
//! Which model it is, is told from the names and shapes of its tensors. What these do not tell, heads and groups of norms, is
//! that of the Stable Diffusion it is recognised as.

use std::path::{Path, PathBuf};

use super::ldm::Naming;
use super::{Component, Family};
use crate::build::sketch;
use crate::config::{
    ClipConfig, PredictionType, SchedulerConfig, Spacing, UnetConfig, VaeConfig, other_kind,
};
use crate::error::listing;
use crate::tensor_file::TensorFile;
use crate::unet::{layers_of, unet_tensors};
use crate::weights::Weights;
use crate::{Blocks, Error, Result, sniff};

pub(super) const UNET: &str = "model.diffusion_model.";
pub(super) const VAE: [&str; 2] = ["first_stage_model.", "vae."];
/// CLIP's tensors; old merges lack `text_model.`
pub(super) const CLIP: [&str; 2] =
    ["cond_stage_model.transformer.text_model.", "cond_stage_model.transformer."];
pub(super) const OPEN_CLIP: &str = "cond_stage_model.model.";

/// Says that the U-Net predicts v.
pub(super) const V: &str = "v_pred";
/// Says that the last timestep is pure noise.
pub(super) const ZERO_SNR: &str = "ztsnr";

/// What the names begin with of what belongs to no part and changes nothing: averaged weights beside those that are used, the noise
/// schedule as tables, and what was needed in training.
const NOTHING: [&str; 14] = [
    "model_ema.",
    "alphas_cumprod",
    "betas",
    "log_one_minus_alphas_cumprod",
    "logvar",
    "lvlb_weights",
    "posterior_",
    "scale_factor",
    "sqrt_",
    "cond_stage_model.logit_scale",
    "cond_stage_model.text_projection",
    "callbacks.",
    V,
    ZERO_SNR,
];

/// What has configurations of its own, where tensors do not tell them.
const GIVE_CONFIG: &str =
    "give a diffusers folder that has its configurations, `config = \"FOLDER\"` (--config FOLDER)";

/// A checkpoint in one safetensors file.
#[derive(Debug, Clone)]
pub(super) struct SingleFile {
    path: PathBuf,
    pub family: Family,
    /// What the names of the VAE begin with, where there is one.
    vae: Option<&'static str>,
    /// What those of the text encoder begin with.
    text: Option<&'static str>,
    /// Whether it is marked as predicting velocity.
    predicts_v: bool,
    /// Whether its last timestep is marked as pure noise.
    zero_snr: bool,
    /// What its metadata say that the U-Net predicts.
    prediction: Option<PredictionType>,
    /// Tensors that belong to nothing known.
    unused: Vec<String>,
}

impl SingleFile {
    /// Opens a checkpoint of Stable Diffusion 1.x or 2.x.
    ///
    /// # Errors
    /// It is no safetensors file, or something else, which is named.
    pub fn open(path: &Path) -> Result<Self> {
        let file = TensorFile::open(path)?;
        let shapes = Shapes(&file);
        let starts = |prefix: &str| file.tensors().keys().any(|name| name.starts_with(prefix));
        if !shapes.has("input_blocks.") || starts("conditioner.") || shapes.has("label_emb.") {
            let kind = sniff::by_tensors(&file);
            let message = format!("is no checkpoint of Stable Diffusion 1.x or 2.x; it seems to be {kind}");
            return Err(Error::file(path, message));
        }
        let channels = (shapes.axis("input_blocks.0.0.weight", 1), shapes.axis("out.2.weight", 0));
        if let (Some(inward), Some(outward)) = channels
            && let Some(kind) = other_kind(inward as u64, outward as u64)
        {
            let message = format!("its U-Net has {inward} inputs and {outward} outputs: that is {kind}");
            return Err(Error::file(path, message));
        }
        let text = CLIP.into_iter().chain([OPEN_CLIP]).find(|prefix| starts(prefix));
        let family = match text {
            Some(OPEN_CLIP) => Family::Sd2,
            None if shapes.linear_projection() => Family::Sd2,
            _ => Family::Sd1,
        };
        let vae = VAE.into_iter().find(|prefix| starts(prefix));
        let known = |name: &str| {
            let mut prefixes = NOTHING.into_iter().chain([UNET]).chain(vae).chain(text);
            name.ends_with("position_ids") || prefixes.any(|prefix| name.starts_with(prefix))
        };
        let prediction = match file.metadata().get("modelspec.prediction_type").map(String::as_str) {
            Some("v" | "v_prediction") => Some(PredictionType::VPrediction),
            Some("epsilon") => Some(PredictionType::Epsilon),
            _ => None,
        };
        Ok(Self {
            path: path.into(),
            family,
            vae,
            text,
            predicts_v: file.tensors().contains_key(V),
            zero_snr: file.tensors().contains_key(ZERO_SNR),
            prediction,
            unused: file.tensors().keys().filter(|name| !known(name)).cloned().collect(),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file has the component. Configurations and tokenizers are never in it.
    pub fn has(&self, component: Component) -> bool {
        match component {
            Component::Unet => true,
            Component::Vae => self.vae.is_some(),
            Component::TextEncoder => self.text.is_some(),
            Component::Tokenizer | Component::Scheduler => false,
        }
    }

    /// What of the file is not used: a sentence.
    pub fn unused(&self) -> Option<String> {
        let (path, count) = (self.path.display(), self.unused.len());
        let list = listing(&self.unused);
        (count > 0)
            .then(|| format!("{path}: {count} tensor(s) belong to no known part and are not used: {list}"))
    }

    /// Whether nothing in the file says what the U-Net predicts, though its family has models of both kinds.
    pub fn leaves_prediction_open(&self) -> bool {
        self.family == Family::Sd2 && !self.predicts_v && self.prediction.is_none()
    }

    /// The noise schedule by the file's marks, beside what `config` says where there is one. Stable Diffusion 1 predicts noise,
    /// and 2 velocity, unless the file says otherwise.
    pub fn scheduler(&self, config: Option<SchedulerConfig>) -> SchedulerConfig {
        let usual = match self.family {
            Family::Sd1 => PredictionType::Epsilon,
            Family::Sd2 => PredictionType::VPrediction,
        };
        let mut scheduler = config.unwrap_or_else(|| SchedulerConfig {
            prediction_type: self.prediction.unwrap_or(usual),
            ..SchedulerConfig::sd15()
        });
        if self.predicts_v {
            scheduler.prediction_type = PredictionType::VPrediction;
        }
        if self.zero_snr {
            scheduler.rescale_betas_zero_snr = true;
            // a picture begins as pure noise, which is the last timestep alone
            scheduler.timestep_spacing = Some(Spacing::Trailing);
        }
        scheduler
    }

    /// The U-Net by the shapes of its tensors; `standard` says what these do not.
    ///
    /// # Errors
    /// It is not as wide as `standard`, so that heads and groups are not known, or its levels differ in depth.
    pub fn unet_config(&self, standard: UnetConfig) -> Result<UnetConfig> {
        let file = TensorFile::open(&self.path)?;
        let shapes = Shapes(&file);
        let (mut channels, mut units, mut down_blocks) = (vec![0], vec![0], vec![false]);
        for block in (1..).map(|i| format!("input_blocks.{i}.")).take_while(|block| shapes.has(block)) {
            if shapes.has(&format!("{block}0.op.")) {
                channels.push(0);
                units.push(0);
                down_blocks.push(false);
                continue;
            }
            let level = channels.len() - 1;
            channels[level] =
                shapes.axis(&format!("{block}0.out_layers.3.weight"), 0).unwrap_or(channels[level]);
            units[level] += 1;
            down_blocks[level] |= shapes.has(&format!("{block}1."));
        }
        if channels != standard.block_out_channels || units.iter().any(|count| *count != units[0]) {
            let message = format!(
                "the levels of its U-Net have {channels:?} channels and {units:?} residual blocks; those of Stable Diffusion have \
                 {:?} channels and equally many blocks. How many heads and groups another U-Net has cannot be seen: {GIVE_CONFIG}",
                standard.block_out_channels
            );
            return Err(Error::file(&self.path, message));
        }
        let up_block = |i| shapes.has(&format!("output_blocks.{}.1.transformer_blocks.", i * (units[0] + 1)));
        Ok(UnetConfig {
            in_channels: shapes.axis("input_blocks.0.0.weight", 1).unwrap_or(standard.in_channels),
            out_channels: shapes.axis("out.2.weight", 0).unwrap_or(standard.out_channels),
            up_blocks: (0..channels.len()).map(up_block).collect(),
            down_blocks,
            layers_per_block: units[0],
            cross_attention_dim: shapes.context().unwrap_or(standard.cross_attention_dim),
            use_linear_projection: shapes.linear_projection(),
            ..standard
        })
    }

    /// The weights of the U-Net.
    ///
    /// # Errors
    /// The file cannot be opened; so for all of these.
    pub fn unet(&self, config: &UnetConfig) -> Result<Weights> {
        let naming = Naming::Unet(Blocks::new(&layers_of(config)?));
        Ok(naming.weights(TensorFile::open(&self.path)?, UNET, unet_tensors(config)?))
    }

    /// Those of the VAE.
    pub fn vae(&self, config: &VaeConfig) -> Result<Weights> {
        vae(TensorFile::open(&self.path)?, self.vae.unwrap_or_default(), config)
    }

    /// Those of the text encoder.
    pub fn text_encoder(&self, config: &ClipConfig) -> Result<Weights> {
        let naming = match self.text {
            Some(OPEN_CLIP) => Naming::OpenClip { layers: config.num_hidden_layers },
            _ => Naming::Clip,
        };
        let prefix = self.text.unwrap_or_default();
        Ok(naming.weights(TensorFile::open(&self.path)?, prefix, sketch(config)?.1))
    }
}

/// A VAE's share of a file whose names for it begin with `prefix`.
///
/// # Errors
/// The configuration cannot be built.
pub(super) fn vae(file: TensorFile, prefix: &str, config: &VaeConfig) -> Result<Weights> {
    let naming = Naming::Vae { levels: config.block_out_channels.len() };
    Ok(naming.weights(file, prefix, sketch(config)?.1))
}

/// The U-Net's tensors by their names without the prefix.
struct Shapes<'a>(&'a TensorFile);

impl Shapes<'_> {
    fn of_unet(&self) -> impl Iterator<Item = (&str, &[usize])> {
        let tensors = self.0.tensors().iter();
        tensors.filter_map(|(name, info)| Some((name.strip_prefix(UNET)?, info.shape.as_slice())))
    }

    fn has(&self, prefix: &str) -> bool {
        self.of_unet().any(|(name, _)| name.starts_with(prefix))
    }

    fn axis(&self, tensor: &str, axis: usize) -> Option<usize> {
        self.0.tensors().get(&format!("{UNET}{tensor}"))?.shape.get(axis).copied()
    }

    /// Channels of the text states.
    fn context(&self) -> Option<usize> {
        self.of_unet().find(|(name, _)| name.ends_with(".attn2.to_k.weight"))?.1.get(1).copied()
    }

    /// Whether there are linear layers around the transformers, rather than 1×1 convolutions.
    fn linear_projection(&self) -> bool {
        self.of_unet().any(|(name, shape)| name.ends_with(".proj_in.weight") && shape.len() == 2)
    }
}
