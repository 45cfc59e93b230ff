//! What a file is that should have been another: so that an error can say more than what it is not.

use std::path::Path;

use crate::tensor_file::TensorFile;
use crate::{Error, Result, embedding};

/// How many bytes [`by_bytes`] wants to see.
pub(crate) const ENOUGH: u64 = 512;

/// What is said of a path that leads to no file with an end, such as a device or a pipe.
pub(crate) const NO_FILE: &str =
    "is a device, a pipe or the like; name a .safetensors file that lies on a disk";

/// What the first bytes of a file say it is, and what to do; `None` where they are nothing known.
pub(crate) fn by_bytes(start: &[u8]) -> Option<&'static str> {
    const PICKLE: &str = "a pickled checkpoint (.ckpt, .pt, .bin), which can run code when read and is not supported; \
                          convert it once with diffusers, `save_pretrained(folder, safe_serialization=True)`";
    const PICTURE: &str = "a picture; name the file that was meant";
    let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    let begins = |mark: &str| text.get(..mark.len()).is_some_and(|t| t.eq_ignore_ascii_case(mark.as_bytes()));
    let holds = |mark: &[u8]| start.windows(mark.len()).any(|part| part == mark);
    Some(match start {
        [] => "an empty file; fetch it again",
        // PyTorch's zip archives begin with the pickle.
        [b'P', b'K', 3, 4, ..] if holds(b"data.pkl") => PICKLE,
        [b'P', b'K', 3, 4, ..] => "a zip archive; unpack it",
        [0x1f, 0x8b, ..] => "a gzip archive; unpack it",
        [0x80, 2..=5, ..] => PICKLE,
        [0x89, b'P', b'N', b'G', ..] | [0xff, 0xd8, 0xff, ..] | [b'G', b'I', b'F', b'8', ..] => PICTURE,
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => PICTURE,
        [b'G', b'G', b'U', b'F', ..] => "a GGUF file, which is not supported; get the model as safetensors",
        _ if begins("version https://git-lfs") => {
            "a git-LFS pointer, which stands for a file that was not fetched; run `git lfs pull` where it was cloned, or \
             download the file itself"
        }
        _ if begins("<!doctype html") || begins("<html") => {
            "an HTML page saved under this name; the link leads to a page, perhaps a login: download the file itself"
        }
        _ => return None,
    })
}

/// What only LoRA files have in the names of their tensors.
const LORA: [&str; 6] = ["lora_down", "lora_up", "lora_A", "lora.down", "hada_", "lokr_"];

/// Whether a safetensors file is a LoRA, by the names of its tensors.
///
/// # Errors
/// It is no safetensors file, or damaged.
pub fn is_lora(path: &Path) -> Result<bool> {
    Ok(holds_lora(&TensorFile::open(path)?))
}

/// Whether a safetensors file is an embedding, by the names and shapes of its tensors.
///
/// # Errors
/// It is no safetensors file, or damaged.
pub fn is_embedding(path: &Path) -> Result<bool> {
    Ok(embedding::is_embedding(&TensorFile::open(path)?))
}

/// Refuses a checkpoint or an embedding in place of a LoRA.
///
/// # Errors
/// It is one; or no safetensors file, or damaged.
pub(crate) fn check_lora(path: &Path) -> Result<()> {
    let file = TensorFile::open(path)?;
    let model = file.tensors().keys().any(|name| name.starts_with("model.diffusion_model."));
    match (model || embedding::is_embedding(&file)) && !holds_lora(&file) {
        true => Err(Error::file(path, format!("is no LoRA, but {}", by_tensors(&file)))),
        false => Ok(()),
    }
}

fn holds_lora(file: &TensorFile) -> bool {
    file.tensors().keys().any(|name| LORA.iter().any(|mark| name.contains(mark)))
}

/// What the tensors of a single file seem to belong to, and what to do with it where a model's folder is wanted.
pub(crate) fn by_tensors(file: &TensorFile) -> &'static str {
    let has = |mark: &str| file.tensors().keys().any(|name| name.contains(mark));
    let starts = |mark: &str| file.tensors().keys().any(|name| name.starts_with(mark));
    let kinds = [
        (
            starts("conditioner.embedders.") && !starts("conditioner.embedders.1."),
            "the refiner of Stable Diffusion XL, which works on another model's pictures; take Stable Diffusion 1.x or 2.x",
        ),
        (
            starts("conditioner.embedders."),
            "a full checkpoint of Stable Diffusion XL; only Stable Diffusion 1.x and 2.x are supported",
        ),
        (
            has("joint_blocks.") || has("double_blocks."),
            "a transformer (Stable Diffusion 3, Flux), which is not supported",
        ),
        (
            starts("model.diffusion_model.label_emb."),
            "a checkpoint that is also told sizes, a class or a picture (Stable Diffusion XL, unCLIP); only Stable Diffusion 1.x \
             and 2.x from text to picture are supported",
        ),
        (starts("model.diffusion_model."), "a full checkpoint; give it where a model is asked for"),
        (
            holds_lora(file),
            "a LoRA; give the model that it was made for here, and the LoRA where LoRAs are asked for",
        ),
        (
            embedding::is_embedding(file),
            "an embedding (textual inversion); give it beside a model, `strata generate --embedding FILE`",
        ),
        (starts("control_model.") || starts("controlnet_"), "a ControlNet, which is not supported"),
        (
            starts("first_stage_model.") || (starts("encoder.conv_in.") && starts("decoder.conv_in.")),
            "a VAE alone; give the whole model here, and this file as its `vae` (--vae)",
        ),
        (starts("down_blocks."), "a U-Net alone; give the folder of a whole model, which has it in `unet`"),
        (
            starts("text_model."),
            "a text encoder alone; give the folder of a whole model, which has it in `text_encoder`",
        ),
    ];
    let kind = kinds.into_iter().find(|(is, _)| *is).map(|(_, kind)| kind);
    kind.unwrap_or("no part of Stable Diffusion that is known here")
}
