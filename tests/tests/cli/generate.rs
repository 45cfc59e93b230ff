//! `strata generate`, and `--lora`, which `strata probe` has as well.

use std::fs;
use std::path::Path;

use strata_model::{LoraWeights, Part, TensorFile};
use tempfile::tempdir;

use super::{fails, misused, model, prints, strata, text};
use crate::support::{copy_folder, golden, put};

/// A LoRA that names its tags waits for them.
#[test]
fn generating_waits_for_tags() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mut lora = LoraWeights::read(&golden("sd15-tiny", "lora/attn_all_kohya.safetensors")).unwrap();
    lora.write(&at("plain.safetensors")).unwrap();
    lora.metadata.insert("strata_tags".into(), r#"["hair_style_a", "sks"]"#.into());
    lora.write(&at("tagged.safetensors")).unwrap();
    let mask = image::GrayImage::from_fn(4, 4, |x, _| image::Luma([if x < 2 { 255 } else { 0 }]));
    mask.save(at("left.png")).unwrap();
    // the same shape in the alpha channel, and a name of another format
    let alpha = image::GrayAlphaImage::from_fn(4, 4, |x, _| image::LumaA([0, if x < 2 { 255 } else { 0 }]));
    alpha.save_with_format(at("alpha.jpg"), image::ImageFormat::Png).unwrap();
    let (plain, tagged, model) = (at("plain.safetensors"), at("tagged.safetensors"), model());
    let draw = |prompt: &str, lora: &str, words: &[&str]| {
        let out = at("out.png");
        let mut args =
            vec!["generate", text(&model), "--prompt", prompt, "--steps", "2", "--out", text(&out)];
        args.extend(["--width", "64", "--height", "64"]);
        if !lora.is_empty() {
            args.extend(["--lora", lora]);
        }
        let run = strata(&args);
        assert_eq!(run.code, Some(0), "{args:?}: {}", run.err);
        words
            .iter()
            .for_each(|word| assert!(run.err.contains(word), "{args:?}: {word:?} not in {}", run.err));
        image::open(&out).unwrap().into_rgb8()
    };
    let with = |file: &Path, options: &str| format!("{}{options}", file.display());
    let (without, tag) = ("a cat, hair_style_ab", "a cat, Hair_Style_A");
    let (base, tag_base) = (draw(without, "", &[]), draw(tag, "", &[]));
    assert!(draw(without, &with(&tagged, ""), &["off", "none of its tags (hair_style_a, sks)"]) == base);
    let on = draw(tag, &with(&tagged, ":0.8"), &["on at 0.8, by hair_style_a"]);
    assert!(on != tag_base);
    let always = draw(tag, &with(&plain, ":0.8"), &["on at 0.8 whatever the prompt, as it names no tag"]);
    assert!(draw(tag, &with(&tagged, ":0.8,gate=always"), &["on at 0.8 whatever the prompt"]) == always);
    assert!(draw(tag, &with(&tagged, ":0.8,uncond"), &[]) == always && always != on);
    assert!(draw(tag, &with(&plain, ":0.8,tag=hair_style_a"), &["by hair_style_a"]) == on);
    assert!(draw("a cat, (hair_style_a:0.5)", &with(&tagged, ":1.6"), &["on at 0.8"]) == on);
    let words = ["`<lora:hair:1>` in the prompt is text", "--lora FILE:WEIGHT", "`(` 1 time without `)`"];
    draw("a cat <lora:hair:1>, (b", "", &words);
    let token = draw(tag, &with(&tagged, ":0.8,gate=token"), &["on at 0.8"]);
    let after = draw(tag, &with(&tagged, ":0.8,gate=token,after"), &[]);
    assert!(token != on && after != on && token != after && token != tag_base);
    let left = draw(tag, &with(&tagged, ":0.8,region=0:0:0.5:1"), &[]);
    for mask in ["left.png", "alpha.jpg"] {
        let region = format!(":0.8,region={}", at(mask).display());
        assert!(draw(tag, &with(&tagged, &region), &[]) == left, "{mask}");
    }
    assert!(left != on && left != tag_base);

    let refuse = |options: &str, words: &[&str]| {
        fails(&["generate", text(&model), "--prompt", "x", "--lora", &with(&plain, options)], words);
    };
    refuse(",gate=token", &["plain.safetensors", "names no tags"]);
    refuse(",region=none.png", &["none.png"]);
}

/// What is wrong with --lora is said before anything is opened, and by both commands in the same words.
#[test]
fn lora_arguments_have_one_grammar() {
    let both = |options: &str, words: &[&str]| {
        let lora = format!("no/such.safetensors{options}");
        misused(&["generate", "m", "--prompt", "x", "--lora", &lora], words);
        misused(&["probe", "m", "--lora", &lora], words);
    };
    both(",gaet=token,after", &["gaet=token", "did you mean `gate=`?", "gate=always|prompt|token"]);
    both(",gate=tokne", &["tokne", "did you mean `token`?", "always, prompt or token"]);
    both(",tag=sks,after", &["after needs gate=token"]);
    both(",tag= ", &["tag= has no value"]);
    both(",region=0:0:2:1", &["0:0:2:1", "left half"]);
    both(":much", &["`much` is no number"]);
    misused(&["probe", "m", "--lora", "a,gate=token"], &["gate=", "each way of gating is measured"]);
    misused(&["generate", "m", "--prompt", "x", "--lora", "a,class=hair"], &["class=", "strata probe"]);
    misused(&["probe", "m", "--lora", "a,class=x", "--class", "y"], &["a LoRA has one class"]);
}

/// Modules that cannot be applied are left out only where that is asked for, and said.
#[test]
fn modules_of_no_part_of_the_model_are_left_out_on_request() {
    let folder = tempdir().unwrap();
    let (file, out) = (folder.path().join("both.safetensors"), folder.path().join("a.png"));
    let mut lora = LoraWeights::read(&golden("sd15-tiny", "lora/attn_sel_kohya.safetensors")).unwrap();
    let module = lora.modules.values().find(|module| module.down_shape.len() == 2).unwrap().clone();
    let layer = "text_model.encoder.layers.0.self_attn.q_proj".to_owned();
    lora.modules.insert((Part::TextEncoder2, layer), module);
    lora.write(&file).unwrap();
    let model = model();
    let args = [
        "generate",
        text(&model),
        "--prompt",
        "x",
        "--steps",
        "1",
        "--lora",
        text(&file),
        "--out",
        text(&out),
    ];
    fails(&args, &["both.safetensors", "1 module of the second text encoder", "--allow-unused"]);
    let run = strata(&[&args[..], &["--allow-unused"]].concat());
    assert!(run.code == Some(0) && out.exists(), "{}", run.err);
    assert!(run.err.contains("1 module of the second text encoder, which is not used"), "{}", run.err);
}

#[test]
fn generating_refuses_what_cannot_work() {
    let folder = tempdir().unwrap();
    let (model, junk) = (model(), put(folder.path(), "junk.safetensors", "junk"));
    let picture = folder.path().join("1.png");
    image::RgbImage::new(16, 16).save(&picture).unwrap();
    let with = |more: &[&str], words: &[&str]| {
        fails(&[&["generate", text(&model), "--prompt", "x"], more].concat(), words);
    };
    with(&["--lora", text(&junk)], &["junk.safetensors"]);
    with(&["--lora", "none.safetensors"], &["none.safetensors"]);
    with(
        &["--lora", text(&golden("sd2-tiny", "lora/attn_sel_kohya.safetensors"))],
        &["attn_sel_kohya.safetensors"],
    );
    with(&["--width", "63"], &["--width 63", "multiple of"]);
    with(&["--out", "picture.gif"], &["picture.gif", ".png"]);
    with(&["--out", "no/such/folder/x.png"], &["--out: cannot write no/such/folder/x.png", "no such folder"]);
    #[cfg(target_os = "linux")]
    with(&["--out", "/proc/x.png"], &["--out: cannot write /proc/x.png"]);
    with(&["--clip-skip", "99"], &["--clip-skip 99", "choose 1 to 4"]);
    let last = u64::MAX.to_string();
    with(&["--seed", &last, "--count", "2"], &["--seed", &last, "2 pictures"]);
    with(&["--lora", text(&picture)], &["1.png: not a safetensors file, but a picture"]);
    fails(&["generate", text(folder.path()), "--prompt", "x"], &["model_index.json"]);
    fails(
        &["generate", "sd15", "--prompt", "x"],
        &["sd15: there is no such file or folder here", "model_index.json"],
    );
    fails(&["parity", text(folder.path())], &[text(folder.path())]);
}

/// Makes the weights of a tensor so large that what they are multiplied with leaves f32's range, though they are finite.
pub fn overflow(file: &Path, tensor: &str) {
    let info = TensorFile::open(file).unwrap().tensors()[tensor].clone();
    let mut bytes = fs::read(file).unwrap();
    let start = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let (from, to) = info.data_offsets;
    for value in bytes[start + from..start + to].as_chunks_mut().0 {
        *value = f32::MAX.to_le_bytes();
    }
    fs::write(file, bytes).unwrap();
}

#[test]
fn several_pictures_are_numbered() {
    let folder = tempdir().unwrap();
    let (model, out) = (model(), folder.path().join("a.PNG"));
    let size = ["--steps", "1", "--width", "64", "--height", "64"];
    let args = ["generate", text(&model), "--prompt", "x", "--count", "2", "--out", text(&out)];
    prints(&[&args[..], &size].concat());
    for name in ["a-1.PNG", "a-2.PNG"] {
        assert!(image::open(folder.path().join(name)).is_ok(), "{name}");
    }
}

/// They would be black.
#[test]
fn pictures_that_are_no_numbers_are_an_error_of_the_vae() {
    let folder = tempdir().unwrap();
    let (root, out) = (folder.path().join("m"), folder.path().join("a.png"));
    copy_folder(&model(), &root);
    overflow(&root.join("vae/diffusion_pytorch_model.safetensors"), "decoder.conv_out.weight");
    let args = ["generate", text(&root), "--prompt", "x", "--steps", "1", "--width", "64", "--height", "64"];
    fails(&[&args[..], &["--out", text(&out)]].concat(), &["VAE", "not finite", "fetch"]);
    assert!(!out.exists());
}
