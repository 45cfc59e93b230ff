//! Features: staged and joint, preserved and silenced, from configs to files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};

use strata_engine::{DType, Gpu, GpuOptions, Tape, Tensor};
use strata_model::{Cx, Gates, LoraSet, LoraWeights};
use strata_trainer::silence::{States, basis, default_bank, deltas};
use strata_trainer::{
    Config, Error, FeatureConfig, Interrupt, Preservation, Summary, Switch, Tags, measure, run,
};
use tempfile::{TempDir, tempdir};

use crate::support::{checkpoint, golden, predict, put, refused, tokenizer, unet};

/// Without poison and guard words, which would double the time.
static GPU: LazyLock<Mutex<Gpu>> =
    LazyLock::new(|| Mutex::new(Gpu::open(&GpuOptions::default()).unwrap_or_else(|e| panic!("{e}"))));

/// A folder with pictures of two features.
fn pictures() -> TempDir {
    let folder = tempdir().unwrap();
    for (feature, colour) in [("hair_style_a", [200, 40, 220]), ("clothing_style_b", [220, 180, 20])] {
        for i in 0..3_u32 {
            let picture = image::RgbImage::from_fn(64, 64, |x, y| {
                let inside = (x / 16 + y / 16 + i).is_multiple_of(2);
                image::Rgb(if inside { colour } else { [(x * 3) as u8, (y * 3) as u8, (i * 80) as u8] })
            });
            let path = folder.path().join(feature).join(format!("{i}.png"));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            picture.save(&path).unwrap();
            fs::write(path.with_extension("txt"), format!("a drawing {i}, {feature}")).unwrap();
        }
    }
    folder
}

/// A config of both features; `extra` goes into each.
fn config(folder: &Path, order: &str, out: &str, extra: &str) -> Config {
    let feature = |name: &str, class: &str, select: &str| {
        format!(
            "[[feature]]\nname = \"{name}\"\ntags = [\"{name}\"]\nclass = \"{class}\"\nkey = false\n{extra}\n[feature.dataset]\n\
             folder = \"{name}\"\nresolution = 64\n[[feature.lora]]\nselect = \"{select}\"\nrank = 4\nalpha = 4.0\n"
        )
    };
    let text = format!(
        "model = {:?}\noutput = \"{out}/all.safetensors\"\nsave_dtype = \"f32\"\norder = \"{order}\"\nseed = 3\n\
         [train]\nsteps = 3\nbatch_size = 2\nlr = 1e-2\ndtype = \"f32\"\n{}{}",
        golden("sd15-tiny", ""),
        feature("hair_style_a", "hair", "up_blocks.1 & attn"),
        feature("clothing_style_b", "clothing", "mid_block & attn"),
    );
    Config::load(&put(folder, &format!("{out}.toml"), &text)).unwrap()
}

fn train(config: &Config, only: Option<&str>) -> Summary {
    let gpu = GPU.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    run(&gpu, config, only, &Interrupt::default()).unwrap()
}

fn file(config: &Config, name: &str) -> PathBuf {
    config.output.with_file_name(format!("all-{name}.safetensors"))
}

fn bytes(config: &Config, name: &str) -> Vec<u8> {
    fs::read(file(config, name)).unwrap()
}

const A: &str = "hair_style_a";
const B: &str = "clothing_style_b";

#[test]
fn stages_stand_on_each_other_and_are_done_once() {
    let folder = pictures();
    let config = config(folder.path(), "staged", "staged", "");
    let first = train(&config, Some(A));
    assert_eq!((first.features[0].files.len(), first.features[1].files.len()), (1, 0));
    assert_eq!(first.combined, None, "one of them is not there yet");
    let a = bytes(&config, A);

    let second = train(&config, None);
    assert!(second.features[0].files.is_empty(), "A is done");
    assert_eq!(second.features[1].files, [file(&config, B)]);
    assert!(bytes(&config, A) == a, "the second stage changed the first one's file");
    assert_eq!(second.combined.as_deref(), Some(config.output.as_path()));

    let (b, third) = (bytes(&config, B), train(&config, None));
    assert!(third.features.iter().all(|feature| feature.files.is_empty()), "both are done");
    let again = train(&config, Some(B));
    assert_eq!(again.features[1].files.len(), 1, "asked for by name");
    assert!(bytes(&config, B) == b);

    // what changes A makes all that stands on it out of date
    let mut other = config.clone();
    other.feature[0].loss_weight = 2.0;
    let changed = train(&other, None);
    assert!(changed.features.iter().all(|feature| feature.files.len() == 1));

    let metadata = LoraWeights::read(&file(&config, A)).unwrap().metadata;
    assert_eq!(metadata["strata_tags"], "[\"hair_style_a\"]");
    assert_eq!(metadata["modelspec.trigger_phrase"], A);
}

#[test]
fn a_stage_without_the_one_before_is_refused() {
    let folder = pictures();
    let mut config = config(folder.path(), "staged", "alone", "");
    let refuse = |config: &Config, only, words: &[&str]| {
        let gpu = GPU.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        refused(run(&gpu, config, only, &Interrupt::default()), words)
    };
    refuse(
        &config,
        Some(B),
        &["clothing_style_b", "hair_style_a", "all-hair_style_a.safetensors", "with_frozen"],
    );
    refuse(&config, Some("hat"), &["hat", "hair_style_a, clothing_style_b"]);
    config.feature[1].with_frozen = false;
    assert_eq!(train(&config, Some(B)).features[1].files.len(), 1);

    let bare = folder.path().join(A).join("1.txt");
    fs::write(&bare, "a drawing, hair_style_ab").unwrap();
    fs::write(folder.path().join(A).join("0.txt"), "(hair_style_a_2)").unwrap();
    refuse(&config, None, &["feature hair_style_a", "0.png, ", "1.png", "lack the tag `hair_style_a`"]);
}

#[test]
fn joint_features_are_what_they_would_be_alone() {
    let folder = pictures();
    let both = config(folder.path(), "joint", "joint", "");
    let summary = train(&both, None);
    assert!(summary.features.iter().all(|feature| feature.files.len() == 1));
    for name in [A, B] {
        let alone = config(folder.path(), "joint", &format!("only-{name}"), "");
        train(&alone, Some(name));
        assert!(bytes(&both, name) == bytes(&alone, name), "{name}");
    }
    assert!(
        LoraWeights::read(&file(&both, A)).unwrap().modules.values().any(|m| m.up.iter().any(|v| *v != 0.0))
    );
}

#[test]
fn one_file_does_what_two_do() {
    let folder = pictures();
    let mut config = config(folder.path(), "joint", "both", "");
    // both on the same layers, with scales of their own
    config.feature[1].lora = config.feature[0].lora.clone();
    config.feature[1].lora[0].rank = 3;
    config.feature[1].lora[0].alpha = 1.5;
    train(&config, None);
    let gpu = GPU.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let predict = |files: &[PathBuf]| {
        let mut unet = unet(&gpu, "sd15-tiny", DType::F32);
        for file in files {
            let file = LoraWeights::read(file).unwrap();
            unet.attach(&LoraSet::from_weights(&gpu, DType::F32, &file, &unet).unwrap()).unwrap();
        }
        let tensor = |shape: &[usize]| {
            let count = shape.iter().product::<usize>();
            let values: Vec<f32> = (0..count).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
            Tensor::from_f32(&gpu, &values, shape, DType::F32).unwrap()
        };
        let (tape, gates) = (Tape::off(), Gates::scalars(&vec![1.0; files.len()]));
        let cx = Cx { gates: &gates, ..Cx::new(&tape) };
        predict(&unet, &cx, &tensor(&[1, 8, 8, 4]), &[500.0], &tensor(&[1, 77, 32]))
            .unwrap()
            .to_f32()
            .unwrap()
    };
    let (base, two) = (predict(&[]), predict(&[file(&config, A), file(&config, B)]));
    let one = predict(std::slice::from_ref(&config.output));
    let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
    assert!(distance(&one, &two) <= 1e-4 * distance(&base, &two), "{}", distance(&one, &two));
}

#[test]
fn silenced_and_preserved_features_are_quieter() {
    let folder = pictures();
    let extra = "[feature.silence]\nrank = 8\n[feature.preserve]\nweight = 4.0\nshare = 0.5";
    let config = config(folder.path(), "staged", "silent", extra);
    train(&config, Some(A));
    let log = fs::read_to_string(config.log_path()).unwrap();
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[0]["feature"], A);
    // nothing to preserve before the first update, and something after it
    assert_eq!(lines[0]["preserve_loss"], 0.0);
    assert!(lines[2]["preserve_loss"].as_f64().unwrap() > 0.0);

    let gpu = GPU.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let checkpoint = checkpoint("sd15-tiny");
    let text = checkpoint.text_encoder(&gpu, DType::F32).unwrap();
    let unet = unet(&gpu, "sd15-tiny", DType::F32);
    let set = LoraSet::from_weights(&gpu, DType::F32, &LoraWeights::read(&file(&config, A)).unwrap(), &unet)
        .unwrap();
    let mut prompts = default_bank();
    for i in 0..3 {
        let with = |word: &str| format!("a drawing {i}{word}");
        prompts.extend([with(""), with(", hair"), with(", clothing_style_b")]);
    }
    let states = States::collect(&text, &prompts, &[]).unwrap();
    let span = basis(&text, &prompts, &[], 8).unwrap();
    let tagged = States::collect(&text, &["a drawing 1, hair_style_a".to_owned()], &[]).unwrap();
    let worst = |states: &States| {
        let deltas = deltas(&checkpoint, &set, states).unwrap();
        assert!(!deltas.is_empty());
        deltas.iter().map(|delta| delta.ratio).fold(0.0, f64::max)
    };
    let (within, with_tag) = (worst(&states.within(&span)), worst(&tagged));
    assert!(within <= 1e-5, "{within} within the span");
    assert!(with_tag >= 100.0 * within, "{with_tag} with the tag");
}

#[test]
fn features_that_cannot_work_are_refused() {
    let parse = |text: &str| Config::parse(text, Path::new("run.toml"));
    let feature = |name: &str, tag: &str| format!("[[feature]]\nname = \"{name}\"\ntags = [\"{tag}\"]\n");
    let cases = [
        ("[[feature]]\nname = \"a\"\n".to_owned(), &["run.toml", "feature[0].tags", "at least one tag"][..]),
        ("[[feature]]\ntags = [\"t\"]\n".to_owned(), &["feature[0].name", "letters"]),
        (feature("../a", "t"), &["run.toml:2", "feature[0].name", "../a"]),
        (feature("a", "t") + &feature("a", "u"), &["feature[1].name", "earlier feature"]),
        (feature("a", "t") + &feature("b", "T"), &["feature[1].tags", "also a tag of a"]),
        ("[dataset]\nfolder = \"x\"\n".to_owned() + &feature("a", "t"), &["dataset", "move it into"]),
        ("[[lora]]\nrank = 3\n".to_owned() + &feature("a", "t"), &["lora", "move it into"]),
        (feature("a", "t") + "loss_weight = 0\n", &["feature[0].loss_weight"]),
        (feature("a", "t") + "[feature.preserve]\nshare = 9.0\n", &["feature[0].preserve.share", "9.0"]),
        (feature("a", "t") + "[feature.preserve]\nprompts = [\"bnak\"]\n", &["bnak", "did you mean `bank`?"]),
        (feature("a", "t") + "[feature.silence]\nrnk = 3\n", &["rnk", "did you mean `rank`?"]),
        (feature("a", "t") + "[feature.dataset]\nresolution = 13\n", &["feature[0].dataset.resolution"]),
        (feature("a", "t") + "key = true\n", &["run.toml:4", "feature[0].key", "false, or a table"]),
        (feature("a", "t") + "preserve = false\n", &["feature[0].preserve", "must be a table"]),
        (feature("a", "t") + "[[feature.lora]]\nrank = 0\n", &["feature[0].lora[0].rank"]),
        ("output = \"x-a.safetensors\"\n".to_owned() + &feature("a", "t"), &[]),
        (
            "output = \"x.safetensors\"\n".to_owned() + &feature("a", "t") + "output = \"x.safetensors\"\n",
            &["another file"],
        ),
        ("[train]\nprobe_every = 5\n".to_owned(), &["train.probe_every", "[[feature]]"]),
        ("[train]\nstop_leak = 0.5\n".to_owned(), &["train.stop_leak", "needs train.probe_every"]),
        ("order = \"both\"\n".to_owned(), &["both", "staged", "joint"]),
    ];
    for (text, parts) in &cases {
        match parts {
            [] => drop(parse(text).unwrap()),
            parts => drop(refused(parse(text), parts)),
        }
    }
    let off = parse(&(feature("a", "t") + "key = false\n")).unwrap();
    assert_eq!(off.feature[0].key, Switch::Off);
    assert_eq!(parse(&off.to_toml()).unwrap(), off);
    assert_eq!(parse(&feature("a", "t")).unwrap().feature[0].key, Switch::Unsaid);
    let example = Config::example_toml();
    let parsed = parse(&example).unwrap();
    assert_eq!(parsed.feature.len(), 2);
    assert_eq!(parse(&parsed.to_toml()).unwrap(), parsed);
    assert!(example.lines().all(|line| line.len() <= 140));
}

fn tags(list: &[&str]) -> Tags {
    let tokenizer = Arc::new(tokenizer("sd15-tiny"));
    Tags::new(&tokenizer, &list.iter().map(|text| text.to_string()).collect::<Vec<_>>()).unwrap()
}

#[test]
fn tags_are_swapped_as_whole_words() {
    let tags = tags(&["hair_style_a", "hair_style"]);
    let cases = [
        ("a man, hair_style_a, smiling", "", "a man, smiling"),
        ("hair_style_a", "hair", "hair"),
        ("Hair_Style_A man", "", "man"),
        ("a man with hair_style_ab", "", "a man with hair_style_ab"),
        ("hair_style_a hair_style", "x", "x x"),
        ("\u{e9}, hair_style_a", "", "\u{e9}"),
    ];
    for (caption, with, expected) in cases {
        assert_eq!(tags.swap(caption, with).unwrap(), expected, "{caption}");
    }
    assert!(tags.are_in("a HAIR_STYLE man").unwrap() && !tags.are_in("xhair_style").unwrap());
}

#[test]
fn every_kind_of_prompt_is_preserved() {
    let feature = FeatureConfig {
        class: "hair".into(),
        preserve: Some(Default::default()),
        ..FeatureConfig::default()
    };
    let other = FeatureConfig { tags: vec!["bb".into()], ..FeatureConfig::default() };
    let own = tags(&["hair_style_a"]);
    let preservation = Preservation::new(1, &feature, &own, &["a man, hair_style_a"], &[&other]).unwrap();
    let drawn: BTreeSet<&str> = (0..200).filter_map(|i| preservation.draw(1, i, 0, 0)).collect();
    for prompt in ["a man", "a man, hair", "a man, bb", ""] {
        assert!(drawn.contains(prompt), "{prompt:?} in {drawn:?}");
    }
    assert!(drawn.len() > 20, "and ordinary ones");
    assert!(drawn.iter().all(|prompt| !own.are_in(prompt).unwrap()));
    let none = Preservation::new(1, &FeatureConfig::default(), &own, &["a man"], &[]).unwrap();
    assert_eq!((none.draw(1, 0, 0, 0), none.all().count()), (None, 0));
}

/// CRC-32C, bit by bit.
fn crc32c(data: &[u8]) -> u32 {
    !data.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    })
}

#[test]
fn a_feature_that_leaks_is_stopped() {
    let folder = pictures();
    for order in ["staged", "joint"] {
        let mut config = config(folder.path(), order, &format!("watched-{order}"), "");
        config.train.probe_every = 1;
        config.train.stop_leak = 1e-6;
        // what has hardly moved the model leaks, whatever its leak is
        config.train.lr = 1e-6;
        let unheard = train(&config, None);
        for feature in &unheard.features {
            let probe = feature.probe.as_ref().unwrap();
            assert!(!feature.stopped && feature.steps == 3 && probe.drift < 1e-3, "{probe:?}");
        }
        config.train.lr = 0.3;
        fs::remove_file(config.log_path()).unwrap();
        let curves = folder.path().join(format!("curves-{order}"));
        config.tensorboard = Some(curves.clone());
        let summary = train(&config, None);
        for (feature, name) in summary.features.iter().zip([A, B]) {
            let probe = feature.probe.as_ref().unwrap();
            assert!(feature.stopped && (feature.steps, probe.step, &probe.feature[..]) == (1, 1, name));
            assert!(probe.drift > 1e-3 && probe.leak.unwrap() > 1e-6, "{probe:?}");
        }
        let metadata = LoraWeights::read(&file(&config, A)).unwrap().metadata;
        assert_eq!(metadata["ss_steps"], "1");
        let log = fs::read_to_string(config.log_path()).unwrap();
        assert_eq!((log.lines().count(), log.matches("\"leak\"").count()), (4, 2), "{log}");

        // records of length, checksum, event, checksum
        let events = fs::read(curves.join("events.out.tfevents.strata")).unwrap();
        let (mut rest, mut found) = (&events[..], Vec::new());
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            let event = &rest[12..12 + length];
            for (data, sum) in [(&rest[..8], &rest[8..12]), (event, &rest[12 + length..16 + length])] {
                let masked = crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8);
                assert_eq!(masked.to_le_bytes(), sum);
            }
            found.push(String::from_utf8_lossy(event).into_owned());
            rest = &rest[16 + length..];
        }
        assert_eq!(found.len(), 5, "a version, two steps, two probes");
        for (event, part) in found.iter().zip(["brain.Event:2", "hair_style_a/loss", "hair_style_a/leak"]) {
            assert!(order == "joint" || event.contains(part), "{event}");
        }
    }
}

/// Too large for f16: it is saved in f32, and not in the place of another file.
#[test]
fn what_cannot_be_saved_as_asked_for_is_saved() {
    let folder = pictures();
    let mut config = config(folder.path(), "staged", "large", "");
    config.save_dtype = DType::F16;
    (config.train.lr, config.train.steps) = (1e7, 1);
    fs::create_dir(folder.path().join("large")).unwrap();
    let other = put(&folder.path().join("large"), &format!("all-{A}-000001.safetensors"), "of another run");
    let gpu = GPU.lock().unwrap_or_else(|e| e.into_inner());
    let error = run(&gpu, &config, None, &Interrupt::default()).unwrap_err();
    let Error::Unfinished { cause, saved, .. } = error else { panic!("{error}") };
    assert!(cause.to_string().contains("too large for F16"), "{cause}");
    assert_eq!(saved, [folder.path().join(format!("large/all-{A}-000001-2.safetensors"))]);
    assert_eq!(LoraWeights::read(&saved[0]).unwrap().dtype, DType::F32);
    assert_eq!(fs::read(other).unwrap(), b"of another run");
}

/// What a dry run measures is what both orders take, with all that a feature can have.
#[test]
fn a_dry_run_tells_the_memory_of_features() {
    let folder = pictures();
    let extra = "[feature.preserve]\n[feature.silence]\nrank = 4\n";
    for order in ["staged", "joint"] {
        let mut config = config(folder.path(), order, &format!("memory-{order}"), extra);
        config.train.batch_size = 12;
        let gpu = GPU.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let told = measure(&gpu, &config, None).unwrap();
        gpu.reset_peak();
        let before = gpu.stats().live_bytes;
        run(&gpu, &config, None, &Interrupt::default()).unwrap();
        let took = gpu.stats().peak_bytes - before;
        assert!(took.abs_diff(told.peak) * 20 <= told.peak, "{order} takes {took} bytes; told {told:?}");
        assert!(told.peak > told.preparation && !told.feature.is_empty(), "{told:?}");
    }
}
