//! What needs no GPU: configs, datasets, chance and the log.

use std::fs;
use std::path::Path;

use image::{Rgb, RgbImage, Rgba, RgbaImage};
use strata_trainer::noise::{self, Stream};
use strata_trainer::{
    Config, Dataset, DatasetConfig, LoraRule, Resolution, Schedule, StepLog, StepRecord, kaiming_uniform,
    mirror,
};

fn error(text: &str) -> String {
    Config::parse(text, Path::new("run.toml")).unwrap_err().to_string()
}

#[test]
fn the_printed_default_is_the_default() {
    let parsed = Config::parse(&Config::default_toml(), Path::new("run.toml")).unwrap();
    assert_eq!(parsed, Config::default());
}

#[test]
fn a_printed_config_parses_back() {
    let rule = |select: &str, lr| LoraRule { select: select.into(), rank: 16, alpha: 4.0, lr };
    let mut config = Config {
        seed: 7,
        lora: vec![rule("mid_block", Some(5e-5)), rule("IN04", None)],
        ..Config::default()
    };
    config.dataset.resolution = Resolution { width: 512, height: 768 };
    config.train.loss.min_snr_gamma = Some(5.0);
    config.train.schedule.lr_schedule = Schedule::Cosine;
    assert_eq!(Config::parse(&config.to_toml(), Path::new("run.toml")).unwrap(), config);
}

#[test]
fn a_wrong_config_names_line_key_and_remedy() {
    let cases = [
        ("seed = 1\n[train]\nstep = 5\n", "run.toml:3: unknown key `step`", "did you mean `steps`?"),
        ("[train]\nlr = 0.0\n", "run.toml:2: train.lr = 0.0", "must be more than 0"),
        ("[[lora]]\nrank = 0\n", "run.toml:2: lora[0].rank = 0", "must be a whole number from 1 to 4096"),
        ("[dataset]\nresolution = 500\n", "run.toml:2: dataset.resolution = 500", "try 496 or 504"),
        ("output = 'lora.pt'\n", "run.toml:1: output", ".safetensors"),
        ("[train]\nsteps = 'many'\n", "run.toml:2: train.steps", "must be a whole number"),
        ("seed = \n", "run.toml:1", ""),
    ];
    for (text, place, remedy) in cases {
        let message = error(text);
        assert!(message.starts_with(place) && message.contains(remedy), "{text:?}: {message}");
    }
}

#[test]
fn normal_numbers_are_normal_and_each_draw_is_its_own() {
    let draw = |stream, step, sample| {
        let mut numbers = vec![0.0; 100_000];
        noise::normal(3, stream, step, sample, &mut numbers);
        numbers
    };
    let one = draw(Stream::Noise, 5, 0);
    let n = one.len() as f64;
    let moment = |k: i32| one.iter().map(|x| f64::from(*x).powi(k)).sum::<f64>() / n;
    // five standard errors of each moment
    for (k, expected, variance) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)] {
        let bound = 5.0 * f64::sqrt(variance / n);
        assert!((moment(k) - expected).abs() < bound, "moment {k}: {}", moment(k));
    }
    let others = [draw(Stream::Noise, 5, 1), draw(Stream::Noise, 6, 0), draw(Stream::Latent, 5, 0)];
    for other in others {
        let correlation = one.iter().zip(&other).map(|(a, b)| f64::from(a * b)).sum::<f64>() / n;
        assert!(correlation.abs() < 5.0 / n.sqrt(), "{correlation}");
    }
    assert_eq!(one, draw(Stream::Noise, 5, 0));
}

#[test]
fn every_picture_comes_once_an_epoch() {
    for epoch in 0..3 {
        let mut seen: Vec<usize> = (0..7).map(|i| noise::sample_index(1, epoch * 7 + i, 7)).collect();
        seen.sort();
        assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6]);
    }
    assert_ne!(noise::order(1, 0, 50), noise::order(1, 1, 50));
}

#[test]
fn a_larger_rank_begins_like_a_smaller_one() {
    let (mut small, mut large) = (vec![0.0; 64], vec![0.0; 128]);
    kaiming_uniform(1, "mid_block.attentions.0.proj_in", 16, &mut small);
    kaiming_uniform(1, "mid_block.attentions.0.proj_in", 16, &mut large);
    assert_eq!(small, large[..64]);
    assert!(large.iter().all(|v| v.abs() <= 0.25) && large.iter().any(|v| v.abs() > 0.2));
}

#[test]
fn pictures_are_cropped_about_their_centre() {
    let folder = tempfile::tempdir().unwrap();
    // three stripes, of which the middle one is what a square cuts out
    let stripes = |x: u32, _| if (16..48).contains(&x) { Rgb([255, 0, 0]) } else { Rgb([0, 0, 255]) };
    RgbImage::from_fn(64, 32, stripes).save(folder.path().join("b.png")).unwrap();
    RgbaImage::from_pixel(8, 8, Rgba([0, 0, 0, 0])).save(folder.path().join("a.png")).unwrap();
    fs::write(folder.path().join("a.txt"), "\u{feff}nothing \nsecond line").unwrap();
    fs::write(folder.path().join("b.txt"), "stripes\n").unwrap();
    let config = DatasetConfig {
        folder: folder.path().to_owned(),
        resolution: Resolution { width: 16, height: 16 },
        ..DatasetConfig::default()
    };
    let dataset = Dataset::open(&config).unwrap();
    let captions: Vec<&str> = dataset.pictures().iter().map(|p| p.caption.as_str()).collect();
    assert_eq!(captions, ["nothing", "stripes"]);
    assert_eq!(dataset.load_rgb(0).unwrap(), [1.0; 16 * 16 * 3], "what is transparent is white");
    let red: Vec<f32> = [1.0, -1.0, -1.0].repeat(16 * 16);
    assert_eq!(dataset.load_rgb(1).unwrap(), red);

    fs::write(folder.path().join("c.png"), b"no picture").unwrap();
    let message = Dataset::open(&config).unwrap_err().to_string();
    assert!(message.contains("c.png has no c.txt"), "{message}");
    fs::write(folder.path().join("c.txt"), "x").unwrap();
    let message = Dataset::open(&config).unwrap().load_rgb(2).unwrap_err().to_string();
    assert!(message.contains("c.png: not a readable picture"), "{message}");
}

#[test]
fn mirroring_swaps_left_and_right_but_not_colours() {
    let mut rgb = vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    mirror(&mut rgb, 2);
    assert_eq!(rgb, [4.0, 5.0, 6.0, 1.0, 2.0, 3.0]);
}

#[test]
fn the_log_is_one_json_object_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new").join("run.jsonl");
    let record = StepRecord {
        feature: None,
        preserve_loss: None,
        step: 0,
        epoch: 0.5,
        loss: f32::NAN,
        grad_norm: 1.5,
        lr: 1e-4,
        loss_scale: None,
        skipped: true,
        seconds: 0.5,
        samples_per_second: 2.0,
    };
    let mut log = StepLog::append(&path).unwrap();
    log.write(&record).unwrap();
    log.write(&record).unwrap();
    let first = fs::read_to_string(&path).unwrap();
    let lines = |text: &str| -> Vec<serde_json::Value> {
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    assert_eq!(lines(&first).len(), 2);
    assert!(lines(&first)[0]["loss"].is_null() && lines(&first)[0]["grad_norm"] == 1.5);

    // what earlier runs wrote stays, also where the last was killed within a line
    for run in 2..4 {
        StepLog::append(&path).unwrap().write(&record).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with(&first));
        let lines = lines(&text);
        assert_eq!(lines.len(), 2 * run as usize);
        assert_eq!(lines[lines.len() - 2], serde_json::json!({ "run": run }));
        assert_eq!(lines[lines.len() - 1]["step"], 0);
    }
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{text}{{\"step\":7,")).unwrap();
    StepLog::append(&path).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), format!("{text}{{\"step\":7,\n{{\"run\":4}}\n"));
}
