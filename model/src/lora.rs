//! LoRAs: in memory ([`LoraWeights`]), and on a GPU at the layers of a U-Net ([`LoraSet`]).

mod hash;
mod resize;
mod set;
mod weights;

pub use hash::{embedding_hash, lora_hash};
pub use resize::Target;
pub use set::{LoraEntry, LoraSet};
pub use weights::{LoraModule, LoraWeights, Part};
