//! LoRAs: in memory ([`LoraWeights`]), and on a GPU at the layers of a U-Net ([`LoraSet`]).

mod set;
mod weights;

pub use set::{LoraEntry, LoraSet};
pub use weights::{LoraModule, LoraWeights, Part};
