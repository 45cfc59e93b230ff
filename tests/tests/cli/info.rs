//! `strata info`.

use std::path::Path;

use serde_json::Value;
use strata_model::{Checkpoint, LoraWeights, Spelling};
use tempfile::tempdir;

use super::{fails, prints, strata, text};
use crate::support::{golden, refused};

#[test]
fn info_says_what_a_file_is() {
    let (root, file) = (golden("sd15-mini", ""), golden("sd15-mini", "ldm-ema.safetensors"));
    let shown = prints(&["info", text(&file), "--config", text(&root)]);
    for words in
        ["Stable Diffusion 1.x, one file", "parameters, F16", "predicts      epsilon", "4 8 8 8 channels"]
    {
        assert!(shown.contains(words), "{words:?} is not in: {shown}");
    }
    assert!(shown.lines().count() < 25, "{shown}");
    let json: Value =
        serde_json::from_str(&prints(&["info", text(&file), "--config", text(&root), "--json"])).unwrap();
    assert_eq!((&json["kind"], &json["single_file"]), (&"model".into(), &true.into()));
    assert_eq!(json["parts"][0]["parameters"], Checkpoint::open(&root).map(count).unwrap());
    assert_eq!(json["unet"]["heads"], serde_json::json!([2, 2, 2, 2]));

    let lora = golden("sd15-tiny", "lora/attn_sel_kohya.safetensors");
    let shown = prints(&["info", text(&lora)]);
    for words in ["f32", "modules", "mid_block.attentions.0", "M00", "norm", "ss_network_module"] {
        assert!(shown.contains(words), "{words:?} is not in: {shown}");
    }
    let json: Value = serde_json::from_str(&prints(&["info", text(&lora), "--json"])).unwrap();
    assert_eq!(json["kind"], "lora");
    let squares: f64 =
        json["blocks"].as_array().unwrap().iter().map(|b| b["norm"].as_f64().unwrap().powi(2)).sum();
    let all: f64 =
        LoraWeights::read(&lora).unwrap().modules.values().map(|module| module.norm().powi(2)).sum();
    assert!(squares > 0.0 && (squares - all).abs() < 1e-9 * all);
    assert_eq!(strata(&["info", text(&root.join("vae.safetensors"))]).code, Some(1));

    // PEFT's folder, and embeddings
    let folder = tempdir().unwrap();
    let peft = folder.path().join("peft");
    LoraWeights::read(&lora).unwrap().write_as(Spelling::Peft, &peft).unwrap();
    let shown = prints(&["info", text(&peft)]);
    assert!(shown.starts_with("LoRA ") && shown.contains("mid_block.attentions.0"), "{shown}");
    let embedding = golden("sd15-tiny", "embeddings/learned_embeds.safetensors");
    let shown = prints(&["info", text(&embedding)]);
    for words in ["embedding ", "word          <toy-b>", "1 vector of 32 channels", "--embedding FILE[=WORD]"]
    {
        assert!(shown.contains(words), "{words:?} is not in: {shown}");
    }
    let json: Value = serde_json::from_str(&prints(&["info", text(&embedding), "--json"])).unwrap();
    assert_eq!((&json["kind"], &json["channels"]), (&"embedding".into(), &32.into()));
}

/// What is no file with an end is told, and not waited for.
#[cfg(unix)]
#[test]
fn devices_are_no_models() {
    let device = Path::new("/dev/zero");
    refused(Checkpoint::open(device), &["/dev/zero", "a device"]);
    refused(LoraWeights::read(device), &["/dev/zero", "a device"]);
    fails(&["info", "/dev/full"], &["/dev/full", "a device"]);
    fails(&["layers", "/dev/null"], &["/dev/null", "a device"]);
    fails(&["lora", "info", "/dev/full"], &["/dev/full", "a device"]);
}

fn count(checkpoint: Checkpoint) -> usize {
    checkpoint.unet_weights().unwrap().numbers().map(|(_, count)| count).sum()
}
