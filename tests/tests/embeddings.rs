//! Embeddings (textual inversion): diffusers' states with every kind of file, and what is refused.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use strata_engine::DType;
use strata_model::{Checkpoint, Embedding, LoraWeights, Reading, Spelling, TensorFile};
use strata_tests::{Setup, gpu};
use tempfile::tempdir;

use crate::cli::{fails, misused, prints, strata, text};
use crate::support::{MODELS, checkpoint, f32s, golden, golden_tensors, put, refused, safetensors};

fn own(model: &str, name: &str) -> PathBuf {
    golden(model, &format!("embeddings/{name}.safetensors"))
}

/// The values of a file's only tensor.
fn values(path: &Path) -> Vec<f32> {
    let mut file = TensorFile::open(path).unwrap();
    let name = file.tensors().keys().next().unwrap().clone();
    file.read(&name).unwrap()
}

/// A model with the two embeddings of the goldens, of which the first is read from `file`.
fn with_embeddings(model: &str, file: &Path) -> Checkpoint {
    let mut checkpoint = checkpoint(model);
    let one = Embedding::read(file, Some("style-a")).unwrap();
    let other = Embedding::read(&own(model, "learned_embeds"), None).unwrap();
    assert_eq!((one.key.count(), other.word.as_str(), other.key.count()), (2, "<toy-b>", 1));
    checkpoint.add_embeddings([one, other]).unwrap();
    checkpoint
}

#[test]
fn states_are_diffusers() {
    let (gpu, folder) = (gpu(Setup::Lane), tempdir().unwrap());
    for model in MODELS {
        let (states, file) = (golden_tensors(model, "embeddings/states.safetensors"), own(model, "states"));
        let prompts = TensorFile::open(&file).unwrap().metadata().clone();
        let vectors = values(&own(model, "a1111"));
        let shape = [2, vectors.len() / 2];
        // kohya's of SDXL has vectors for two text encoders
        let both = [f32s("clip_l", &shape, &vectors), f32s("clip_g", &[2, 3], &[0.0; 6])];
        let kohya = put(folder.path(), "kohya.safetensors", safetensors(&both));
        for file in [own(model, "a1111"), kohya] {
            let encoder = with_embeddings(model, &file).text_encoder(&gpu, DType::F32).unwrap();
            for (name, prompt) in &prompts {
                let number = name.strip_prefix("prompt.").unwrap();
                for reading in [Reading::Literal, Reading::Weighted] {
                    let read = encoder.read(&[prompt], reading, &[]).unwrap();
                    let found = encoder.encode(&read, 0).unwrap().states.to_f32().unwrap();
                    let wanted = &states[&format!("states.{number}")].1;
                    let far: f64 =
                        found.iter().zip(wanted).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
                    let all: f64 = wanted.iter().map(|b| f64::from(*b).powi(2)).sum();
                    assert!((far / all).sqrt() <= 2e-6, "{model} {prompt}: {:e}", (far / all).sqrt());
                }
            }
        }
    }
}

/// A word is text: brackets weigh it, no tag is heard in it, and no chunk ends within it.
#[test]
fn words_are_text() {
    let tokenizer = with_embeddings("sd15-tiny", &own("sd15-tiny", "a1111")).tokenizer().unwrap();
    let read = |text: &str| strata_model::Prompt::read(&tokenizer, text, &[], Reading::Weighted).unwrap();
    let weighted = read("a (STYLE-A:1.5) b");
    assert!(weighted.mentions().is_empty());
    let heavy: Vec<usize> = (0..77).filter(|i| weighted.weights()[*i] == 1.5).collect();
    assert_eq!(heavy.len(), 2);
    let plain = read("a style-a b");
    let at = heavy[0];
    assert_eq!(plain.ids()[at], plain.ids()[at + 1]);
    // of 75 places the last would have its first vector alone
    let words = |n: usize| format!("{} style-a", "1 ".repeat(n));
    assert_eq!((read(&words(73)).chunks(), read(&words(74)).chunks()), (1, 2));
    let moved = read(&words(74));
    assert_eq!(moved.ids()[75], tokenizer.eos());
    assert_eq!(moved.ids()[77 + 1], moved.ids()[77 + 2]);
}

#[test]
fn embeddings_that_cannot_work_are_refused() {
    let folder = tempdir().unwrap();
    let file = |name: &str, tensors: &[(&str, &[usize])]| {
        let zeros: Vec<Vec<f32>> =
            tensors.iter().map(|(_, shape)| vec![0.5; shape.iter().product()]).collect();
        let entries: Vec<_> =
            tensors.iter().zip(&zeros).map(|((name, shape), values)| f32s(name, shape, values)).collect();
        put(folder.path(), name, safetensors(&entries))
    };
    let read = |path: &Path| Embedding::read(path, None);
    let word = read(&file("easy.safetensors", &[("emb_params", &[2, 3])])).unwrap();
    assert_eq!((word.word.as_str(), word.key.count()), ("easy", 2));
    refused(read(&file("g.safetensors", &[("clip_g", &[2, 3])])), &["g.safetensors", "second", "clip_g"]);
    refused(read(&file("x.safetensors", &[("emb_params", &[2, 3, 4])])), &["emb_params", "[2, 3, 4]"]);
    refused(read(&file("x.safetensors", &[("emb_params", &[0, 3])])), &["no vectors"]);
    refused(read(&file("x.safetensors", &[("emb_params", &[1, 3]), ("y", &[1])])), &["no embedding"]);
    refused(
        read(&golden("sd15-tiny", "lora/attn_sel_kohya.safetensors")),
        &["is no embedding; it seems to be a LoRA"],
    );
    refused(read(&put(folder.path(), "x.pt", b"PK\x03\x04archive/data.pkl")), &["pickled"]);
    refused(LoraWeights::read(&own("sd15-tiny", "a1111")), &["is no LoRA, but an embedding", "--embedding"]);
    refused(Checkpoint::open(&own("sd15-tiny", "learned_embeds")), &["an embedding", "--embedding"]);

    let mut model = checkpoint("sd15-tiny");
    let digest = model.digest().unwrap();
    let width = values(&own("sd15-tiny", "a1111")).len() / 2;
    refused(model.add_embeddings([word]), &["\"easy\"", "3 channels", &width.to_string()]);
    let many = read(&file("many.safetensors", &[("emb_params", &[76, width])])).unwrap();
    refused(model.add_embeddings([many]), &["76 vectors", "75"]);
    let short = Embedding::read(&own("sd15-tiny", "a1111"), Some("a")).unwrap();
    refused(model.add_embeddings([short]), &["one letter"]);
    let [one, other] = ["a1111", "learned_embeds"]
        .map(|name| Embedding::read(&own("sd15-tiny", name), Some("Style")).unwrap());
    model.add_embeddings([one.clone(), one]).unwrap();
    assert_eq!(model.tokenizer().unwrap().words().len(), 1);
    refused(model.add_embeddings([Embedding { word: "style".into(), ..other }]), &["twice", "FILE=WORD"]);
    assert_ne!(model.digest().unwrap(), digest);
}

/// A LoRA file brings words along, and keeps them.
#[test]
fn loras_bring_embeddings() {
    let folder = tempdir().unwrap();
    let mut lora = LoraWeights::read(&golden("sd15-tiny", "lora/attn_sel_kohya.safetensors")).unwrap();
    let one = Embedding::read(&own("sd15-tiny", "a1111"), Some("style-a")).unwrap();
    lora.embeddings.insert("style-a".into(), one.clone());
    let second = Some(Embedding::read(&own("sd15-tiny", "learned_embeds"), None).unwrap().key);
    let two = Embedding { word: "two".into(), second, ..one.clone() };
    lora.embeddings.insert("two".into(), two.clone());
    let path = folder.path().join("lora.safetensors");
    lora.write(&path).unwrap();
    let names = TensorFile::open(&path).unwrap().tensors().keys().cloned().collect::<Vec<_>>();
    for name in ["bundle_emb.style-a.string_to_param.*", "bundle_emb.two.clip_l", "bundle_emb.two.clip_g"] {
        assert!(names.iter().any(|own| own == name), "{name}");
    }
    assert_eq!(LoraWeights::read(&path).unwrap(), lora);
    assert_eq!(LoraWeights::combine(&[lora.clone(), lora.clone()]).unwrap().embeddings, lora.embeddings);
    let mut other = lora.clone();
    other.embeddings.insert("two".into(), Embedding { second: None, ..two });
    refused(LoraWeights::combine(&[lora.clone(), other]), &["\"two\"", "another embedding"]);
    for spelling in [Spelling::Peft, Spelling::Diffusers] {
        refused(lora.write_as(spelling, &folder.path().join("out")), &["style-a", "kohya"]);
    }

    // drawing with the word of the file, and with the same from a file of its own
    lora.embeddings.remove("two");
    lora.write(&path).unwrap();
    let model = golden("sd15-tiny", "");
    let draw = |prompt: &str, more: &[&str], words: &[&str]| {
        let out = folder.path().join("out.png");
        let args = ["generate", text(&model), "--prompt", prompt, "--steps", "2", "--out", text(&out)];
        let size = ["--width", "64", "--height", "64"];
        let run = strata(&[&args[..], &size, more].concat());
        assert_eq!(run.code, Some(0), "{}", run.err);
        words.iter().for_each(|word| assert!(run.err.contains(word), "{word:?} not in {}", run.err));
        (image::open(&out).unwrap().into_rgb8(), fs::read(&out).unwrap())
    };
    let lora_zero = format!("{}:0", path.display());
    let given = format!("{}=style-a", text(&own("sd15-tiny", "a1111")));
    let prompt = "a man, (style-a:1.1)";
    let (base, _) = draw(prompt, &[], &[]);
    let (bundled, _) =
        draw(prompt, &["--lora", &lora_zero], &["embedding style-a: 2 vectors, in the prompt"]);
    let (from_file, png) =
        draw(prompt, &["--embedding", &given], &["embedding style-a: 2 vectors, in the prompt"]);
    assert!(bundled == from_file && bundled != base);
    // the probe knows the word too
    let probed = |lora: &str| -> Value {
        let prompts = put(folder.path(), "prompts.txt", "a man, {}, style-a\na man, style-a\n");
        let args = [
            "probe",
            text(&model),
            "--lora",
            lora,
            "--tag",
            "qzx",
            "--prompts",
            text(&prompts),
            "--samples",
            "1",
        ];
        serde_json::from_str(&prints(&[&args[..], &["--no-blocks", "--json", "--size", "64"]].concat()))
            .unwrap()
    };
    let without = text(&golden("sd15-tiny", "lora/attn_sel_kohya.safetensors")).to_owned();
    let [with, without] = [text(&path), &without].map(|lora| probed(lora)["features"][0]["gates"].clone());
    assert_ne!(with, without);
    let png = String::from_utf8_lossy(&png);
    assert!(png.contains("TI hashes: \"style-a: "), "{png}");
    let (same, _) = draw("a man", &["--embedding", &given], &["in neither prompt"]);
    assert!(same == draw("a man", &[], &[]).0);
    draw("a man", &["--embedding", &given, "--negative", "STYLE-A"], &["in the negative prompt"]);
    let wide = text(&own("sd2-tiny", "a1111")).to_owned();
    fails(
        &["generate", text(&model), "--prompt", "x", "--embedding", &wide],
        &["\"a1111\"", "48 channels", "32"],
    );
    misused(&["generate", "m", "--prompt", "x", "--embedding", "a="], &["--embedding", "no word"]);
}

/// Captions read the words as prompts do, and a run knows by them whether its file is done.
#[test]
fn captions_have_embeddings() {
    let folder = tempdir().unwrap();
    image::RgbImage::from_pixel(64, 64, image::Rgb([9, 99, 199])).save(folder.path().join("a.png")).unwrap();
    put(folder.path(), "a.txt", "a man, a1111");
    fs::copy(own("sd15-tiny", "a1111"), folder.path().join("a1111.safetensors")).unwrap();
    let train = |name: &str, embeddings: &str| {
        let toml = format!(
            "model = {:?}\n{embeddings}output = \"{name}.safetensors\"\n[dataset]\nfolder = \".\"\nresolution = 64\n\
             [train]\nsteps = 1\nbatch_size = 1\ndtype = \"f32\"\n",
            golden("sd15-tiny", "")
        );
        let path = put(folder.path(), &format!("{name}.toml"), toml);
        prints(&["train", text(&path)]);
        LoraWeights::read(&folder.path().join(format!("{name}.safetensors"))).unwrap().modules
    };
    assert_ne!(train("with", "embeddings = [\"a1111.safetensors\"]\n"), train("without", ""));
    let none = format!(
        "model = {:?}\nembeddings = [\"none.safetensors\"]\n[dataset]\nfolder = \".\"\n",
        golden("sd15-tiny", "")
    );
    fails(&["train", text(&put(folder.path(), "none.toml", none))], &["none.safetensors"]);
}
