//! The command from outside: what it prints, what it writes, and how it refuses.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{self, Stdio};
use std::time::Duration;

use assert_cmd::Command;
use image::{Rgb, RgbImage};
use strata_engine::DType;
use strata_kernels::tuning_name;
use strata_model::{LoraWeights, Part};
use strata_tests::{Setup, gpu};
use strata_trainer::{Config, Interrupt, Resolution, measure};
use tempfile::{TempDir, tempdir};

use crate::support::{golden, put};

/// What a run left: exit code, stdout, stderr.
pub struct Run {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// The command, behind the runner that cargo uses for this target, if any (`CARGO_TARGET_<TRIPLE>_RUNNER`). Nothing here takes
/// so long as the limit; what does is stuck.
pub fn command() -> Command {
    let mut command = Command::from_std(process());
    command.timeout(Duration::from_secs(900));
    command
}

fn process() -> process::Command {
    let program = env!("CARGO_BIN_EXE_strata-as-tested");
    let runner =
        std::env::vars().find(|(name, _)| name.starts_with("CARGO_TARGET_") && name.ends_with("_RUNNER"));
    let words: Vec<&str> =
        runner.iter().flat_map(|(_, words)| words.split_whitespace()).chain([program]).collect();
    let mut command = process::Command::new(words[0]);
    // without it Mesa has an error of its own to report
    command.args(&words[1..]).env("XDG_RUNTIME_DIR", std::env::temp_dir());
    command
}

pub fn strata(args: &[&str]) -> Run {
    let output = command().args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let run = Run { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) };
    assert!(!run.err.contains("panicked"), "{args:?}: {}", run.err);
    run
}

/// What a run that succeeds prints.
pub fn prints(args: &[&str]) -> String {
    let run = strata(args);
    assert_eq!(run.code, Some(0), "{args:?}: {}", run.err);
    run.out
}

/// A run that fails, says so once and with these words, and prints no result.
pub fn fails(args: &[&str], words: &[&str]) {
    let Run { code, out, err } = strata(args);
    assert_eq!(code, Some(1), "{args:?} gives {out}{err}");
    assert_eq!(err.matches("error: ").count(), 1, "{args:?}: {err}");
    words.iter().for_each(|word| assert!(err.contains(word), "{args:?}: {word:?} is not in: {err}"));
    assert_eq!(out, "", "{args:?}");
}

/// Wrong usage, said at once: exit code 2, with these words.
pub fn misused(args: &[&str], words: &[&str]) {
    let run = command().args(args).timeout(Duration::from_secs(60)).assert().code(2).stdout("");
    let err = String::from_utf8(run.get_output().stderr.clone()).unwrap();
    assert!(err.contains("--help"), "{args:?}: {err}");
    words.iter().for_each(|word| assert!(err.contains(word), "{args:?}: {word:?} is not in: {err}"));
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

pub fn model() -> PathBuf {
    golden("sd15-tiny", "")
}

#[test]
fn wrong_usage_is_exit_code_2() {
    for args in [
        &[][..],
        &["fly"],
        &["train"],
        &["train", "a", "--print-config"],
        &["train", "--print-config", "--json"],
        &["layers"],
        &["devices", "--jsn"],
        &["generate", "m"],
        &["probe", "m"],
        &["generate", "m", "--prompt", "x", "--count", "0"],
        &["parity", "d", "--dtype", "bf16"],
        &["bench", "--batch", "0"],
    ] {
        misused(args, &[]);
    }
}

/// What is wrong is said as a value of its option, with what would be right.
#[test]
fn numbers_have_limits_and_signs() {
    let draw = ["generate", "m", "--prompt", "x"];
    let probe = ["probe", "m", "--lora", "x"];
    for (command, option, value, words) in [
        (&draw[..], "--width", "100000", "1..=8192"),
        (&draw, "--height", "100000", "1..=8192"),
        (&draw, "--width", "0", "1..=8192"),
        (&draw, "--count", "4000000000", "1..=65535"),
        (&draw, "--steps", "4000000000", "1..=1000"),
        (&draw, "--steps", "0", "1..=1000"),
        (&draw, "--steps", "-1", "1..=1000"),
        (&draw, "--guidance", "-1", "at least 0"),
        (&draw, "--guidance", "nan", "at least 0"),
        (&draw, "--seed", "-1", "from 0 to 18446744073709551615"),
        (&draw, "--seed", "1.5", "from 0 to 18446744073709551615"),
        (&draw, "--adapter", "", "names no GPU adapter"),
        (&draw, "--adapter", "0,1", "one GPU adapter"),
        (&probe, "--samples", "4000000000", "1..=1000"),
        (&probe, "--batch", "60000", "1..=256"),
        (&probe, "--size", "100000", "1..=8192"),
        (&probe, "--steps", "4000000000", "1..=1000"),
        (&probe, "--seed", "-1", "from 0 to 18446744073709551615"),
        (&["train", "c"], "--steps", "4000000000", "1..=10000000"),
        (&["train", "c"], "--seed", "-1", "from 0 to 18446744073709551615"),
        (&["demo"], "--prompts", "65", "1..=64"),
        (&["demo"], "--steps", "4000000000", "1..=100000"),
        (&["layers", "m"], "--rank", "-1", "1..=4294967295"),
    ] {
        misused(&[command, &[option, value]].concat(), &[option, &format!("'{value}'"), words]);
    }
    fails(&["layers", text(&model()), "--rank", "4000000000"], &["rank 4000000000", "4096"]);
}

#[test]
fn help_has_examples() {
    assert_eq!(prints(&["--version"]), format!("strata {}\n", env!("CARGO_PKG_VERSION")));
    for args in [
        &["--help"][..],
        &["devices", "--help"],
        &["layers", "--help"],
        &["train", "--help"],
        &["generate", "--help"],
        &["probe", "--help"],
        &["parity", "--help"],
        &["bench", "--help"],
    ] {
        assert!(prints(args).contains("Examples:"), "{args:?}");
    }
}

#[test]
fn devices_are_listed() {
    assert!(prints(&["devices"]).starts_with("0: "));
    let list: serde_json::Value = serde_json::from_str(&prints(&["devices", "--json"])).unwrap();
    assert!(list[0]["name"].is_string());

    let without = |args: &[&str]| command().args(args).env("VK_LOADER_DRIVERS_DISABLE", "*").assert();
    without(&["devices", "--json"]).success().stdout("[]\n");
    without(&["devices"]).code(1).stdout("");
}

#[test]
fn kernels_are_timed() {
    let list = prints(&["bench", "--list", "--latent", "64", "--batch", "4,1,4"]);
    assert!(list.contains("attention 4×4096×4096, 8 heads of 40, there and back\n"), "{list}");
    let small = ["bench", "--list", "--json", "--latent", "8", "conv 3×3 1×8×8 320 to 320"];
    let listed: serde_json::Value = serde_json::from_str(&prints(&small)).unwrap();
    assert_eq!(listed[0]["op"], "conv");
    assert_eq!(listed[0]["flops"], 2 * 64 * 9 * 320 * 320);

    let folder = tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let (saved, plot) = (path("a.json"), path("a.png"));
    let table = prints(&["bench", "layer norm", "--latent", "4", "--save", &saved, "--plot", &plot]);
    assert!(
        table.contains("ceilings: GEMM ") && table.contains("layer norm 16×320, there and back "),
        "{table}"
    );
    let report: serde_json::Value = serde_json::from_slice(&fs::read(&saved).unwrap()).unwrap();
    let rows = report["rows"].as_array().unwrap();
    let row = rows.iter().find(|row| row["name"] == "layer norm 16×320").unwrap();
    assert!(row["ms"].as_f64().unwrap() > 0.0 && row["variant"] == "layer_norm", "{row}");
    assert!(report["ceilings"]["gemm_tflops"].as_f64().unwrap() > 0.0);
    let picture = image::open(&plot).unwrap();
    assert_eq!((picture.width(), picture.height()), (1200, 800));

    let again = ["bench", "layer norm 16", "--latent", "4", "--compare", &saved, "--json"];
    let compared: serde_json::Value = serde_json::from_str(&prints(&again)).unwrap();
    let names: Vec<_> = compared["changes"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
    assert!(names.contains(&&serde_json::json!("layer norm 16×320")), "{names:?}");

    let damaged = put(folder.path(), "damaged.json", "{\"rows\": 1");
    fails(&["bench", "--compare", text(&damaged)], &["damaged.json", "strata bench --save"]);
    fails(&["bench", "no such kernel"], &["no such kernel", "--list"]);
}

#[test]
fn a_damaged_tuning_is_ignored_and_said() {
    let cache = tempdir().unwrap();
    let name = tuning_name(&gpu(Setup::Lane)).unwrap();
    let folder = cache.path().join("strata");
    fs::create_dir_all(&folder).unwrap();
    let file = put(&folder, &format!("gemm-{name}.json"), "{");
    let output =
        command().args(["bench", "no such kernel"]).env("XDG_CACHE_HOME", cache.path()).output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(err.contains("is ignored") && err.contains(text(&file)), "{err}");
}

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
    fails(&["layers", "no-such-model"], &["no-such-model", "no such folder here", "model_index.json"]);
    fails(&["layers", text(&golden("sd15-tiny", "vae"))], &["config.json"]);
}

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

/// TERM, as Ctrl-C does: the run ends after its step, and what was learned is in a file that is no other's.
#[cfg(unix)]
#[test]
fn an_interrupted_run_keeps_what_it_learned() {
    let folder = project();
    let config = folder.path().join("run.toml");
    let mut run = process();
    run.args(["train", text(&config), "--steps", "100000", "--dtype", "f32"]);
    let mut child = run.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut err = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    // the second step has been taken where its file has been saved
    while !line.starts_with("saved ") {
        line.clear();
        assert!(err.read_line(&mut line).unwrap() > 0, "the run ended by itself");
    }
    let pid = child.id().to_string();
    assert!(process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let mut rest = String::new();
    err.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{rest}");
    assert!(
        rest.contains("interrupted after") && rest.contains("what was learned until then is in"),
        "{rest}"
    );
    let saved = rest.trim().rsplit(' ').next().unwrap();
    let lora = LoraWeights::read(Path::new(saved)).unwrap();
    assert!(lora.modules.values().all(|module| module.up.iter().any(|v| *v != 0.0)), "{saved}");
    assert!(!folder.path().join("lora.safetensors").exists(), "the file that was asked for is not there");
    // nothing is in the way of the next run
    prints(&["train", text(&config), "--steps", "1"]);
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
    let words = ["`<lora:hair:1>` in the prompt is text", "--lora FILE:WEIGHT", "`(` 1 times without `)`"];
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
    fails(&args, &["both.safetensors", "1 modules of the second text encoder", "--allow-unused"]);
    let run = strata(&[&args[..], &["--allow-unused"]].concat());
    assert!(run.code == Some(0) && out.exists(), "{}", run.err);
    assert!(run.err.contains("1 modules of the second text encoder, which are not used"), "{}", run.err);
}

#[test]
fn generating_refuses_what_cannot_work() {
    let folder = tempdir().unwrap();
    let (model, junk) = (model(), put(folder.path(), "junk.safetensors", "junk"));
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
    with(&["--out", "no/such/folder/x.png"], &["no/such/folder/x.png"]);
    fails(&["generate", text(folder.path()), "--prompt", "x"], &["model_index.json"]);
    fails(
        &["generate", "sd15", "--prompt", "x"],
        &["sd15: there is no such folder here", "model_index.json"],
    );
    fails(&["parity", text(folder.path())], &[text(folder.path())]);
}
