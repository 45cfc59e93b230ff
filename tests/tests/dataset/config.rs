//! The config of a run.

use std::path::{Path, PathBuf};

use strata_trainer::{Config, LoraRule, Precision, Resolution, Schedule};
use tempfile::tempdir;

use crate::support::{put, refused};

fn parse(text: &str) -> Result<Config, strata_trainer::Error> {
    Config::parse(text, Path::new("run.toml"))
}

#[test]
fn the_printed_default_is_the_default() {
    let text = Config::default_toml();
    assert_eq!(parse(&text).unwrap(), Config::default());
    assert_eq!(parse("").unwrap(), Config::default());
    // commented keys are examples that work as well
    let uncommented: String = text
        .lines()
        .map(|l| l.strip_prefix("# ").filter(|l| l.contains(" = ")).unwrap_or(l).to_string() + "\n")
        .collect();
    let all = parse(&uncommented).unwrap();
    assert!(all.log.is_some() && all.train.min_snr_gamma.is_some() && all.lora[0].lr.is_some());
    assert!(text.lines().all(|l| l.len() <= 140), "readable without scrolling");
}

#[test]
fn any_config_prints_and_parses_back() {
    let mut config = Config { model: "with \"quotes\" and ä".into(), ..Config::default() };
    config.seed = i64::MAX as u64;
    config.save_dtype = Precision::F32;
    config.log = Some("log.jsonl".into());
    config.dataset.resolution = Resolution { width: 512, height: 768 };
    config.dataset.flip = true;
    config.lora.push(LoraRule { select: "up_blocks.1.*".into(), rank: 3, alpha: 1.5, lr: Some(2e-5) });
    config.train.lr = 1.0 / 3.0;
    config.train.lr_schedule = Schedule::Cosine;
    config.train.min_snr_gamma = Some(5.0);
    config.train.betas = [0.8, 0.99];
    assert_eq!(parse(&config.to_toml()).unwrap(), config);
}

#[test]
fn paths_are_relative_to_the_file() {
    let folder = tempdir().unwrap();
    let text =
        "model = \"m\"\noutput = \"/abs/x.safetensors\"\nlog = \"l.jsonl\"\n[dataset]\nfolder = \"d\"\n";
    let config = Config::load(&put(folder.path(), "run.toml", text)).unwrap();
    assert_eq!(
        (config.model.clone(), config.dataset.folder.clone()),
        (folder.path().join("m"), folder.path().join("d"))
    );
    assert_eq!(
        (config.output.clone(), config.log_path()),
        (PathBuf::from("/abs/x.safetensors"), folder.path().join("l.jsonl"))
    );
    assert_eq!(parse("output = \"a/b.safetensors\"").unwrap().log_path(), Path::new("a/b.jsonl"));
    refused(Config::load(&folder.path().join("none.toml")), &["none.toml", "config"]);
}

#[test]
fn unknown_keys_are_refused_with_the_nearest_known_one() {
    for (text, parts) in [
        ("modle = \"x\"", &["run.toml:1", "`modle`", "did you mean `model`?"][..]),
        ("\n[train]\nstep = 5", &["run.toml:3", "`step`", "did you mean `steps`?"]),
        ("[train]\nbatchsize = 5", &["`batchsize`", "did you mean `batch_size`?"]),
        ("[[lora]]\nrnk = 4", &["run.toml:2", "did you mean `rank`?"]),
        ("[dataset]\nresolutoin = 512", &["did you mean `resolution`?"]),
        ("[train]\nlr_schedule = \"cosin\"", &["cosin", "cosine"]),
    ] {
        refused(parse(text), parts);
    }
    let message = refused(parse("xyzzyxyzzy = 1"), &["xyzzyxyzzy"]);
    assert!(!message.contains("did you mean"), "{message}");
}

#[test]
fn values_that_cannot_work_are_refused_with_key_line_and_value() {
    for (text, parts) in [
        ("seed = -1", &["seed"][..]),
        ("output = \"lora.ckpt\"", &["run.toml:1", "output", "lora.ckpt", ".safetensors"]),
        ("lora = []", &["lora", "no layers"]),
        (
            "[dataset]\nresolution = 500",
            &["run.toml:2", "dataset.resolution", "500", "multiple of 8", "496", "504"],
        ),
        ("[dataset]\nresolution = [512]", &["dataset.resolution"]),
        ("[dataset]\nresolution = [512, 512, 512]", &["dataset.resolution"]),
        ("[dataset]\nresolution = 0", &["dataset.resolution"]),
        ("[dataset]\ncaption_extension = \"png\"", &["caption_extension"]),
        ("[[lora]]\nrank = 0", &["rank", "0", "at least 1"]),
        ("[[lora]]\nalpha = 0.0", &["alpha"]),
        ("[[lora]]\nalpha = nan", &["alpha"]),
        ("[[lora]]\nselect = \"\"", &["select"]),
        ("[[lora]]\n[[lora]]\nlr = -1.0", &["lora[1].lr", "-1"]),
        ("[train]\nsteps = 0", &["train.steps", "0", "at least 1"]),
        ("[train]\nbatch_size = 0", &["train.batch_size"]),
        ("[train]\ngradient_accumulation = 0", &["train.gradient_accumulation"]),
        ("[train]\nlr = inf", &["train.lr"]),
        ("[train]\nsteps = 10\nwarmup_steps = 11", &["run.toml:3", "train.warmup_steps", "11", "10"]),
        ("[train]\nbetas = [0.9, 1.0]", &["train.betas"]),
        ("[train]\nbetas = [0.9]", &["train.betas"]),
        ("[train]\neps = 0.0", &["train.eps"]),
        ("[train]\nmax_grad_norm = -1.0", &["train.max_grad_norm"]),
        ("[train]\ncaption_dropout = 1.5", &["train.caption_dropout", "1.5"]),
        ("[train]\nmin_snr_gamma = 0.0", &["train.min_snr_gamma"]),
        ("[train]\ntimestep_max = 1001", &["train.timestep_max", "1000"]),
        ("[train]\ntimestep_min = 500\ntimestep_max = 500", &["train.timestep_min", "500"]),
        ("[train]\nlr = \"fast\"", &["run.toml:2", "train.lr"]),
        ("[train]\ndtype = \"bf16\"", &["train.dtype", "bf16", "f16"]),
        ("[train\n", &["run.toml:1"]),
    ] {
        refused(parse(text), parts);
    }
    let mut config = Config::default();
    config.train.steps = 0;
    refused(config.validate(), &["config", "train.steps"]);
}

#[test]
fn learning_rates_follow_their_schedule() {
    let mut config = Config::default();
    (config.train.lr, config.train.steps, config.train.warmup_steps) = (1.0, 14, 4);
    let rates = |config: &Config| (0..14).map(|i| config.lr_factor(i, 14) as f32).collect::<Vec<f32>>();
    assert_eq!(rates(&config)[..5], [0.25, 0.5, 0.75, 1.0, 1.0]);
    config.train.lr_schedule = Schedule::Linear;
    for (got, want) in rates(&config)[4..].iter().zip([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1f32]) {
        assert!((got - want).abs() < 1e-6);
    }
    config.train.lr_schedule = Schedule::Cosine;
    let cosine = rates(&config);
    assert!((cosine[9] - 0.5).abs() < 1e-6 && cosine[4] == 1.0 && cosine[13] > 0.0);
    assert!(cosine[4..].windows(2).all(|pair| pair[0] > pair[1]));
}
