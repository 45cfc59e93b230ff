//! What a pipeline's folder holds.

use std::path::Path;

use serde_json::{Value, json};

use super::fields::Fields;
use crate::{Error, Result};

/// `model_index.json`: which class each component folder holds.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelIndex {
    /// The pipeline class, e.g. `StableDiffusionPipeline`.
    pub pipeline: String,
    /// The scheduler class the folder names, e.g. `PNDMScheduler`.
    pub scheduler: String,
}

impl ModelIndex {
    /// Reads `<root>/model_index.json` and checks that it is a Stable Diffusion 1.x or 2.x pipeline with a U-Net, VAE,
    /// text encoder, tokenizer and scheduler folder.
    ///
    /// # Errors
    /// The file is missing, names another pipeline or component class, or a folder is missing.
    pub fn open(root: &Path) -> Result<Self> {
        let path = root.join("model_index.json");
        if !path.is_file() {
            let message = "no model_index.json here; expected the folder of a diffusers pipeline (single-file checkpoints must be converted first)";
            return Err(Error::file(root, message));
        }
        let mut fields = Fields::open(&path)?;
        let pipeline: String = fields.or("_class_name", String::new())?;
        if !pipeline.starts_with("StableDiffusion")
            || ["XL", "3"].iter().any(|other| pipeline[15..].starts_with(other))
        {
            return Err(fields.refuse(
                "_class_name",
                &json!(pipeline),
                "only Stable Diffusion 1.x and 2.x pipelines are supported",
            ));
        }
        let mut scheduler = String::new();
        let classes = [
            ("unet", "UNet2DConditionModel"),
            ("vae", "AutoencoderKL"),
            ("text_encoder", "CLIPTextModel"),
            ("tokenizer", "CLIPTokenizer"),
            ("scheduler", ""),
        ];
        for (component, class) in classes {
            let found: Option<(Value, Option<String>)> = fields.get(component)?;
            let Some((_, Some(found))) = found else {
                return Err(fields.refuse(component, &Value::Null, "the pipeline has no such component"));
            };
            if !found.starts_with(class) {
                return Err(fields.refuse(
                    component,
                    &json!(found),
                    format!("not supported; only {class} is"),
                ));
            }
            if !root.join(component).is_dir() {
                return Err(Error::file(
                    root,
                    format!("the folder `{component}` is missing; fetch the whole pipeline"),
                ));
            }
            if component == "scheduler" {
                scheduler = found;
            }
        }
        // A safety checker and the like sit beside the model and never touch training.
        Ok(Self { pipeline, scheduler })
    }
}
