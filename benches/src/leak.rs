//! What each means against leaking costs and gives: the features of a config, trained in several ways and probed.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use strata_engine::{DType, Gpu};
use strata_model::{GateMode, LoraFile, LoraSet, Pipeline, Tag};
use strata_trainer::probe::{Draws, Probe, ProbeFeature, Script};
use strata_trainer::{Config, Order, PreserveConfig, SilenceConfig};

/// A way to train.
struct Way {
    name: String,
    order: Order,
    preserve: bool,
    /// Directions of ordinary text to be deaf to, beside that of the first token.
    silence: Option<usize>,
}

impl Way {
    fn new(name: &str, order: Order, preserve: bool, silence: Option<usize>) -> Self {
        Self { name: name.into(), order, preserve, silence }
    }
}

/// Trains the features of a config plainly and with each means, staged and joint, and prints a table. With `ranks`, only
/// plainly and with silence at each rank: the frontier.
pub fn run(
    gpu: &Gpu,
    config: &Path,
    steps: Option<u64>,
    ranks: &[usize],
    prompts: Option<&Path>,
) -> Result<()> {
    let mut config = Config::load(config)?;
    ensure!(!config.feature.is_empty(), "the config has no [[feature]]");
    if let Some(steps) = steps {
        config.feature.iter_mut().for_each(|feature| feature.steps = Some(steps));
    }
    let lines: Vec<String> = match prompts {
        Some(path) => fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?
            .lines()
            .map(str::to_owned)
            .collect(),
        None => Vec::new(),
    };
    let rank = 16;
    let ways: Vec<Way> = match ranks {
        [] => vec![
            Way::new("plain, staged", Order::Staged, false, None),
            Way::new("+ preservation", Order::Staged, true, None),
            Way::new("+ silence", Order::Staged, false, Some(rank)),
            Way::new("+ both", Order::Staged, true, Some(rank)),
            Way::new("plain, joint", Order::Joint, false, None),
            Way::new("+ both, joint", Order::Joint, true, Some(rank)),
        ],
        ranks => {
            let plain = Way::new("plain", config.order, false, None);
            let silent = |k: &usize| Way::new(&format!("silence, k = {k}"), config.order, false, Some(*k));
            std::iter::once(plain).chain(ranks.iter().map(silent)).collect()
        }
    };
    println!("| way | feature | loss with tag | drift with tag | leak, always on | leak, gated |");
    println!("|---|---|---|---|---|---|");
    for way in &ways {
        train_and_probe(gpu, &config, way, &lines)?;
    }
    Ok(())
}

fn train_and_probe(gpu: &Gpu, config: &Config, way: &Way, lines: &[String]) -> Result<()> {
    let out = tempfile::tempdir()?;
    let mut config = config.clone();
    config.order = way.order;
    config.output = out.path().join("all.safetensors");
    config.log = None;
    for feature in &mut config.feature {
        feature.output = None;
        feature.preserve =
            way.preserve.then(|| feature.preserve.clone().unwrap_or(PreserveConfig::default()));
        feature.silence = way.silence.map(|rank| SilenceConfig { rank, ..SilenceConfig::default() });
    }
    strata_trainer::run(gpu, &config, None)?;

    let mut pipeline = Pipeline::open(gpu, &config.model, DType::F32)?;
    let mut features = Vec::new();
    for feature in config.features() {
        let file = LoraFile::read(feature.file())?;
        pipeline.unet.attach(&LoraSet::from_file(gpu, DType::F32, &file, &pipeline.unet)?)?;
        let tag = |tag: &String| Tag::new(&pipeline.tokenizer, tag);
        let tags = feature.tags.iter().map(tag).collect::<Result<_, _>>()?;
        let class = (!feature.class.is_empty()).then_some(feature.class);
        features.push(ProbeFeature { name: feature.name, tags, class, weight: 1.0 });
    }
    let names: Vec<String> = features.iter().map(|feature| feature.name.clone()).collect();
    let script = Script::new(&pipeline.tokenizer, features, lines, |prompt: &_| {
        pipeline.states(std::slice::from_ref(prompt), 0)
    })?;
    let (side, channels) = (pipeline.unet.config().sample_size, pipeline.unet.config().in_channels);
    let draws = Draws::new(&pipeline.schedule, [side, side, channels], config.seed, 1, &[])?;
    let probe = Probe::new(gpu, &pipeline.unet, DType::F32, script, draws, 4, &mut || ())?;
    for (i, name) in names.iter().enumerate() {
        let always = probe.run(&pipeline.unet, i, GateMode::Always, &mut || ())?;
        let gated = probe.run(&pipeline.unet, i, GateMode::Prompt, &mut || ())?;
        let leak = |leak: Option<f64>| leak.map_or("-".into(), |leak| format!("{leak:.4}"));
        println!(
            "| {} | {name} | {:.4} | {:.4} | {} | {} |",
            way.name,
            tagged_loss(&config.log_path(), name)?,
            always.drift(),
            leak(always.leak),
            leak(gated.leak)
        );
    }
    Ok(())
}

/// Mean loss on captions with the tag over the last half of the steps. All ways meet the same pictures, noise and
/// timesteps.
fn tagged_loss(log: &Path, feature: &str) -> Result<f64> {
    let mut losses = Vec::new();
    for line in fs::read_to_string(log)?.lines() {
        let record: serde_json::Value = serde_json::from_str(line)?;
        if record["feature"] == feature {
            let number = |key: &str| record[key].as_f64().unwrap_or(0.0);
            losses.push(number("loss") - number("preserve_loss"));
        }
    }
    let last = &losses[losses.len() / 2..];
    Ok(last.iter().sum::<f64>() / last.len() as f64)
}
