//! What is learned from: pictures and captions, and what the frozen VAE and CLIP say about them.

pub(crate) mod caption;
pub(crate) mod dataset;
pub(crate) mod latents;
pub(crate) mod picture;
pub(crate) mod tags;
pub(crate) mod texts;
