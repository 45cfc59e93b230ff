//! What a pipeline's folder holds.

use std::path::Path;

use serde_json::{Value, json};

use super::fields::Fields;
use crate::sniff::by_tensors;
use crate::tensor_file::TensorFile;
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
    /// The file is missing (then what is there instead is named), names another pipeline or component class, or a folder is missing.
    pub fn open(root: &Path) -> Result<Self> {
        let path = root.join("model_index.json");
        if !path.is_file() {
            return Err(no_pipeline(root));
        }
        let mut fields = Fields::open(&path)?;
        let pipeline: String = fields.or("_class_name", String::new())?;
        if !pipeline.starts_with("StableDiffusion")
            || ["XL", "3"].iter().any(|other| pipeline[15..].starts_with(other))
        {
            return Err(fields.refuse(
                "_class_name",
                &json!(pipeline),
                "only Stable Diffusion 1.x and 2.x pipelines are supported; take a model of those",
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

/// What is there instead of a pipeline's folder.
fn no_pipeline(root: &Path) -> Error {
    if root.is_file() {
        return match TensorFile::open(root) {
            Ok(file) => {
                let message = format!(
                    "a single file where a model's folder is wanted; it seems to be {}",
                    by_tensors(&file)
                );
                Error::file(root, message)
            }
            Err(error) => error,
        };
    }
    let message = match hub_id(root) {
        _ if root.is_dir() => {
            "no model_index.json here; expected the folder of a diffusers pipeline".to_owned()
        }
        Some(id) => format!(
            "there is no such folder; if {id} is meant as a model on a hub: nothing is downloaded from there, so get it \
             first, `hf download {id} --local-dir FOLDER`, and give that folder"
        ),
        None => "there is no such folder; give the folder of a diffusers pipeline".to_owned(),
    };
    Error::file(root, message)
}

/// `owner/name` at the end of a path, where neither is there but what they would lie in is.
fn hub_id(path: &Path) -> Option<String> {
    let (owner, name) = (path.parent()?, path.file_name()?.to_str()?);
    let base = owner.parent()?;
    let (base, owner_name) =
        (if base == Path::new("") { Path::new(".") } else { base }, owner.file_name()?.to_str()?);
    let plain = |part: &str| part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    let fits = base.is_dir() && !owner.exists() && plain(owner_name) && plain(name);
    fits.then(|| format!("{owner_name}/{name}"))
}
