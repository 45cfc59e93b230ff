//! `strata train`.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

use image::{Rgb, RgbImage};
use strata_engine::DType;
use strata_model::LoraWeights;
use strata_tests::{Setup, gpu};
use strata_trainer::{Config, Interrupt, Resolution, measure};
use tempfile::{TempDir, tempdir};

use super::generate::overflow;
use super::{Run, fails, model, prints, process, strata, text};
use crate::support::{copy_folder, put};

/// Three small pictures with captions, and a config that learns from them in two steps.
fn project() -> TempDir {
    let folder = tempdir().unwrap();
    let pictures = folder.path().join("pictures");
    fs::create_dir(&pictures).unwrap();
    for (name, color) in [("a", [200, 30, 30]), ("b", [30, 200, 30]), ("c", [30, 30, 200])] {
        RgbImage::from_pixel(70, 64, Rgb(color)).save(pictures.join(format!("{name}.png"))).unwrap();
        put(&pictures, &format!("{name}.txt"), format!("a photo of {name}"));
    }
    let model = model();
    put(
        folder.path(),
        "run.toml",
        format!(
            "model = {model:?}\nsave_dtype = \"f32\"\n[dataset]\nresolution = 64\nflip = true\n[[lora]]\nselect = \"up_blocks.2\"\nrank = 4\nalpha = 2.0\n\
         [train]\nsteps = 3\nbatch_size = 2\nlr = 1e-2\ncaption_dropout = 0.2\nsave_every = 2\nmin_snr_gamma = 5.0\nnoise_offset = 0.05\n"
        ),
    );
    folder
}

/// A run of many steps that is under way: the second step has been taken where its file has been saved.
struct UnderWay {
    child: Child,
    err: BufReader<ChildStderr>,
}

impl UnderWay {
    /// `temporary` is the folder for temporary files.
    fn new(config: &Path, temporary: &Path) -> Self {
        let mut run = process();
        run.args(["train", text(config), "--steps", "100000", "--dtype", "f32"]).env("TMPDIR", temporary);
        let mut child = run.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let mut err = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.starts_with("saved ") {
            line.clear();
            assert!(err.read_line(&mut line).unwrap() > 0, "the run ended by itself");
        }
        Self { child, err }
    }

    fn id(&self) -> String {
        self.child.id().to_string()
    }

    /// Its last words, which name a file with what was learned, and that file.
    fn fails(mut self) -> (String, PathBuf) {
        let mut rest = String::new();
        self.err.read_to_string(&mut rest).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(1), "{rest}");
        let error = rest.lines().last().unwrap().to_owned();
        let (_, saved) = error.split_once("what was learned until then is in ").expect(&rest);
        let saved = PathBuf::from(saved);
        let lora = LoraWeights::read(&saved).unwrap();
        assert!(lora.modules.values().all(|module| module.up.iter().any(|v| *v != 0.0)), "{error}");
        (error, saved)
    }
}

/// TERM, as Ctrl-C does: the run ends after its step, what was learned is in a file that is no other's, and the same run goes on
/// from there, no other.
#[cfg(unix)]
#[test]
fn an_interrupted_run_keeps_what_it_learned() {
    let (folder, temporary) = (project(), tempdir().unwrap());
    let config = folder.path().join("run.toml");
    let run = UnderWay::new(&config, temporary.path());
    assert!(Command::new("kill").args(["-TERM", &run.id()]).status().unwrap().success());
    let (error, _) = run.fails();
    let step =
        error.split("interrupted after ").nth(1).and_then(|rest| rest.split(' ').next()).expect(&error);
    assert!(error.contains(&format!("; the same run, started again, goes on from step {step}; ")), "{error}");
    assert!(!folder.path().join("lora.safetensors").exists(), "the file that was asked for is not there");
    let one = ["train", text(&config), "--steps", "1", "--dtype", "f32"];
    fails(
        &one,
        &["  steps = 1, and was 100000\n", &format!("go on from step {step}, or begin anew with --fresh")],
    );
    let more = (step.parse::<u64>().unwrap() + 2).to_string();
    let run = strata(&["train", text(&config), "--steps", &more, "--dtype", "f32"]);
    assert_eq!(run.code, Some(0), "{}", run.err);
    assert!(
        run.err.contains(&format!("note: the run goes on from step {step} of {more}, saved in ")),
        "{}",
        run.err
    );
    assert!(
        run.out.contains(&format!("{more} steps ({step} before), ")) && run.out.contains("\n2 steps in "),
        "{}",
        run.out
    );
    fails(&[&one[..], &["--resume"]].concat(), &["no save beside ", "nothing to go on from"]);
    prints(&[&one[..], &["--fresh"]].concat());
}

/// A file that may not grow any more ends the run with an error, not with a signal, and what was learned is kept.
#[cfg(target_os = "linux")]
#[test]
fn a_log_that_cannot_grow_loses_nothing() {
    const MOST: usize = 1 << 18;
    let (folder, temporary) = (project(), tempdir().unwrap());
    // room for a few lines
    put(folder.path(), "lora.jsonl", format!("{}\n", " ".repeat(MOST - 2000)));
    let run = UnderWay::new(&folder.path().join("run.toml"), temporary.path());
    let limit = ["--pid", &run.id(), &format!("--fsize={MOST}")];
    assert!(Command::new("prlimit").args(limit).status().unwrap().success());
    let (error, saved) = run.fails();
    assert!(error.starts_with("error: cannot write log ") && error.contains("lora.jsonl"), "{error}");
    assert_eq!(saved.parent(), Some(folder.path()));
}

/// A state that cannot be saved is told of, and stops nothing.
#[test]
fn saves_that_cannot_be_written_end_no_run() {
    let folder = project();
    let config = folder.path().join("run.toml");
    let run = fs::read_to_string(&config).unwrap();
    fs::write(&config, run.replace("save_every = 2", "state_minutes = 1e-9")).unwrap();
    for step in 0..4 {
        fs::create_dir(folder.path().join(format!("lora-00000{step}.save"))).unwrap();
    }
    let run = strata(&["train", text(&config), "--dtype", "f32", "--quiet"]);
    assert_eq!(run.code, Some(0), "{}", run.err);
    // where it begins, three times on its way, and at its end
    assert_eq!(
        run.err.matches("note: the state of the run is not saved: cannot write ").count(),
        5,
        "{}",
        run.err
    );
    assert!(folder.path().join("lora.safetensors").is_file());
    let left = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(left.filter(|name| name.to_string_lossy().starts_with('.')).count(), 0);
}

/// Where nothing can be written beside the output any more, what was learned goes to the folder for temporary files.
#[cfg(unix)]
#[test]
fn an_output_folder_that_goes_away_loses_nothing() {
    let (folder, temporary) = (project(), tempdir().unwrap());
    let (config, out) = (folder.path().join("run.toml"), folder.path().join("out"));
    let good = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("output = \"out/lora.safetensors\"\n{good}")).unwrap();
    let run = UnderWay::new(&config, temporary.path());
    fs::rename(&out, folder.path().join("gone")).unwrap();
    fs::write(&out, "").unwrap();
    let (error, saved) = run.fails();
    assert!(error.starts_with("error: cannot write ") && error.contains("out: is no folder"), "{error}");
    assert_eq!(saved.parent(), Some(temporary.path()));
}

/// What a dry run measures is what a run takes, and nothing is written.
#[test]
fn a_dry_run_tells_the_memory_of_a_run() {
    let gpu = gpu(Setup::Lane);
    for (resolution, batch, checkpointing, training) in
        [(64, 2, false, false), (128, 16, false, true), (64, 24, true, true)]
    {
        let folder = project();
        let path = folder.path().join("run.toml");
        let mut config = Config::load(&path).unwrap();
        config.dataset.resolution = Resolution { width: resolution, height: resolution };
        (config.train.steps, config.train.batch_size) = (2, batch);
        config.train.gradient_checkpointing = checkpointing;
        let told = measure(&gpu, &config, None).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "something was written");

        gpu.reset_peak();
        let before = gpu.stats().live_bytes;
        strata_trainer::run(&gpu, &config, None, &Interrupt::default()).unwrap();
        let took = gpu.stats().peak_bytes - before;
        let what = format!("{took} bytes at {resolution}, batch {batch}; told {told:?}");
        assert!(took.abs_diff(told.peak) * 20 <= told.peak, "{what}");
        assert_eq!(told.weights + told.lora + told.activations > told.preparation, training, "{what}");
    }
}

/// A rerun says what it replaces, and its log goes on in a section of its own.
#[test]
fn a_rerun_says_what_it_replaces_and_begins_a_section_of_the_log() {
    let folder = project();
    let config = folder.path().join("run.toml");
    let train = |steps: &str| {
        let run = strata(&["train", text(&config), "--steps", steps, "--dtype", "f32", "--quiet"]);
        assert_eq!(run.code, Some(0), "{}", run.err);
        run.err
    };
    let log = || fs::read_to_string(folder.path().join("lora.jsonl")).unwrap();
    assert!(!train("3").contains("replaced"));
    let first = log();
    let err = train("4");
    let note = err.lines().find(|line| line.contains("is replaced")).unwrap_or_else(|| panic!("{err}"));
    assert!(
        note.starts_with("note: ") && note.contains("lora.safetensors, trained with 3 steps, "),
        "{note}"
    );
    assert!(note.ends_with(" old, is replaced; lora-000002.safetensors as well"), "{note}");
    let second = log();
    let section: Vec<&str> = second.strip_prefix(&first).unwrap().lines().collect();
    assert_eq!(section[0], r#"{"run":2}"#);
    assert!(section.len() == 5 && section[1].contains(r#""step":0"#), "{section:?}");
}

#[test]
fn a_dry_run_is_printed() {
    let folder = project();
    let config = folder.path().join("run.toml");
    let table = prints(&["train", text(&config), "--dry-run"]);
    for what in ["weights", "LoRA", "activations", "peak", "MiB"] {
        assert!(table.contains(what), "{table}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&prints(&["train", text(&config), "--dry-run", "--json"])).unwrap();
    let number = |key: &str| json[key].as_u64().unwrap();
    assert!(number("weights") > 0 && number("lora") > 0 && number("activations") > 0, "{json}");
    let training = number("weights") + number("lora") + number("activations");
    assert_eq!(number("peak"), training.max(number("preparation")));
    assert!(number("held") >= number("peak"), "{json}");
    assert!(!folder.path().join("lora.safetensors").exists());
}

#[test]
fn the_default_config_is_printed() {
    assert_eq!(prints(&["train", "--print-config"]), Config::default_toml());
}

/// From pictures to a LoRA to pictures.
#[test]
fn a_run_trains_and_its_lora_draws() {
    let folder = project();
    let at = |name: &str| folder.path().join(name);
    let config = at("run.toml");
    let Run { code, out, err } = strata(&["train", text(&config)]);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("lora.safetensors") && out.contains("lora-000002.safetensors"), "{out}");
    // this is no terminal: lines, not a bar
    let line = |start: &str| err.lines().filter(|line| line.starts_with(start)).count();
    assert_eq!((line("steps 0/3, starting"), line("steps 3/3, "), line("saved ")), (1, 1, 1), "{err}");
    assert!(!err.contains('\u{1b}') && !err.contains('\r'), "{err:?}");

    let lora = LoraWeights::read(&at("lora.safetensors")).unwrap();
    assert_eq!(lora.dtype, DType::F32);
    assert!(lora.modules.keys().all(|key| key.1.starts_with("up_blocks.2.")) && lora.modules.len() > 10);
    assert!(lora.modules.values().all(|m| m.rank() == 4 && m.alpha == 2.0));
    assert!(
        lora.modules.values().all(|m| m.up.iter().any(|v| *v != 0.0)),
        "every layer has learned something"
    );
    assert!(lora.metadata.contains_key("ss_network_dim"));
    let log = fs::read_to_string(at("lora.jsonl")).unwrap();
    let steps: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(steps.len(), 3);
    for (i, step) in steps.iter().enumerate() {
        assert_eq!(step["step"], i);
        assert!(
            step["loss"].as_f64().is_some_and(|loss| loss > 0.0) && step["grad_norm"].is_number(),
            "{step}"
        );
    }

    // the same config gives the same files
    let first = fs::read(at("lora.safetensors")).unwrap();
    let quiet = strata(&["train", text(&config), "--quiet", "--json"]);
    assert_eq!(quiet.code, Some(0), "{}", quiet.err);
    assert!(!quiet.err.contains("steps ") && !quiet.err.contains("saved "), "{}", quiet.err);
    let summary: serde_json::Value = serde_json::from_str(&quiet.out).unwrap();
    assert_eq!(summary["features"][0]["steps"], 3);
    assert_eq!(summary["features"][0]["files"].as_array().unwrap().len(), 2);
    assert_eq!(summary["log"], text(&at("lora.jsonl")));
    assert!(summary["features"][0]["loss"].is_f64() && summary["seconds"].is_f64(), "{summary}");
    assert!(fs::read(at("lora.safetensors")).unwrap() == first, "a second run gives another file");
    prints(&["train", text(&config), "--seed", "1"]);
    assert!(fs::read(at("lora.safetensors")).unwrap() != first, "another seed gives the same file");

    let model = model();
    let draw = |name: &str, lora: &[&str]| {
        let out = at(name);
        let args = [
            "generate",
            text(&model),
            "--prompt",
            "a photo of a",
            "--steps",
            "2",
            "--width",
            "64",
            "--height",
            "48",
            "--seed",
            "7",
            "--out",
            text(&out),
        ];
        prints(&[&args, lora].concat());
        let picture = image::open(&out).unwrap().into_rgb8();
        assert_eq!(picture.dimensions(), (64, 48));
        picture
    };
    let file = at("lora.safetensors");
    let weighted = |weight: &str| format!("{}:{weight}", file.display());
    let base = draw("base.png", &[]);
    assert!(draw("again.png", &[]) == base, "equal arguments give another picture");
    assert!(draw("off.png", &["--lora", &weighted("0")]) == base, "a LoRA at 0 changes the picture");
    assert!(draw("on.png", &["--lora", &weighted("1.0")]) != base, "a LoRA at 1 changes nothing");
}

#[test]
fn training_refuses_what_cannot_work() {
    let folder = project();
    let at = |name: &str| folder.path().join(name);
    let config = at("run.toml");
    let good = fs::read_to_string(&config).unwrap();
    let with = |from: &str, to: &str, words: &[&str]| {
        fs::write(&config, good.replace(from, to)).unwrap();
        fails(&["train", text(&config)], words);
        assert!(!at("lora.safetensors").exists());
    };
    fails(&["train", text(&at("none.toml"))], &["none.toml"]);
    with("steps = 3", "stepz = 3", &["run.toml:", "`stepz`", "did you mean `steps`?"]);
    with("rank = 4", "rank = 0", &["run.toml:", "rank"]);
    with("select = \"up_blocks.2\"", "select = \"up_blocks.9\"", &["up_blocks.9"]);
    with("resolution = 64", "resolution = 65", &["resolution", "65"]);
    with("[dataset]", "[dataset]\nfolder = \"none\"", &["none"]);
    with(
        "[dataset]",
        "output = \"run.toml/a.safetensors\"\n[dataset]",
        &["run.toml: is a file, so there is no folder"],
    );
    with("model = ", "model = \"none\" #", &["none", "model_index.json"]);
    fs::write(&config, &good).unwrap();
    fails(&["train", text(&config), "--adapter", "no such GPU"], &["no such GPU", "mesa-vulkan-drivers"]);
    fs::remove_file(at("pictures/b.txt")).unwrap();
    fails(&["train", text(&config)], &["missing caption", "b.png"]);
    put(&at("pictures"), "b.txt", "x");
    put(&at("pictures"), "b.png", "no picture");
    fails(&["train", text(&config)], &["b.png", "not a readable picture"]);
    assert!(!at("lora.safetensors").exists());
}

/// Weights whose products leave f32's range teach nothing, and are told by their part.
#[test]
fn a_vae_that_gives_no_numbers_is_named() {
    let folder = project();
    let root = folder.path().join("m");
    copy_folder(&model(), &root);
    overflow(&root.join("vae/diffusion_pytorch_model.safetensors"), "encoder.conv_out.weight");
    let config = folder.path().join("run.toml");
    let good = fs::read_to_string(&config).unwrap();
    fs::write(&config, good.replace(&format!("{:?}", model()), "\"m\"")).unwrap();
    fails(&["train", text(&config)], &["the VAE gives a latent that is not finite", "a.png"]);
    assert!(!folder.path().join("lora.safetensors").exists());
}

/// The whole of a training, on a GPU adapter with no more than WebGPU guarantees.
#[test]
fn the_least_adapter_trains() {
    let folder = project();
    let mut config = Config::load(&folder.path().join("run.toml")).unwrap();
    (config.train.steps, config.train.batch_size) = (2, 1);
    let gpu = gpu(Setup::Minimal);
    let summary = strata_trainer::run(&gpu, &config, None, &Interrupt::default()).unwrap();
    assert!(summary.features[0].loss.is_finite() && summary.features[0].skipped == 0, "{summary:?}");
    let lora = LoraWeights::read(&config.output).unwrap();
    assert!(lora.modules.values().all(|module| module.up.iter().any(|v| *v != 0.0)));
}
