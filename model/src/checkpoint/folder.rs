//! The folder of a model in diffusers' layout: model_index.json beside a folder for each component.

use std::path::{Path, PathBuf};

use super::Component;
use crate::Result;
use crate::weights::Weights;

/// Diffusers' folder of each component, its configuration there, and what its weights are called.
const FOLDERS: [(Component, &str, &str, &str); 5] = [
    (Component::Unet, "unet", "config.json", "diffusion_pytorch_model"),
    (Component::Vae, "vae", "config.json", "diffusion_pytorch_model"),
    (Component::TextEncoder, "text_encoder", "config.json", "model"),
    (Component::Tokenizer, "tokenizer", "tokenizer_config.json", ""),
    (Component::Scheduler, "scheduler", "scheduler_config.json", ""),
];

/// All components.
pub(super) fn components() -> impl Iterator<Item = Component> {
    FOLDERS.iter().map(|(component, ..)| *component)
}

/// What a component's folder is called.
pub(super) fn name(component: Component) -> &'static str {
    row(component).map_or("", |(_, name, ..)| name)
}

/// The configuration in a component's folder.
pub(super) fn config(folder: &Path, component: Component) -> PathBuf {
    folder.join(row(component).map_or("", |(_, _, config, _)| config))
}

/// The weights in a component's folder.
///
/// # Errors
/// There are none, or they are damaged.
pub(super) fn weights(folder: &Path, component: Component) -> Result<Weights> {
    Weights::open(folder, row(component).map_or("", |(.., stem)| stem))
}

/// What the file of a component's weights is called, where there is one alone.
pub(super) fn weights_name(component: Component) -> String {
    format!("{}.safetensors", row(component).map_or("", |(.., stem)| stem))
}

fn row(component: Component) -> Option<&'static (Component, &'static str, &'static str, &'static str)> {
    FOLDERS.iter().find(|(own, ..)| *own == component)
}
