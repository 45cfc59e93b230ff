//! Stable Diffusion 1.x and 2.x, frozen, with places to attach LoRA.
//!
//! [`Pipeline`] opens a folder in diffusers' layout: [`ClipTokenizer`] and [`Clip`] turn text into states, [`Unet`]
//! predicts noise, [`Vae`] goes between pictures and latents, [`NoiseSchedule`] and [`Ddim`] say how much noise there
//! is. A [`Selection`] chooses layers of the U-Net, a [`LoraSet`] holds their LoRA, a [`LoraFile`] keeps it on disk.
//! [`Feature`]s say which [`Tag`]s in a [`Prompt`] switch LoRAs on; [`Gates`] carry that to the layers, row by row.
//!
//! All activations are NHWC: images and latents [B, H, W, C], token states [B, T, C]. Paths of layers and of
//! observed activations ([`Taps`]) are diffusers' names. This crate knows no dataset and no training.

mod atomic;
mod build;
mod clip;
pub mod config;
mod draw;
mod error;
mod feature;
mod gates;
mod generate;
mod layers;
mod lora;
mod lora_file;
pub mod noise;
mod pipeline;
mod png;
pub mod progress;
mod prompt;
mod random;
mod region;
mod resnet;
mod scheduler;
mod selection;
mod taps;
mod tensor_file;
mod together;
mod tokenizer;
mod trigger;
mod unet;
mod vae;
mod weights;

pub use atomic::write_atomic;
pub use build::WeightInfo;
pub use clip::Clip;
pub use config::{ClipConfig, ModelIndex, PredictionType, SchedulerConfig, UnetConfig, VaeConfig};
pub use draw::Scene;
pub use error::{Error, Result};
pub use feature::{Feature, GateMode, Wording};
pub use gates::{Gates, RowGates, Rows};
pub use generate::{Prompts, Sampling};
pub use layers::{Conv2d, GroupNorm, Layer, LayerInfo, LayerKind, LayerNorm, Linear, LoraSlot};
pub use lora::{LoraEntry, LoraSet};
pub use lora_file::{LoraDtype, LoraFile, LoraModule, kohya_name};
pub use pipeline::Pipeline;
pub use png::png;
pub use prompt::{Mention, Prompt};
pub use random::random_weights;
pub use region::{PlaceMask, Region};
pub use scheduler::{Ddim, DdimStep, Mix, NoiseSchedule};
pub use selection::{BlockName, Blocks, Match, Rule, Selection};
pub use taps::{Cx, Taps};
pub use tensor_file::{F32s, TensorFile, header, write_f32s};
pub use together::{Takes, Together};
pub use tokenizer::ClipTokenizer;
pub use trigger::{Tag, find, find_ids, find_in, swap, tags_of};
pub use unet::{Unet, unet_layers, unet_tensors};
pub use vae::Vae;
pub use weights::Weights;
