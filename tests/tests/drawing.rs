//! `strata generate` with samplers, pictures to begin with and LoRAs of the text encoder, and `strata lora`.

use std::fs;
use std::path::Path;

use image::RgbImage;
use strata_model::{LoraWeights, Part, SAMPLERS};
use tempfile::tempdir;

use crate::cli::{fails, misused, prints, strata, text};
use crate::support::golden;

/// Draws a small picture; its pixels and the bytes of its file.
fn draw(folder: &Path, options: &[&str]) -> (RgbImage, Vec<u8>) {
    let (model, out) = (golden("sd15-tiny", ""), folder.join("out.png"));
    let size = ["--width", "64", "--height", "64", "--seed", "3", "--out", text(&out)];
    let run = strata(&[&["generate", text(&model)], &size[..], options].concat());
    assert_eq!(run.code, Some(0), "{options:?}: {}", run.err);
    (image::open(&out).unwrap().into_rgb8(), fs::read(&out).unwrap())
}

#[test]
fn every_sampler_draws_its_own_picture() {
    let folder = tempdir().unwrap();
    let with =
        |options: &[&str]| draw(folder.path(), &[&["--prompt", "a cat", "--steps", "3"], options].concat()).0;
    let mut drawn: Vec<(String, RgbImage)> = Vec::new();
    let mut add = |name: String, picture: RgbImage| {
        if let Some((other, _)) = drawn.iter().find(|(_, other)| *other == picture) {
            panic!("{name} draws what {other} draws");
        }
        drawn.push((name, picture));
    };
    for sampler in &SAMPLERS {
        add(sampler.name.to_owned(), with(&["--sampler", sampler.name]));
    }
    for options in [
        &["--sampler", "euler", "--sigmas", "karras"][..],
        &["--spacing", "trailing"],
        &["--eta", "1"],
        &["--guidance-rescale", "0.7"],
    ] {
        add(options.join(" "), with(options));
    }
    let model = golden("sd15-tiny", "");
    let refused = |options: &[&str], words: &[&str]| {
        fails(&[&["generate", text(&model), "--prompt", "x"], options].concat(), words);
    };
    refused(&["--sigmas", "karras"], &["ddim does not take Karras sigmas", "euler"]);
    refused(&["--sampler", "lcm", "--steps", "60"], &["60 steps of lcm", "1 to 50"]);
    refused(&["--sampler", "euler", "--eta", "1"], &["euler has no eta"]);
}

#[test]
fn files_say_how_they_were_made() {
    let folder = tempdir().unwrap();
    let lora = golden("sd15-tiny", "lora/attn_sel_kohya.safetensors");
    let lora = format!("{}:0.8", lora.display());
    let options = ["--prompt", "a cat", "--negative", "blurry", "--steps", "2", "--sampler", "dpmpp_2m"];
    let (_, bytes) = draw(folder.path(), &[&options[..], &["--sigmas", "karras", "--lora", &lora]].concat());
    let text = String::from_utf8_lossy(&bytes);
    let says = "tEXtparameters\0a cat\nNegative prompt: blurry\nSteps: 2, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, \
                Seed: 3, Size: 64x64, Model: sd15-tiny, Lora hashes: \"attn_sel_kohya: ";
    assert!(text.contains(says), "{}", &text[..600]);
    assert!(text.contains("Lora weights: \"attn_sel_kohya: 0.8\", Version: Strata"));
    let (_, bytes) = draw(folder.path(), &["--prompt", "кот", "--steps", "1"]);
    assert!(String::from_utf8_lossy(&bytes).contains("iTXtparameters\0\0\0\0\0кот\nSteps: 1, Sampler: DDIM"));
}

#[test]
fn a_picture_to_begin_with() {
    let folder = tempdir().unwrap();
    let (first, photo) = (folder.path().join("first.png"), folder.path().join("photo.jpg"));
    RgbImage::from_fn(96, 64, |x, _| image::Rgb(if x < 48 { [220, 40, 40] } else { [20, 30, 200] }))
        .save_with_format(&first, image::ImageFormat::Png)
        .unwrap();
    fs::copy(&first, &photo).unwrap();
    let options = ["--prompt", "a cat", "--steps", "10", "--guidance", "1"];
    let with = |init: &Path, strength: &str| {
        draw(folder.path(), &[&options[..], &["--init", text(init), "--strength", strength]].concat()).0
    };
    let plain = draw(folder.path(), &options).0;
    let distance = |a: &RgbImage, b: &RgbImage| -> f64 {
        a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| f64::from(a.abs_diff(*b))).sum()
    };
    let (little, much) = (with(&first, "0.2"), with(&first, "0.9"));
    assert!(
        distance(&much, &plain) < distance(&little, &plain),
        "more strength is nearer to no picture at all"
    );
    // a picture's format is told by its content
    assert!(with(&photo, "0.2") == little);
    let (model, none) = (golden("sd15-tiny", ""), folder.path().join("none.png"));
    let args = ["generate", text(&model), "--prompt", "x", "--init", text(&none)];
    fails(&args, &["--init", "none.png", "no readable picture"]);
}

/// Its modules of the text encoder are on where the feature is, and nowhere else.
#[test]
fn loras_of_the_text_encoder() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mut both = LoraWeights::read(&golden("sd15-tiny", "lora/kohya_full_kohya.safetensors")).unwrap();
    both.metadata.insert("strata_tags".into(), r#"["hair_style_a"]"#.into());
    both.write(&at("both.safetensors")).unwrap();
    let words = both.take(Part::TextEncoder);
    both.write(&at("unet.safetensors")).unwrap();
    words.write(&at("text.safetensors")).unwrap();
    let with = |prompt: &str, lora: &str, options: &str| {
        let lora = format!("{}{options}", at(lora).display());
        draw(folder.path(), &["--prompt", prompt, "--steps", "2", "--lora", &lora]).0
    };
    let base = |prompt: &str| draw(folder.path(), &["--prompt", prompt, "--steps", "2"]).0;
    let (tag, without) = ("a cat, hair_style_a", "a cat");
    assert!(with(without, "both.safetensors", "") == base(without), "bit-equal where it is off");
    let on = with(tag, "both.safetensors", "");
    assert!(on != with(tag, "unet.safetensors", "") && on != base(tag));
    assert!(with(tag, "both.safetensors", ",uncond") != on, "the negative prompt's states are another's");
    // what belongs to some tokens leaves states of text alone
    let token = ",gate=token";
    assert!(with(tag, "both.safetensors", token) == with(tag, "unet.safetensors", token));
    let (model, file) = (golden("sd15-tiny", ""), at("text.safetensors"));
    let args = ["generate", text(&model), "--prompt", "x", "--lora", text(&file)];
    fails(&args, &["text.safetensors", "text encoder alone"]);
}

#[test]
fn lora_files_are_shown_converted_merged_and_resized() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let path = |name: &str| text(&at(name)).to_owned();
    let kohya = golden("sd15-tiny", "lora/locon_sel_kohya.safetensors");
    let info = prints(&["lora", "info", text(&kohya)]);
    for line in ["3 4", "down_blocks.1.attentions.0", "mid_block.resnets.1", "ss_network_module"] {
        assert!(info.contains(line), "{line:?} is not in {info}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&prints(&["lora", "info", text(&kohya), "--json"])).unwrap();
    assert_eq!((&json["ranks"], &json["dtype"]), (&serde_json::json!(["3", "4"]), &"f32".into()));
    let original = LoraWeights::read(&kohya).unwrap();
    let blocks = json["blocks"].as_array().unwrap();
    let squares: f64 = blocks.iter().map(|block| block["norm"].as_f64().unwrap().powi(2)).sum();
    let direct: f64 = original.modules.values().flat_map(|m| m.delta()).map(|v| f64::from(v).powi(2)).sum();
    assert!((squares - direct).abs() < 1e-4 * direct);

    prints(&["lora", "convert", text(&kohya), "--to", "peft", "--out", &path("folder")]);
    prints(&["lora", "convert", &path("folder"), "--to", "diffusers", "--out", &path("d.safetensors")]);
    prints(&["lora", "convert", &path("d.safetensors"), "--out", &path("back.safetensors")]);
    assert!(LoraWeights::read(&at("back.safetensors")).unwrap() == original);
    let again = ["lora", "convert", text(&kohya), "--out", &path("back.safetensors")];
    fails(&again, &["back.safetensors", "something already"]);

    let half = format!("{}:0.5", kohya.display());
    prints(&["lora", "merge", &half, &half, "--out", &path("merged.safetensors")]);
    prints(&[
        "lora",
        "resize",
        &path("merged.safetensors"),
        "--rank",
        "4",
        "--out",
        &path("small.safetensors"),
    ]);
    let small = LoraWeights::read(&at("small.safetensors")).unwrap();
    for (key, module) in &original.modules {
        let resized = &small.modules[key];
        assert_eq!(resized.rank(), 4.min(module.rank() * 2), "{key:?}");
        let close = |(a, b): (f32, f32)| (a - b).abs() < 1e-5;
        assert!(module.delta().into_iter().zip(resized.delta()).all(close), "{key:?}");
    }
    misused(
        &["lora", "resize", "a", "--rank", "0", "--out", "x"],
        &["--rank", "from 1 to 4096", "--energy 0.95"],
    );
    fails(&["lora", "resize", text(&kohya), "--energy", "2", "--out", &path("x")], &["energy 2", "share"]);
}
