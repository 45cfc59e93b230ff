//! Runs that end early, in whatever way, and go on from their saves: they come to the files of a run that never stopped.

#[cfg(unix)]
mod killed;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use strata_engine::{Gpu, GpuOptions};
use strata_trainer::{Config, Error, Interrupt, Start, Summary, run_from};
use tempfile::{TempDir, tempdir};

use crate::support::{copy_folder, golden, put, refused};

/// Without poison and guard words, which would double the time.
static GPU: LazyLock<Mutex<Gpu>> =
    LazyLock::new(|| Mutex::new(Gpu::open(&GpuOptions::default()).unwrap_or_else(|e| panic!("{e}"))));

/// Saves after each step.
const OFTEN: &str = "state_minutes = 1e-9\n";

/// The pictures of two features.
fn pictures(folder: &Path) {
    for (feature, colour) in [("hat", [200, 40, 220]), ("coat", [220, 180, 20])] {
        for i in 0..2_u32 {
            let picture = image::RgbImage::from_fn(64, 64, |x, y| {
                let inside = (x / 16 + y / 16 + i).is_multiple_of(2);
                image::Rgb(if inside { colour } else { [(x * 3) as u8, (y * 3) as u8, (i * 80) as u8] })
            });
            let path = folder.join(feature).join(format!("{i}.png"));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            picture.save(&path).unwrap();
            fs::write(path.with_extension("txt"), format!("a drawing {i}, {feature}_x")).unwrap();
        }
    }
    put(folder, "bank.txt", "a man\na red house\nthree birds over the sea\nan old map\n");
}

/// A run of two features with all that has a state: key, silence, preservation, log, curves, files on the way, and where `probe`
/// is not 0, a probe every so many steps.
fn features(folder: &Path, order: &str, dtype: &str, probe: u64) -> PathBuf {
    pictures(folder);
    let feature = |name: &str, select: &str, key: &str| {
        format!(
            "[[feature]]\nname = \"{name}\"\ntags = [\"{name}_x\"]\n{key}[feature.silence]\nrank = 4\nbank = \"bank.txt\"\n\
             [feature.preserve]\nshare = 0.5\nprompts = [\"empty\", \"untagged\"]\n[feature.dataset]\nfolder = \"{name}\"\nresolution = 64\n\
             [[feature.lora]]\nselect = \"{select}\"\nrank = 2\nalpha = 2.0\n"
        )
    };
    let text = format!(
        "model = {:?}\noutput = \"out/all.safetensors\"\ntensorboard = \"out/curves\"\norder = \"{order}\"\nseed = 3\n\
         [train]\nsteps = 4\nlr = 1e-2\ndtype = \"{dtype}\"\nsave_every = 2\nprobe_every = {probe}\n{OFTEN}{}{}",
        golden("sd15-tiny", ""),
        feature("hat", "up_blocks.1 & cross-attn", "[feature.key]\nrank = 4\nsteps = 8\n"),
        feature("coat", "mid_block & cross-attn", "key = false\n"),
    );
    put(folder, "run.toml", text)
}

/// A run of one LoRA.
fn plain(folder: &Path) -> PathBuf {
    pictures(folder);
    let text = format!(
        "model = {:?}\noutput = \"out/lora.safetensors\"\n[dataset]\nfolder = \"hat\"\nresolution = 64\n[[lora]]\n\
         select = \"mid_block & cross-attn\"\nrank = 2\n[train]\nsteps = 6\nlr = 0.01\ndtype = \"f32\"\n{OFTEN}",
        golden("sd15-tiny", ""),
    );
    put(folder, "run.toml", text)
}

fn train(config: &Config, start: Start, interrupt: &Interrupt) -> Result<Summary, Error> {
    let gpu = GPU.lock().unwrap_or_else(PoisonError::into_inner);
    run_from(&gpu, config, None, start, interrupt)
}

fn finish(folder: &Path) -> Summary {
    train(&Config::load(&folder.join("run.toml")).unwrap(), Start::GoOn, &Interrupt::default()).unwrap()
}

/// Interrupts a run once its log has so many lines, and takes away the LoRAs that it then writes. Returns the step that it goes
/// on from.
fn interrupt(folder: &Path, lines: usize) -> u64 {
    let config = Config::load(&folder.join("run.toml")).unwrap();
    let (interrupt, log) = (Interrupt::default(), config.log_path());
    let error = std::thread::scope(|scope| {
        scope.spawn(|| {
            while fs::read_to_string(&log).map_or(0, |text| text.lines().count()) < lines {
                std::thread::sleep(Duration::from_millis(1));
            }
            interrupt.ask();
        });
        train(&config, Start::GoOn, &interrupt).unwrap_err()
    });
    // it may have been between two features
    if matches!(error, Error::Interrupted { steps: 0 }) {
        return 0;
    }
    assert!(error.to_string().contains("; the same run, started again, goes on from step "), "{error}");
    let Error::Unfinished { cause, resume: Some(step), saved } = error else { panic!("{error}") };
    assert!(matches!(*cause, Error::Interrupted { steps } if steps == step), "{cause}");
    let every = config.train.save_every;
    let ours = |path: &&PathBuf| {
        every == 0 || !step.is_multiple_of(every) || !path.to_string_lossy().contains(&format!("{step:06}"))
    };
    saved.iter().filter(ours).for_each(|path| fs::remove_file(path).unwrap());
    step
}

/// The saves that lie in a folder.
fn saves(folder: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    let mut saves: Vec<PathBuf> = all.filter(|path| path.extension().is_some_and(|e| e == "save")).collect();
    saves.sort();
    saves
}

/// All files below a folder that a run is for, by name, each as what must be the same in two runs: logs without the time that
/// steps took, curves without the time of day.
fn results(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut results, mut folders) = (BTreeMap::new(), vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        for path in fs::read_dir(next).unwrap().map(|entry| entry.unwrap().path()) {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                folders.push(path);
            } else if !name.starts_with('.') {
                let bytes = fs::read(&path).unwrap();
                let bytes = match name.rsplit('.').next() {
                    Some("jsonl") => without_times(&String::from_utf8(bytes).unwrap()),
                    Some("strata") => events(&bytes),
                    _ => bytes,
                };
                results.insert(path.strip_prefix(folder).unwrap().to_owned(), bytes);
            }
        }
    }
    results
}

fn without_times(log: &str) -> Vec<u8> {
    let line = |line: &str| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        let fields = line.as_object_mut().unwrap();
        for time in ["seconds", "samples_per_second"] {
            fields.remove(time);
        }
        format!("{line}\n")
    };
    log.lines().map(line).collect::<String>().into_bytes()
}

/// The events of a file without their times: of each record what lies between the length with its checksum, or the first field,
/// which is the time, and the checksum of the whole.
fn events(file: &[u8]) -> Vec<u8> {
    let (mut rest, mut events) = (file, Vec::new());
    while let Some((length, _)) = rest.split_first_chunk() {
        let length = u64::from_le_bytes(*length) as usize;
        events.extend(&rest[12 + 9..12 + length]);
        rest = &rest[16 + length..];
    }
    events
}

/// Panics unless two runs have come to the same.
fn assert_same(is: &Path, should_be: &Path, what: &str) {
    let (is, should_be) = (results(&is.join("out")), results(&should_be.join("out")));
    let names = |files: &BTreeMap<PathBuf, Vec<u8>>| files.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(&is), names(&should_be), "{what}");
    let differ: Vec<&PathBuf> = is.keys().filter(|name| is[*name] != should_be[*name]).collect();
    assert!(differ.is_empty(), "{what}: {differ:?} differ");
}

fn with(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from:?} is not in {text}");
    text.replace(from, to)
}

/// Three times: in the first feature, in the second, and there once more.
#[test]
fn an_interrupted_run_goes_on() {
    for (order, dtype, probe) in [("staged", "f32", 0), ("joint", "f16", 3)] {
        let (whole, parts) = (tempdir().unwrap(), tempdir().unwrap());
        features(whole.path(), order, dtype, probe);
        finish(whole.path());
        assert!(saves(&whole.path().join("out")).is_empty(), "{order}: a finished run needs no saves");
        features(parts.path(), order, dtype, probe);
        for lines in [2, 4, 6] {
            interrupt(parts.path(), lines);
            let saves = saves(&parts.path().join("out"));
            assert!((1..=4).contains(&saves.len()), "{order}: {saves:?}");
        }
        let summary = finish(parts.path());
        assert!(summary.features.iter().any(|feature| feature.resumed_from > 0), "{summary:?}");
        assert_same(parts.path(), whole.path(), order);
    }
}

/// A run of 6 steps that was interrupted, and one that was not.
fn interrupted() -> (TempDir, TempDir, u64) {
    let (whole, part) = (tempdir().unwrap(), tempdir().unwrap());
    plain(whole.path());
    finish(whole.path());
    plain(part.path());
    let step = interrupt(part.path(), 3);
    assert!((3..6).contains(&step), "{step}");
    (whole, part, step)
}

#[test]
fn damaged_saves_are_named_and_the_one_before_is_used() {
    let (whole, part, step) = interrupted();
    let out = part.path().join("out");
    let [before, newest] = saves(&out).try_into().unwrap();
    let good = fs::read(&newest).unwrap();
    assert!(newest.ends_with(format!("lora-{step:06}.save")), "{newest:?}");
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let of_another_version: Vec<u8> = {
        let at = good.windows(17).position(|bytes| bytes == b"\"strata_save\":\"1\"").unwrap();
        [&good[..at + 15], b"9", &good[at + 16..]].concat()
    };
    let damaged = [good[..good.len() / 2].to_vec(), flipped, of_another_version, b"no save".to_vec()];
    for (i, damaged) in damaged.iter().enumerate() {
        let copy = tempdir().unwrap();
        copy_folder(part.path(), copy.path());
        fs::write(copy.path().join("out").join(newest.file_name().unwrap()), damaged).unwrap();
        let summary = finish(copy.path());
        let from = summary.features[0].resumed_from;
        assert!(
            from < step && before.ends_with(format!("lora-{from:06}.save")),
            "{i}: from {from} of {before:?}"
        );
        assert_same(copy.path(), whole.path(), &format!("damage {i}"));
    }
    for save in [&before, &newest] {
        fs::write(save, &damaged[0]).unwrap();
    }
    let config = Config::load(&part.path().join("run.toml")).unwrap();
    let message = refused(train(&config, Start::GoOn, &Interrupt::default()), &["begin anew"]);
    assert!(message.contains(newest.to_str().unwrap()), "{message}");
    // the saves are another run's until there is a new one
    train(&config, Start::Anew, &Interrupt::default()).unwrap();
    assert!(saves(&out).is_empty());
}

#[test]
fn a_run_goes_on_only_with_what_it_was() {
    let (whole, part, step) = interrupted();
    let path = part.path().join("run.toml");
    let text = fs::read_to_string(&path).unwrap();
    let refuse = |text: &str, words: &[&str]| {
        fs::write(&path, text).unwrap();
        let refusal = train(&Config::load(&path).unwrap(), Start::GoOn, &Interrupt::default());
        let message = refused(refusal, words);
        assert!(
            message.contains(&format!("undo that to go on from step {step}, or begin anew")),
            "{message}"
        );
        assert_eq!(message.lines().count(), 2 + words.len(), "{message}");
    };
    refuse(&with(&text, "lr = 0.01", "lr = 0.02"), &["train.lr = 0.02, and was 0.01\n"]);
    refuse(
        &with(&text, "rank = 2\n[train]", "rank = 3\n[train]\nmin_snr_gamma = 5.0"),
        &["  lora[0].rank = 3, and was 2\n", "train.min_snr_gamma = 5.0, and was not set\n"],
    );
    refuse(&with(&text, "steps = 6", "steps = 2"), &["steps = 2, and was 6\n"]);
    // a rate that falls to the end falls otherwise to another one
    refuse(
        &with(&text, "steps = 6", "steps = 7\nlr_schedule = \"linear\""),
        &["steps = 7, and was 6\n", "train.lr_schedule = \"linear\", and was \"constant\"\n"],
    );
    let caption = part.path().join("hat/0.txt");
    let said = fs::read_to_string(&caption).unwrap();
    fs::write(&caption, "another drawing").unwrap();
    refuse(&text, &["other pictures and captions\n"]);
    fs::write(&caption, said).unwrap();

    // what does not decide may change, and at a constant rate the number of steps does not
    for (steps, other) in [("steps = 6", ""), ("steps = 8", "log = \"out/lora.jsonl\"\n")] {
        let [whole, part] = [&whole, &part].map(|from| {
            let copy = tempdir().unwrap();
            copy_folder(from.path(), copy.path());
            fs::write(copy.path().join("run.toml"), format!("{other}{}", text.replace("steps = 6", steps)))
                .unwrap();
            copy
        });
        if steps == "steps = 8" {
            fs::remove_dir_all(whole.path().join("out")).unwrap();
            finish(whole.path());
        }
        assert_eq!(finish(part.path()).features[0].resumed_from, step);
        assert_same(part.path(), whole.path(), steps);
    }

    // a run that must go on needs something to go on from
    fs::write(&path, &text).unwrap();
    let config = Config::load(&path).unwrap();
    let resumed = train(&config, Start::MustGoOn, &Interrupt::default()).unwrap();
    assert_eq!(resumed.features[0].resumed_from, step);
    assert_same(part.path(), whole.path(), "told to go on");
    refused(
        train(&config, Start::MustGoOn, &Interrupt::default()),
        &["lora.safetensors", "nothing to go on from"],
    );
    assert_same(part.path(), whole.path(), "and then refused");
}

/// A step that was taken, and then could not be noted and saved, is not taken again, and is noted once.
#[test]
fn a_step_that_ends_half_way_is_gone_on_with() {
    let (whole, part) = (tempdir().unwrap(), tempdir().unwrap());
    for folder in [&whole, &part] {
        let path = plain(folder.path());
        let text = with(&fs::read_to_string(&path).unwrap(), OFTEN, "state_minutes = 0.0\nsave_every = 2\n");
        fs::write(path, text).unwrap();
    }
    finish(whole.path());
    let in_the_way = part.path().join("out/lora-000004.safetensors");
    fs::create_dir_all(&in_the_way).unwrap();
    let config = Config::load(&part.path().join("run.toml")).unwrap();
    let error = train(&config, Start::GoOn, &Interrupt::default()).unwrap_err();
    let Error::Unfinished { cause, resume: Some(4), saved } = error else { panic!("{error}") };
    assert!(
        cause.to_string().starts_with("cannot write ") && cause.to_string().contains("lora-000004"),
        "{cause}"
    );
    fs::remove_dir(in_the_way).unwrap();
    saved.iter().for_each(|path| fs::remove_file(path).unwrap());
    assert_eq!(finish(part.path()).features[0].resumed_from, 4);
    assert_same(part.path(), whole.path(), "half a step");
}

/// A step whose gradients are not finite says which pictures it had, and where the last good save is.
#[test]
fn a_run_that_diverges_names_its_pictures() {
    let folder = tempdir().unwrap();
    let path = plain(folder.path());
    fs::write(&path, with(&fs::read_to_string(&path).unwrap(), "lr = 0.01", "lr = 1e30\nbatch_size = 2"))
        .unwrap();
    let diverged = train(&Config::load(&path).unwrap(), Start::GoOn, &Interrupt::default());
    refused(
        diverged,
        &["step 1: gradients are not finite", "had 0.png, 1.png", "goes on from step 1; what was learned"],
    );
    let saves = saves(&folder.path().join("out"));
    assert!(saves.last().unwrap().ends_with("lora-000001.save"), "{saves:?}");
}
