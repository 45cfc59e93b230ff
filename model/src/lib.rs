//! Stable Diffusion 1.x and 2.x, frozen, with places to attach LoRA.
//!
//! A [`Checkpoint`] is a model on disk and hands out its parts, all of them as a [`Pipeline`]: a [`TextEncoder`] turns text
//! into [`Conditioning`], [`Unet`] predicts noise, [`Vae`] goes between pictures and latents, [`NoiseSchedule`] says how
//! much noise there is, and a [`Sampler`] how to take it away. A [`Selection`] chooses layers of the U-Net, a [`LoraSet`] holds their LoRA on the GPU,
//! [`LoraWeights`] are the same in memory and in files.
//! [`Feature`]s say which [`Tag`]s in a [`Prompt`] switch LoRAs on; [`Gates`] carry that to the layers, row by row.
//!
//! All activations are NHWC: images and latents [B, H, W, C], token states [B, T, C]. Paths of layers and of
//! observed activations ([`Taps`]) are diffusers' names. This crate knows no dataset and no training.

mod atomic;
mod build;
mod checkpoint;
mod clip;
pub mod config;
mod draw;
mod embedding;
mod error;
mod feature;
mod formats;
mod gates;
mod generate;
mod key;
mod layers;
mod lock;
mod lora;
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
mod sniff;
mod taps;
mod tensor_file;
mod text;
mod together;
mod tokenizer;
mod trigger;
mod unet;
mod vae;
mod weights;

pub use atomic::{check_folder, check_room, make_folder, write_atomic};
pub use build::WeightInfo;
pub use checkpoint::{Checkpoint, Component, Family, ModelOptions, Numbers, PartInfo};
pub use clip::Clip;
pub use config::{ClipConfig, ModelIndex, PredictionType, SchedulerConfig, UnetConfig, VaeConfig};
pub use draw::Scene;
pub use embedding::Embedding;
pub use error::{Error, Result, counted};
pub use feature::{Feature, GateMode, Wording};
pub use formats::Spelling;
pub use formats::kohya::kohya_name;
pub use gates::{Gates, RowGates, Rows};
pub use generate::{Prompts, Sampling, Start};
pub use key::{Key, keys_of, note_keys};
pub use layers::{Conv2d, GroupNorm, Layer, LayerInfo, LayerKind, LayerNorm, Linear, LoraSlot};
pub use lock::{Lock, lock};
pub use lora::{LoraEntry, LoraModule, LoraSet, LoraWeights, Part, Target, embedding_hash, lora_hash};
pub use pipeline::Pipeline;
pub use png::{png, png_with_text};
pub use prompt::{Mention, Prompt, Reading};
pub use random::random_weights;
pub use region::{PlaceMask, Region};
pub use scheduler::{Call, Mix, NoiseSchedule, Plan, SAMPLERS, Sampler, Sigmas, Walk};
pub use selection::{BlockName, Blocks, MAX_RANK, Match, Rule, Selection};
pub use sniff::{is_embedding, is_lora};
pub use taps::{Cx, Taps};
pub use tensor_file::{F32s, TensorFile, header, write_f32s};
pub use text::{Conditioning, TextEncoder};
pub use together::{Takes, Together};
pub use tokenizer::ClipTokenizer;
pub use trigger::{Found, Tag, find, swap, tags_of, tokens};
pub use unet::{Unet, UnetInput, layers_of, unet_tensors};
pub use vae::Vae;
pub use weights::Weights;
