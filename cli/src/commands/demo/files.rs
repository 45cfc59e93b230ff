//! What the demo starts from: a model, pictures with captions, configs and prompts.

use std::fs;
use std::path::Path;

use anyhow::Result;
use include_dir::{Dir, include_dir};
use strata_model::{make_folder, write_atomic};

use super::unseen::Unseen;

/// The model, in the repository's folder of that name.
static MODEL: Dir = include_dir!("$CARGO_MANIFEST_DIR/../demo/model");

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

/// Layers that learn a feature: all that read the text.
const SELECT: &str = "**.attn2.to_k, **.attn2.to_v";

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
    put_all(&MODEL, &folder.join("model"))?;
    for feature in Unseen::ALL {
        put_all(feature.files(), &folder.join(feature.tag()))?;
    }
    put(&folder.join("prompts.txt"), PROMPTS.as_bytes())?;
    put(&folder.join(format!("{FEATURES}.toml")), config(FEATURES, steps).as_bytes())?;
    put(&folder.join(format!("{PLAIN}.toml")), config(PLAIN, steps).as_bytes())
}

/// A config of both features: staged, or as ordinary LoRAs.
fn config(name: &str, steps: u64) -> String {
    let (comment, with_frozen, key) = match name {
        FEATURES => {
            let comment = "One after the other; the second learns beside the first, which is frozen. Each tag has a key.";
            (comment, true, "\n[feature.key]\n")
        }
        _ => ("Two LoRAs as other programs train them: each alone, and always on.", false, "key = false\n"),
    };
    let mut text = format!(
        "# {comment}\nmodel = \"model\"\noutput = \"{name}.safetensors\"\norder = \"staged\"\nseed = 1\n"
    );
    for feature in Unseen::ALL {
        let (tag, class, describes) = (feature.tag(), class(feature), describes(feature));
        text += &format!(
            "
[[feature]]
name = \"{tag}\"
tags = [\"{tag}\"]
class = \"{class}\"
describes = [{describes}]
with_frozen = {with_frozen}
{key}
[feature.dataset]
folder = \"{tag}\"
resolution = 64

[[feature.lora]]
select = \"{SELECT}\"
rank = 8
alpha = 8.0
"
        );
    }
    text + &format!(
        "\n[train]\nsteps = {steps}\nbatch_size = 4\nlr = 1e-2\nlr_schedule = \"cosine\"\ndtype = \"f32\"\n"
    )
}

/// Writes all that is in an embedded folder.
fn put_all(files: &Dir, folder: &Path) -> Result<()> {
    files.files().try_for_each(|file| put(&folder.join(file.path()), file.contents()))?;
    files.dirs().try_for_each(|inner| put_all(inner, folder))
}

/// Writes a file unless it is there with just these bytes, and its folder with it.
pub fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    make_folder(folder)?;
    Ok(write_atomic(path, |out| out.write_all(bytes))?)
}
