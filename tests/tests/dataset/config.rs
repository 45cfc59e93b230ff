//! The config of a run.

use std::fs;
use std::path::{Path, PathBuf};

use strata_engine::DType;
use strata_trainer::{AdamW, Config, LoraRule, Optimizer, Resolution, Schedule};
use tempfile::tempdir;

use crate::support::{golden, put, refused};

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
    assert!(all.log.is_some() && all.train.loss.min_snr_gamma.is_some() && all.lora[0].lr.is_some());
    assert!(text.lines().all(|l| l.len() <= 140), "readable without scrolling");
    let line = text.lines().find(|line| line.contains("stop_leak")).unwrap();
    assert!(line.contains("counted from drift 0.001 on"), "{line}");
}

#[test]
fn any_config_prints_and_parses_back() {
    let mut config = Config { model: "with \"quotes\" and ä".into(), ..Config::default() };
    config.seed = i64::MAX as u64;
    config.save_dtype = DType::F32;
    config.log = Some("log.jsonl".into());
    config.dataset.resolution = Resolution { width: 512, height: 768 };
    config.dataset.flip = true;
    config.lora.push(LoraRule { select: "up_blocks.1.*".into(), rank: 3, alpha: 1.5, lr: Some(2e-5) });
    config.train.lr = 1.0 / 3.0;
    config.train.schedule.lr_schedule = Schedule::Cosine;
    config.train.loss.min_snr_gamma = Some(5.0);
    config.train.optimizer = Optimizer::AdamW(AdamW { betas: [0.8, 0.99], ..AdamW::default() });
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

/// What is missing is told as such, and not as the folder that it would be.
#[test]
fn folders_that_a_file_does_not_name_are_told() {
    let folder = tempdir().unwrap();
    let load = |text: &str| Config::load(&put(folder.path(), "run.toml", text));
    refused(load(""), &["run.toml: model is not given", "by default it is", "/model, which is not there"]);
    refused(load("model = \"m\"\n[dataset]\nflip = true"), &["run.toml: dataset.folder is not given"]);
    let feature = "model = \"m\"\n[[feature]]\nname = \"a\"\ntags = [\"a\"]\n";
    refused(load(feature), &["run.toml: feature[0].dataset.folder is not given"]);
    load(&format!("{feature}[feature.dataset]\nfolder = \"p\"")).unwrap();
    for default in ["model", "pictures"] {
        fs::create_dir(folder.path().join(default)).unwrap();
    }
    load("").unwrap();
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
        ("[[lora]]\nrank = 0", &["lora[0].rank = 0", "must be a whole number from 1 to 4096"]),
        ("[[lora]]\nrank = 1.5", &["lora[0].rank = 1.5", "must be a whole number from 1 to 4096"]),
        ("[[lora]]\nrank = -1", &["lora[0].rank = -1", "must be a whole number from 1 to 4096"]),
        ("[[lora]]\nalpha = 0.0", &["alpha"]),
        ("[[lora]]\nalpha = nan", &["alpha"]),
        ("[[lora]]\nselect = \"\"", &["select"]),
        ("[[lora]]\n[[lora]]\nlr = -1.0", &["lora[1].lr", "-1"]),
        ("[train]\nsteps = 0", &["train.steps", "0", "from 1 to 100000000"]),
        ("[train]\nsave_every = -1", &["train.save_every = -1", "from 0 to"]),
        ("[train]\nbatch_size = 0", &["train.batch_size"]),
        ("[train]\ngradient_accumulation = 0", &["train.gradient_accumulation"]),
        ("[train]\nlr = inf", &["train.lr = inf: is not finite; must be more than 0"]),
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
fn names_of_other_trainers_and_other_tables_are_told() {
    for (text, parts) in [
        ("learning_rate = 1e-4", &["run.toml:1", "`learning_rate`", "did you mean `lr` in [train]?"][..]),
        ("[train]\nlearning_rate = 1e-4", &["run.toml:2", "did you mean `lr`?"]),
        ("[train]\nmax_train_steps = 5", &["did you mean `steps`?"]),
        ("[train]\ntrain_batch_size = 5", &["did you mean `batch_size`?"]),
        ("[train]\nadam_beta1 = 0.9", &["did you mean `betas`?"]),
        (
            "[train]\nresolution = 512",
            &["did you mean `resolution` in [dataset] or `resolution` in [feature.dataset]?"],
        ),
        ("[[lora]]\nnetwork_dim = 4", &["did you mean `rank`?"]),
        ("network_alpha = 4", &["did you mean `alpha` in [[lora]] or `alpha` in [[feature.lora]]?"]),
        (
            "steps = 5",
            &[
                "run.toml:1",
                "`steps`",
                "`steps` in [[feature]] or `steps` in [feature.key] or `steps` in [train]?",
            ],
        ),
        (
            "[[feature]]\nrank = 4",
            &["`rank` in [feature.key] or `rank` in [feature.silence] or `rank` in [[feature.lora]]?"],
        ),
        ("[[feature]]\n[[feature.lora]]\nlearning_rate = 4", &["did you mean `lr` in [train]?"]),
    ] {
        refused(parse(text), parts);
    }
    refused(parse("[dataset]\nqqqqqqqq = 1"), &["known here are `folder`, `resolution`"]);
}

#[test]
fn tables_that_can_be_repeated_are_told_from_those_that_cannot() {
    for (text, parts) in [
        ("[lora]\nrank = 4", &["run.toml:1", "[lora]: there may be several of these; write [[lora]]"][..]),
        ("\n[feature]\nname = \"a\"", &["run.toml:2", "write [[feature]]"]),
        ("[[feature]]\n[feature.lora]\nrank = 4", &["run.toml:2", "write [[feature.lora]]"]),
        ("[[train]]\nsteps = 4", &["run.toml:1", "[[train]]: there is one of these; write [train]"]),
        ("[[feature]]\n[[feature.silence]]", &["run.toml:2", "write [feature.silence]"]),
        ("train = 3", &["run.toml:1", "train", "under a line [train]"]),
        ("lora = 3", &["run.toml:1", "lora", "under a line [[lora]]"]),
        ("lora = [3]", &["run.toml:1", "lora", "under a line [[lora]]"]),
    ] {
        refused(parse(text), parts);
    }
}

#[test]
fn a_key_given_twice_is_named_with_both_lines() {
    for (text, parts) in [
        (
            "seed = 1\n[train]\nsteps = 4\nlr = 1e-4\nsteps = 5",
            &["run.toml:5", "`steps`", "lines 3 and 5"][..],
        ),
        ("[train]\nsteps = 4\n\n[train]\nlr = 1e-4", &["run.toml:4", "`train`", "lines 1 and 4"]),
        ("[[lora]]\nrank = 4\n[[lora]]\nrank = 5\nrank = 6", &["run.toml:5", "`rank`", "lines 4 and 5"]),
    ] {
        refused(parse(text), parts);
    }
}

#[test]
fn files_that_are_not_utf_8_are_named() {
    let folder = tempdir().unwrap();
    fs::create_dir(folder.path().join("pictures")).unwrap();
    let load = |bytes: &[u8]| {
        let path = folder.path().join("run.toml");
        fs::write(&path, bytes).unwrap();
        Config::load(&path)
    };
    let text = "seed = 3\n# f\u{fc}r\nmodel = \"m\"\n";
    assert_eq!(load(format!("\u{feff}{text}").as_bytes()).unwrap().seed, 3);
    let bad = load(b"\xef\xbb\xbfseed = 3\nsteed = 4\n");
    refused(bad, &["run.toml:2", "`steed`"]);
    for text in [text, "seed = 3\n"] {
        for (big_endian, mark) in [(true, true), (false, true), (true, false), (false, false)] {
            let units = if mark { format!("\u{feff}{text}") } else { text.to_owned() };
            let bytes = |unit: u16| if big_endian { unit.to_be_bytes() } else { unit.to_le_bytes() };
            let file: Vec<u8> = units.encode_utf16().flat_map(bytes).collect();
            refused(load(&file), &["run.toml", "UTF-16", "UTF-8"]);
        }
    }
    refused(
        load(&fs::read(golden("sd15-tiny", "lora/attn_sel_kohya.safetensors")).unwrap()),
        &["run.toml: is no text"],
    );
    refused(load(b"seed = 3\n# f\xfcr\n"), &["run.toml:2", "0xfc", "Windows-1252", "UTF-8"]);
}

#[test]
fn huge_numbers_end_at_the_limit() {
    for (text, parts) in [
        ("[[lora]]\nrank = 4000000000", &["run.toml:2", "lora[0].rank", "4000000000", "from 1 to 4096"][..]),
        (
            "[[lora]]\nrank = 99999999999999999999999999999999999999999999",
            &["lora[0].rank", "from 1 to 4096"],
        ),
        ("[train]\nbatch_size = 4294967295", &["train.batch_size", "from 1 to 1024"]),
        ("[train]\ngradient_accumulation = 4294967295", &["train.gradient_accumulation", "from 1 to 1024"]),
        ("[train]\nsteps = 9223372036854775807", &["train.steps", "from 1 to 100000000"]),
        ("[dataset]\nresolution = 100000", &["dataset.resolution", "8192"]),
        ("[dataset]\nresolution = 5000000000", &["dataset.resolution", "8192"]),
        (
            "[[feature]]\nname = \"a\"\ntags = [\"a\"]\nsteps = 9223372036854775807",
            &["run.toml:4", "feature[0].steps", "from 1 to 100000000"],
        ),
        (
            "[[feature]]\nname = \"a\"\ntags = [\"a\"]\n[feature.silence]\nrank = 18446744073709551615",
            &["feature[0].silence.rank", "from 0 to 4096"],
        ),
    ] {
        refused(parse(text), parts);
    }
}

#[test]
fn every_key_is_in_the_printed_example() {
    let text = Config::example_toml() + &Config::default_toml();
    for key in ["log", "tensorboard", "min_snr_gamma", "lr", "output", "steps"] {
        assert!(text.contains(&format!("\n# {key} = ")), "{key}");
    }
}
