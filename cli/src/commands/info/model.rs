//! What a model is.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};
use strata_model::{Checkpoint, Component, Family, ModelOptions, PredictionType, UnetConfig};

use super::Line;
use crate::commands::thousands;

const PARTS: [(Component, &str); 3] =
    [(Component::Unet, "U-Net"), (Component::TextEncoder, "text encoder"), (Component::Vae, "VAE")];

/// As JSON, and as lines.
pub fn describe(path: &Path, options: &ModelOptions) -> Result<(Value, Vec<Line>)> {
    let checkpoint = Checkpoint::open_unet(path, options)?;
    checkpoint.check_unet()?;
    let (unet, family) = (checkpoint.unet_config(), checkpoint.family());
    let family = match family {
        Family::Sd1 => "Stable Diffusion 1.x",
        Family::Sd2 => "Stable Diffusion 2.x",
    };
    let layout = if checkpoint.is_single_file() { "one file" } else { "a folder in diffusers layout" };
    let mut lines = vec![("model", path.display().to_string()), ("is", format!("{family}, {layout}"))];
    let (mut parts, mut missing) = (Vec::new(), Vec::new());
    for (component, name) in PARTS {
        match checkpoint.part(component) {
            Ok(part) => {
                let formats: Vec<&str> = part.numbers.keys().map(String::as_str).collect();
                let count: usize = part.numbers.values().sum();
                let elsewhere = if part.path == path || part.path.starts_with(path) {
                    String::new()
                } else {
                    format!(", of {}", part.path.display())
                };
                let text = format!("{} parameters, {}{elsewhere}", thousands(count), formats.join(" and "));
                lines.push((name, text));
                parts.push(
                    json!({"part": name, "path": part.path, "parameters": count, "formats": part.numbers}),
                );
            }
            Err(e) => {
                lines.push((name, format!("none: {e}")));
                missing.push(name);
            }
        }
    }
    // the folder of a U-Net alone has no scheduler
    let scheduler = checkpoint.scheduler().ok();
    let prediction = scheduler.as_ref().map(|scheduler| match scheduler.prediction_type {
        PredictionType::Epsilon => "epsilon",
        PredictionType::VPrediction => "v",
        PredictionType::Sample => "sample",
    });
    let zero_snr = scheduler.as_ref().is_some_and(|scheduler| scheduler.rescale_betas_zero_snr);
    if let Some(prediction) = prediction {
        let pure = if zero_snr { "; the last timestep is pure noise" } else { "" };
        lines.push(("predicts", format!("{prediction}{pure}")));
    }
    lines.extend(blocks(unet));
    let layers = checkpoint.layers()?;
    let does = match missing.is_empty() {
        true => format!("trains LoRA on any of its {} layers, and draws with it", layers.len()),
        false => format!("lists its {} layers; to train and draw, it needs what is missing", layers.len()),
    };
    lines.push(("Strata", does));
    let notes = checkpoint.notes().unwrap_or_default();
    lines.extend(notes.iter().map(|text| ("note", text.clone())));
    let value = json!({
        "kind": "model",
        "path": path,
        "family": family,
        "single_file": checkpoint.is_single_file(),
        "parts": parts,
        "missing": missing,
        "prediction": prediction,
        "zero_terminal_snr": zero_snr,
        "unet": {
            "channels": unet.block_out_channels,
            "heads": unet.heads,
            "layers_per_block": unet.layers_per_block,
            "down_attention": unet.down_blocks,
            "up_attention": unet.up_blocks,
            "cross_attention_dim": unet.cross_attention_dim,
            "linear_projection": unet.use_linear_projection,
            "latent_size": unet.sample_size,
            "layers": layers.len(),
        },
        "notes": notes,
    });
    Ok((value, lines))
}

/// What the U-Net looks like.
fn blocks(unet: &UnetConfig) -> [Line; 3] {
    let list = |numbers: &[usize]| numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(" ");
    let attention = |blocks: &[bool]| {
        let numbers: Vec<usize> = (0..blocks.len()).filter(|i| blocks[*i]).collect();
        list(&numbers)
    };
    let blocks = format!(
        "{} residual blocks each; attention in down blocks {} and up blocks {}",
        unet.layers_per_block,
        attention(&unet.down_blocks),
        attention(&unet.up_blocks)
    );
    let size = unet.sample_size;
    [
        ("levels", format!("{} channels, {} heads", list(&unet.block_out_channels), list(&unet.heads))),
        ("blocks", blocks),
        ("sizes", format!("text states of {}, latents of {size} x {size}", unet.cross_attention_dim)),
    ]
}
