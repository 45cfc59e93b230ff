//! LoRAs: in memory ([`LoraWeights`]), and on a GPU at the layers of a U-Net ([`LoraSet`]).

mod hash;
mod ratio;
mod resize;
mod set;
mod spectrum;
mod weights;

pub use hash::{embedding_hash, lora_hash};
pub(crate) use ratio::meant_layers;
pub use resize::Target;
pub(crate) use set::check_shapes;
pub use set::{LoraEntry, LoraSet};
pub(crate) use spectrum::Spectrum;
pub use weights::{LoraModule, LoraWeights, Part};
