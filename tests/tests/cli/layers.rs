//! `strata layers`.

use std::fs;

use tempfile::tempdir;

use super::{fails, model, prints, text};
use crate::support::{copy_folder, golden};

#[test]
fn layers_are_listed_and_patterns_resolved() {
    let model = model();
    let model = text(&model);
    let selected = prints(&["layers", model, "--select", "mid_block ff"]);
    assert!(selected.contains("  * transformer_blocks.0.ff.net.2 "), "{selected}");
    assert!(!selected.contains("down_blocks") && !selected.contains("attn1"), "{selected}");
    let all = prints(&["layers", model, "--select", "mid_block ff", "--all"]);
    assert!(all.contains("down_blocks") && all.contains("  - ") && all.contains("IN01"), "{all}");
    assert_eq!(selected.lines().last(), all.lines().last());
    let kohyas = ["layers", model, "--select", "lora_unet_mid_block_attentions_0_proj_in"];
    assert!(prints(&kohyas).contains("* 1 of "));
    let json: serde_json::Value =
        serde_json::from_str(&prints(&["layers", model, "--select", "up_blocks.1 cross-attn:3", "--json"]))
            .unwrap();
    assert!(json.to_string().contains("up_blocks.1"));
    fails(
        &["layers", model, "--select", "up_blocks.1.attentoins"],
        &["up_blocks.1.attentoins", "up_blocks.1.attentions"],
    );
    fails(&["layers", model, "--select", ""], &["pattern"]);
    fails(&["layers", model, "--select", "mid_block & "], &["mid_block & ", "a term is missing"]);
    fails(
        &["layers", model, "--select", "up_blocks.1:abc"],
        &["up_blocks.1:abc: `abc` after the colon is no rank"],
    );
    fails(
        &["layers", "no-such-model"],
        &["no-such-model", "no such file or folder here", "model_index.json"],
    );
    fails(&["layers", text(&golden("sd15-tiny", "vae"))], &["config.json"]);
}

/// A model that was not fetched whole: the file that is missing is named, and what to do.
#[test]
fn files_missing_from_a_model_are_named() {
    let folder = tempdir().unwrap();
    let root = folder.path().join("m");
    copy_folder(&model(), &root);
    let generate = ["generate", text(&root), "--prompt", "x", "--steps", "1"];
    for (file, args) in [
        ("unet/config.json", &generate[..]),
        ("unet/diffusion_pytorch_model.safetensors", &["layers", text(&root)]),
        ("vae/config.json", &generate),
        ("vae/diffusion_pytorch_model.safetensors", &generate),
        ("text_encoder/config.json", &generate),
        ("text_encoder/model.safetensors", &generate),
        ("tokenizer/vocab.json", &generate),
        ("tokenizer/merges.txt", &generate),
        ("scheduler/scheduler_config.json", &generate),
    ] {
        let path = root.join(file);
        let content = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fails(args, &[file.rsplit('/').next().unwrap(), "not fetched whole", "from where"]);
        fs::write(&path, content).unwrap();
    }
}
