//! LoRAs that prompts call, weights of their blocks, and `BREAK`.

use std::fs;

use image::RgbImage;
use strata_model::{Checkpoint, LoraWeights, Part, Prompt, Reading};
use tempfile::{TempDir, tempdir};

use crate::cli::{fails, misused, strata, text};
use crate::support::{golden, put, tokenizer};

/// A folder of LoRAs, and what drawing with them gives.
struct Loras(TempDir);

impl Loras {
    fn new() -> Self {
        let folder = Self(tempdir().unwrap());
        fs::create_dir(folder.0.path().join("styles")).unwrap();
        let lora = folder.lora();
        lora.write(&folder.0.path().join("styles/full.safetensors")).unwrap();
        folder
    }

    /// Of U-Net and text encoder.
    fn lora(&self) -> LoraWeights {
        LoraWeights::read(&golden("sd15-tiny", "lora/kohya_full_kohya.safetensors")).unwrap()
    }

    fn draw(&self, prompt: &str, more: &[&str]) -> (RgbImage, String) {
        let (model, out) = (golden("sd15-tiny", ""), self.0.path().join("out.png"));
        let args = ["generate", text(&model), "--prompt", prompt, "--steps", "2", "--out", text(&out)];
        let size = ["--width", "64", "--height", "64", "--lora-dir", text(self.0.path())];
        let run = strata(&[&args[..], &size, more].concat());
        assert_eq!(run.code, Some(0), "{prompt}: {}", run.err);
        (image::open(&out).unwrap().into_rgb8(), run.err)
    }

    /// With the file of a LoRA that was changed.
    fn with(&self, prompt: &str, weight: f32, change: impl Fn(&mut LoraWeights)) -> RgbImage {
        let mut lora = self.lora();
        change(&mut lora);
        let file = self.0.path().join("changed.lora.safetensors");
        lora.write(&file).unwrap();
        self.draw(prompt, &["--lora", &format!("{}:{weight}", file.display())]).0
    }
}

#[test]
fn prompts_call_loras() {
    let loras = Loras::new();
    let base = loras.draw("a cat", &[]).0;
    let (called, said) = loras.draw("a <lora:full:0.8>cat", &[]);
    assert!(called == loras.with("a cat", 0.8, |_| ()) && called != base);
    assert!(said.contains("full.safetensors: on at 0.8"), "{said}");
    let png = fs::read(loras.0.path().join("out.png")).unwrap();
    assert!(!String::from_utf8_lossy(&png).contains("<lora:"), "the last was drawn without a call");
    // first the text encoder's weight, then the U-Net's, as A1111 has them
    let apart = loras.draw("a cat<lora:full:0.4:0.8>", &[]).0;
    let halved = |lora: &mut LoraWeights| {
        let text = lora.modules.iter_mut().filter(|((part, _), _)| *part == Part::TextEncoder);
        text.for_each(|(_, module)| module.alpha *= 0.5);
    };
    assert!(apart == loras.with("a cat", 0.8, halved) && apart != called);
    assert!(loras.draw("a cat<lora:full:1:te=0.4:unet=0.8>", &[]).0 == apart);
    let png = fs::read(loras.0.path().join("out.png")).unwrap();
    assert!(String::from_utf8_lossy(&png).contains("a cat<lora:full:1:te=0.4:unet=0.8>\n"));
    // a negative prompt calls none
    let (_, said) = loras.draw("a cat", &["--negative", "<lora:full:1>"]);
    assert!(said.contains("`<lora:full:1>` in the prompt is text"), "{said}");

    let model = golden("sd15-tiny", "");
    let folder = text(loras.0.path()).to_owned();
    let refuse = |prompt: &str, folder: &str, words: &[&str]| {
        fails(&["generate", text(&model), "--prompt", prompt, "--lora-dir", folder], words);
    };
    refuse("<lora:fulx:1>", &folder, &["<lora:fulx:1>", "no LoRA of this name", "`full`"]);
    refuse("<lora:full:0:1>", "none", &["--lora-dir none", "no such folder"]);
    refuse("<lora:full:1:0>", &folder, &["full.safetensors", "one for the U-Net"]);
}

/// Blocks by LBW's numbers: those of this small U-Net.
#[test]
fn blocks_have_weights() {
    let loras = Loras::new();
    let layers = Checkpoint::open(&golden("sd15-tiny", "")).unwrap().layers().unwrap();
    let blocks = strata_model::Blocks::new(&layers);
    let mut all: Vec<usize> =
        layers.iter().filter_map(|layer| blocks.name(&layer.path)).map(|name| name.kohya).collect();
    all.sort_unstable();
    all.dedup();
    // nothing of the text encoder, and the later blocks twice as much
    let middle = all.len() / 2;
    let numbers: Vec<&str> =
        std::iter::once("0").chain((0..all.len()).map(|i| if i > middle { "2" } else { "1" })).collect();
    let expected = loras.with("a cat", 0.5, |lora| {
        lora.modules.retain(|(part, _), _| *part == Part::Unet);
        for ((_, path), module) in &mut lora.modules {
            if blocks.name(path).is_some_and(|name| name.kohya > middle) {
                module.alpha *= 2.0;
            }
        }
    });
    let file = loras.0.path().join("styles/full.safetensors");
    for separator in [",", ":"] {
        let option = format!("{}:0.5,lbw={}", file.display(), numbers.join(separator));
        assert!(loras.draw("a cat", &["--lora", &option]).0 == expected);
    }
    assert!(loras.draw(&format!("a cat<lora:full:0.5:lbw={}>", numbers.join(",")), &[]).0 == expected);

    let model = golden("sd15-tiny", "");
    let refuse = |weights: &str, words: &[&str]| {
        let lora = format!("{},lbw={weights}", file.display());
        fails(&["generate", text(&model), "--prompt", "x", "--lora", &lora], words);
    };
    let many = format!("or {} (each block)", all.len() + 1);
    refuse("1,2", &["full.safetensors", "lbw=1,2", "2 weights", &many]);
    refuse("OUTSX", &["lbw=OUTSX", "neither numbers nor one of", "OUTALL"]);
    refuse(&vec!["0"; all.len() + 1].join(":"), &["none of its modules is left"]);
    misused(&["probe", "m", "--lora", "a,lbw=INS"], &["lbw=", "whole LoRAs are measured"]);
    misused(&["probe", "m", "--lora", "a:0"], &["weight 0", "nothing to measure"]);
}

#[test]
fn break_begins_a_chunk() {
    let tokenizer = tokenizer("sd15-tiny");
    let read = |text: &str, reading| Prompt::read(&tokenizer, text, &[], reading).unwrap();
    let prompt = read("a cat BREAK (red:1.5)", Reading::Weighted);
    let ids = [tokenizer.encode("a cat").unwrap(), tokenizer.encode("red").unwrap()].concat();
    assert_eq!((prompt.chunks(), prompt.ids()), (2, &ids[..]));
    assert_eq!(prompt.weights()[78], 1.5);
    assert_eq!(read("a cat BREAK", Reading::Weighted).chunks(), 1);
    assert_eq!(read("a cat BREAK ", Reading::Weighted).chunks(), 1);
    assert_eq!(read("BREAK a cat", Reading::Weighted).chunks(), 2);
    assert_eq!(read("a break, BREAKS", Reading::Weighted).chunks(), 1);
    assert_eq!(read("a cat BREAK b", Reading::Literal).chunks(), 1);
    let long = format!("{} BREAK b", "5 ".repeat(80));
    assert_eq!(read(&long, Reading::Weighted).chunks(), 3);
}

/// What is no picture is said so, in words for whoever named it.
#[test]
fn pictures_that_are_none_are_told() {
    let folder = tempdir().unwrap();
    let model = golden("sd15-tiny", "");
    let lora = golden("sd15-tiny", "lora/attn_sel_kohya.safetensors");
    let mut png = Vec::new();
    RgbImage::new(9, 9).write_to(&mut std::io::Cursor::new(&mut png), image::ImageFormat::Png).unwrap();
    let (text_file, cut) =
        (put(folder.path(), "a.png", "no picture"), put(folder.path(), "b.png", &png[..png.len() / 2]));
    for (file, words) in [
        (&lora, "it is a safetensors file"),
        (&text_file, "of no format that is read: PNG"),
        (&cut, "damaged or cut off"),
    ] {
        let name = file.file_name().unwrap().to_str().unwrap();
        let draw = ["generate", text(&model), "--prompt", "x", "--steps", "1"];
        fails(&[&draw[..], &["--init", text(file)]].concat(), &["--init", name, words]);
        let region = format!("{},region={}", lora.display(), file.display());
        fails(&[&draw[..], &["--lora", &region]].concat(), &["region=", name, words]);
    }
}
