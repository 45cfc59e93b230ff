//! What the demo starts from: a model, pictures with captions, configs and prompts.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use strata_cli::portraits::Unseen;
use strata_model::{png, write_atomic};

/// A file of the model, from the repository.
macro_rules! model_file {
    ($path:literal) => {
        ($path, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../demo/model/", $path)) as &[u8])
    };
}

/// The model, by path in its folder.
static MODEL: [(&str, &[u8]); 12] = [
    model_file!("model_index.json"),
    model_file!("scheduler/scheduler_config.json"),
    model_file!("text_encoder/config.json"),
    model_file!("text_encoder/model.safetensors"),
    model_file!("tokenizer/merges.txt"),
    model_file!("tokenizer/special_tokens_map.json"),
    model_file!("tokenizer/tokenizer_config.json"),
    model_file!("tokenizer/vocab.json"),
    model_file!("unet/config.json"),
    model_file!("unet/diffusion_pytorch_model.safetensors"),
    model_file!("vae/config.json"),
    model_file!("vae/diffusion_pytorch_model.safetensors"),
];

/// What the probe asks.
const PROMPTS: &str = "\
a portrait of a woman, {}, forest background
{}, a portrait of a man, night background, smiling
a portrait of a man, short red hair, green sweater, city background
a portrait of a woman, long black hair, blue dress, beach background, smiling
";

/// Names of the two configs, and of the files that they write.
pub const FEATURES: &str = "features";
pub const PLAIN: &str = "plain";

/// Layers that learn a feature: the two share none.
fn select(feature: Unseen) -> &'static str {
    match feature {
        Unseen::HairStyleA => "up_blocks & cross-attn",
        Unseen::ClothingStyleB => "up_blocks & self-attn",
    }
}

/// What a feature is a special case of.
pub fn class(feature: Unseen) -> &'static str {
    match feature {
        Unseen::HairStyleA => "short hair",
        Unseen::ClothingStyleB => "suit",
    }
}

/// Words that would describe a feature, as a TOML list has them.
fn describes(feature: Unseen) -> &'static str {
    match feature {
        Unseen::HairStyleA => r#""hair", "crest", "spiky", "violet", "cyan""#,
        Unseen::ClothingStyleB => r#""jacket", "checkerboard", "black", "gold""#,
    }
}

/// Writes everything into a folder. Files that are there and the same are left alone.
pub fn write(folder: &Path, steps: u64) -> Result<()> {
    for (path, bytes) in MODEL {
        put(&folder.join("model").join(path), bytes)?;
    }
    for feature in Unseen::ALL {
        for (i, (picture, caption)) in feature.pictures().into_iter().enumerate() {
            let path = folder.join(feature.tag()).join(format!("{i:02}.png"));
            put(&path, &png(&picture)?)?;
            put(&path.with_extension("txt"), format!("{caption}\n").as_bytes())?;
        }
    }
    put(&folder.join("prompts.txt"), PROMPTS.as_bytes())?;
    put(&folder.join(format!("{FEATURES}.toml")), config(FEATURES, steps).as_bytes())?;
    put(&folder.join(format!("{PLAIN}.toml")), config(PLAIN, steps).as_bytes())
}

/// A config of both features: staged, or as ordinary LoRAs.
fn config(name: &str, steps: u64) -> String {
    let (comment, with_frozen) = match name {
        FEATURES => ("One after the other; the second learns beside the first, which is frozen.", true),
        _ => ("Two LoRAs as other programs train them: each alone, and always on.", false),
    };
    let mut text = format!(
        "# {comment}\nmodel = \"model\"\noutput = \"{name}.safetensors\"\norder = \"staged\"\nseed = 1\n"
    );
    for feature in Unseen::ALL {
        let (tag, class, describes) = (feature.tag(), class(feature), describes(feature));
        let select = select(feature);
        text += &format!(
            "
[[feature]]
name = \"{tag}\"
tags = [\"{tag}\"]
class = \"{class}\"
describes = [{describes}]
with_frozen = {with_frozen}

[feature.dataset]
folder = \"{tag}\"
resolution = 64

[[feature.lora]]
select = \"{select}\"
rank = 8
alpha = 8.0
"
        );
    }
    text + &format!(
        "\n[train]\nsteps = {steps}\nbatch_size = 4\nlr = 6e-3\nlr_schedule = \"cosine\"\ndtype = \"f32\"\n"
    )
}

/// Writes a file unless it is there with just these bytes, and its folder with it.
pub fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    Ok(write_atomic(path, |out| out.write_all(bytes))?)
}
