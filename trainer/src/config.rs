//! The config of a run: a TOML file in which every key has a default and no key is ever ignored.
//!
//! [`Config::default_toml`] prints all of it with comments, and is the reference of the format.

mod check;
mod feature;
mod parse;
mod print;

use std::path::{Path, PathBuf};

pub use feature::{FeatureConfig, Order, PreserveConfig, PreservePrompt, SilenceConfig};

use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};

use crate::{Error, Result};

/// Everything a run depends on. Paths in a file are relative to the folder of that file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Folder of a Stable Diffusion model in diffusers layout. Default `model`.
    pub model: PathBuf,
    /// The LoRA to write, a `.safetensors` file; of all features together, where there are several. Default
    /// `lora.safetensors`.
    pub output: PathBuf,
    /// Number format of the LoRA's tensors on disk. Default `f16`.
    pub save_dtype: Precision,
    /// JSON-lines log of the steps. Default: `output` with the extension `.jsonl`.
    pub log: Option<PathBuf>,
    /// Folder for curves that TensorBoard shows. Default: none.
    pub tensorboard: Option<PathBuf>,
    /// All chance in a run comes from this number, at most 2⁶³ − 1 (TOML's largest). Default 0.
    pub seed: u64,
    /// Whether several features learn one after the other or side by side. Default `staged`.
    pub order: Order,
    /// The pictures to learn from, in a run without features.
    pub dataset: DatasetConfig,
    /// Which layers get a LoRA, in a run without features. Default: one rule, `attn` with rank 8 and alpha 8.
    pub lora: Vec<LoraRule>,
    /// What to learn, where it is more than one thing or has a tag. Default: none.
    pub feature: Vec<FeatureConfig>,
    /// How to learn.
    pub train: TrainConfig,
}

/// A folder of pictures, each with a caption beside it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DatasetConfig {
    /// Folder of pictures. Default `pictures`.
    pub folder: PathBuf,
    /// Size in pixels that every picture is brought to. Default 512 × 512.
    pub resolution: Resolution,
    /// What replaces a picture's extension to name its caption. Default `.txt`.
    pub caption_extension: String,
    /// `true` (default): keep proportions and cut off what is over at the edges; `false`: squeeze the whole picture in.
    pub center_crop: bool,
    /// Show each picture mirrored half of the time. Default `false`: it harms text, faces and logos.
    pub flip: bool,
}

/// A rule: the layers a pattern selects get a LoRA of this rank.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraRule {
    /// Pattern of layer paths, or the name of a group of layers. Default `attn`.
    pub select: String,
    /// Rank r: `down` is r × in, `up` is out × r. Default 8.
    pub rank: u32,
    /// The LoRA's output is multiplied by alpha / r. Default 8.
    pub alpha: f64,
    /// Learning rate of these layers. Default: `train.lr`.
    pub lr: Option<f64>,
}

/// How to learn.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Updates of the LoRA. Default 1000.
    pub steps: u64,
    /// Pictures that go through the U-Net at once. Default 1.
    pub batch_size: u32,
    /// Batches summed into one update. Default 1.
    pub gradient_accumulation: u32,
    /// Learning rate, where a rule names no other. Default 1e-4.
    pub lr: f64,
    /// How the learning rate falls after the warm-up. Default `constant`.
    pub lr_schedule: Schedule,
    /// Steps over which the learning rate rises from 0. Default 0.
    pub warmup_steps: u64,
    /// A longer gradient is scaled down to this norm; 0 = never. Default 1.
    pub max_grad_norm: f64,
    /// AdamW's decay of the LoRA's weights. Default 0.01.
    pub weight_decay: f64,
    /// AdamW's β₁ and β₂. Default 0.9, 0.999.
    pub betas: [f64; 2],
    /// AdamW's ε. Default 1e-8.
    pub eps: f64,
    /// Number format of weights and activations; sums, and the LoRA itself, are always f32. Default `f16`.
    pub dtype: Precision,
    /// Keep only what goes into each residual block of the U-Net for the way back, and run it again there: less memory, more
    /// time, the same result. Default `false`.
    pub gradient_checkpointing: bool,
    /// γ of min-SNR weighting: the loss at timestep t counts min(SNR(t), γ) / SNR(t). Default: every t counts 1.
    pub min_snr_gamma: Option<f64>,
    /// Standard deviation of a constant added to each channel of the noise. Default 0.
    pub noise_offset: f64,
    /// Share of samples trained with an empty caption. Default 0.
    pub caption_dropout: f64,
    /// Save every so many steps; 0 = at the end alone. Default 0.
    pub save_every: u64,
    /// Probe a feature every so many steps: drift with its tag, leak without; 0 = never. Default 0.
    pub probe_every: u64,
    /// Stop training a feature once a probe finds a leak above this; 0 = never. Default 0.
    pub stop_leak: f64,
    /// First timestep to draw. Default 0.
    pub timestep_min: u32,
    /// One past the last timestep to draw, at most 1000. Default 1000.
    pub timestep_max: u32,
}

/// A number format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits.
    F32,
    /// 16 bits.
    F16,
}

/// How the learning rate falls from its full value after the warm-up; p goes from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// 1
    Constant,
    /// (1 + cos πp) / 2
    Cosine,
    /// 1 − p
    Linear,
}

/// Width and height in pixels: `512` or `[512, 768]` in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resolution {
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            model: "model".into(),
            output: "lora.safetensors".into(),
            save_dtype: Precision::F16,
            log: None,
            tensorboard: None,
            seed: 0,
            order: Order::Staged,
            dataset: DatasetConfig::default(),
            lora: vec![LoraRule::default()],
            feature: Vec::new(),
            train: TrainConfig::default(),
        }
    }
}

impl Default for DatasetConfig {
    fn default() -> Self {
        Self {
            folder: "pictures".into(),
            resolution: Resolution { width: 512, height: 512 },
            caption_extension: ".txt".into(),
            center_crop: true,
            flip: false,
        }
    }
}

impl Default for LoraRule {
    fn default() -> Self {
        Self { select: "attn".into(), rank: 8, alpha: 8.0, lr: None }
    }
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            steps: 1000,
            batch_size: 1,
            gradient_accumulation: 1,
            lr: 1e-4,
            lr_schedule: Schedule::Constant,
            warmup_steps: 0,
            max_grad_norm: 1.0,
            weight_decay: 0.01,
            betas: [0.9, 0.999],
            eps: 1e-8,
            dtype: Precision::F16,
            gradient_checkpointing: false,
            min_snr_gamma: None,
            noise_offset: 0.0,
            caption_dropout: 0.0,
            save_every: 0,
            probe_every: 0,
            stop_leak: 0.0,
            timestep_min: 0,
            timestep_max: 1000,
        }
    }
}

impl Config {
    /// Reads and checks a config file.
    ///
    /// # Errors
    /// [`Error::Io`] where the file cannot be read, else whatever [`Config::parse`] says.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io("read config", path))?;
        Self::parse(&text, path)
    }

    /// Where the log of the steps goes: `log`, or `output` with the extension `.jsonl`.
    pub fn log_path(&self) -> PathBuf {
        self.log.clone().unwrap_or_else(|| self.output.with_extension("jsonl"))
    }

    /// Samples in one update: `batch_size` · `gradient_accumulation`.
    pub fn samples_per_step(&self) -> u64 {
        u64::from(self.train.batch_size) * u64::from(self.train.gradient_accumulation)
    }

    /// Share of a rule's learning rate that holds in a step, counted from 0, of a feature that takes `steps`.
    ///
    /// With w warm-up steps out of n, the share is (step + 1) / w in the warm-up, so that no step is
    /// wasted on a rate of 0; then [`Schedule`] with p = (step − w) / (n − w), so that the last step
    /// still learns.
    pub fn lr_factor(&self, step: u64, steps: u64) -> f64 {
        let TrainConfig { warmup_steps: warmup, lr_schedule, .. } = self.train;
        if step < warmup {
            return (step + 1) as f64 / warmup as f64;
        }
        let p = ((step - warmup) as f64 / steps.saturating_sub(warmup).max(1) as f64).min(1.0);
        match lr_schedule {
            Schedule::Constant => 1.0,
            // libm's cosine, since the standard library's differs between platforms in the last bit.
            Schedule::Cosine => 0.5 * (1.0 + libm::cos(std::f64::consts::PI * p)),
            Schedule::Linear => 1.0 - p,
        }
    }
}

impl<'de> Deserialize<'de> for Resolution {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PixelsOrPair;

        impl<'de> Visitor<'de> for PixelsOrPair {
            type Value = Resolution;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("pixels, such as 512, or [width, height]")
            }

            fn visit_i64<E: serde::de::Error>(self, pixels: i64) -> Result<Resolution, E> {
                let side = u32::try_from(pixels)
                    .map_err(|_| E::invalid_value(serde::de::Unexpected::Signed(pixels), &self))?;
                Ok(Resolution { width: side, height: side })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut pair: A) -> Result<Resolution, A::Error> {
                let sides = (pair.next_element()?, pair.next_element()?, pair.next_element::<u32>()?);
                match sides {
                    (Some(width), Some(height), None) => Ok(Resolution { width, height }),
                    _ => Err(serde::de::Error::custom("invalid length, expected two sides: [width, height]")),
                }
            }
        }

        deserializer.deserialize_any(PixelsOrPair)
    }
}
