//! How files spell LoRAs: a module for each spelling, which alone knows its names, shapes and alphas.

pub(crate) mod kohya;
