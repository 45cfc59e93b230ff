//! What each means against leaking costs and gives: the features of a config, trained in several ways and probed.

mod lesson;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use strata_engine::{DType, Gpu};
use strata_model::{F32s, GateMode, LoraSet, LoraWeights, Pipeline, Tag, write_atomic, write_f32s};
use strata_trainer::probe::{Draws, GroupKind, Matrix, Probe, ProbeFeature, Script};
use strata_trainer::{Config, Interrupt, Order, PreserveConfig, SilenceConfig, Switch};

use lesson::Lesson;

/// Samples that go through the model at once.
const BATCH: usize = 4;

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

    /// What the file of a feature is called.
    fn file(&self, feature: &str) -> String {
        let words = self.name.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
        let words: Vec<&str> = words.chain([feature]).collect();
        format!("{}.safetensors", words.join("-"))
    }
}

/// What every way is measured with: the model, and what it is asked.
struct Bench<'a> {
    gpu: &'a Gpu,
    config: Config,
    pipeline: Pipeline,
    probe: Probe,
    /// By feature.
    lessons: Vec<Lesson>,
}

/// Trains the features of a config plainly and with each means, staged and joint, and prints a table. With `ranks`, only
/// plainly and with silence at each rank: the frontier.
///
/// In the folder `keep` it leaves every LoRA, `leak.json` with all that was measured, and `inputs.safetensors` with what
/// it was measured on, so that other programs can measure the same.
pub fn run(
    gpu: &Gpu,
    config: &Path,
    steps: Option<u64>,
    ranks: &[usize],
    prompts: Option<&Path>,
    keep: Option<&Path>,
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
    if let Some(folder) = keep {
        fs::create_dir_all(folder).with_context(|| format!("--keep {}: cannot be made", folder.display()))?;
    }
    let rank = SilenceConfig::default().rank;
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
    let mut bench = Bench::new(gpu, config, &lines)?;
    println!(
        "| way | feature | loss with tag | drift with tag | leak, always on: mean | of prompts | leak, gated |"
    );
    println!("|---|---|---|---|---|---|---|");
    let mut measured = Vec::new();
    for (feature, lesson) in bench.config.feature.iter().zip(&bench.lessons) {
        println!("| base model | {} | {:.4} | 0 | - | - | - |", feature.name, lesson.base);
    }
    for way in &ways {
        measured.extend(bench.measure(way, keep)?);
    }
    keep.map_or(Ok(()), |folder| bench.keep(folder, measured))
}

/// The leak of each group of prompts without the tag.
fn by_group(matrix: &Matrix) -> String {
    let name = |kind: GroupKind| match kind {
        GroupKind::OwnTag => "own tag",
        GroupKind::OtherTag => "other tag",
        GroupKind::Class => "class",
        GroupKind::Ordinary => "ordinary",
        GroupKind::Empty => "empty",
    };
    let groups = matrix
        .rows
        .iter()
        .filter_map(|row| row.all.leak.map(|leak| format!("{} {leak:.3}", name(row.group.kind))));
    groups.collect::<Vec<_>>().join(", ")
}

impl<'a> Bench<'a> {
    fn new(gpu: &'a Gpu, config: Config, lines: &[String]) -> Result<Self> {
        let pipeline = Pipeline::open(gpu, &config.checkpoint()?, DType::F32, DType::F32)?;
        let (mut features, mut lessons) = (Vec::new(), Vec::new());
        for feature in &config.feature {
            let tag = |tag: &String| Tag::new(pipeline.text.tokenizer(), tag);
            let tags = feature.tags.iter().map(tag).collect::<Result<_, _>>()?;
            let class = (!feature.class.is_empty()).then(|| feature.class.clone());
            features.push(ProbeFeature { name: feature.name.clone(), tags, class, weight: 1.0 });
            lessons.push(Lesson::new(gpu, &config, feature, &pipeline)?);
        }
        let script = Script::new(pipeline.text.tokenizer(), features, lines, |prompt: &_| {
            Ok(pipeline.text.encode(std::slice::from_ref(prompt), 0)?.states)
        })?;
        let (side, channels) = (pipeline.unet.config().sample_size, pipeline.unet.config().in_channels);
        let draws = Draws::new(&pipeline.schedule, [side, side, channels], config.seed, 1, &[])?;
        let probe = Probe::new(gpu, &pipeline.unet, DType::F32, script, draws, BATCH, &mut || ())?;
        Ok(Self { gpu, config, pipeline, probe, lessons })
    }

    /// Trains all features in one way, and measures each: a line of the table, and what goes into `leak.json`.
    fn measure(&mut self, way: &Way, keep: Option<&Path>) -> Result<Vec<Value>> {
        let out = tempfile::tempdir()?;
        let mut config = self.config.clone();
        config.order = way.order;
        config.output = out.path().join("all.safetensors");
        config.log = None;
        for feature in &mut config.feature {
            feature.output = None;
            feature.preserve =
                way.preserve.then(|| feature.preserve.clone().unwrap_or(PreserveConfig::default()));
            feature.silence = way.silence.map(|rank| SilenceConfig { rank, ..SilenceConfig::default() });
            // of words as they are: what a key gives is another question
            feature.key = Switch::Off;
        }
        strata_trainer::run(self.gpu, &config, None, &Interrupt::default())?;

        let (unet, features) = (&mut self.pipeline.unet, config.features());
        unet.detach_all();
        for feature in &features {
            let file = LoraWeights::read(feature.file())?;
            unet.attach(&LoraSet::from_weights(self.gpu, DType::F32, &file, unet)?)?;
            if let Some(folder) = keep {
                file.write(&folder.join(way.file(&feature.name)))?;
            }
        }
        let mut measured = Vec::new();
        for (i, (feature, lesson)) in features.iter().zip(&self.lessons).enumerate() {
            let loss = lesson.loss(self.gpu, unet, Some(i))?;
            let always = self.probe.run(unet, i, GateMode::Always, &mut || ())?;
            let gated = self.probe.run(unet, i, GateMode::Prompt, &mut || ())?;
            let leak = |leak: Option<f64>| leak.map_or("-".into(), |leak| format!("{leak:.4}"));
            println!(
                "| {} | {} | {loss:.4} | {:.4} | {} | {} | {} |",
                way.name,
                feature.name,
                always.drift(),
                leak(always.leak),
                by_group(&always),
                leak(gated.leak)
            );
            measured.push(json!({
                "way": way.name, "silence": way.silence, "preserve": way.preserve, "feature": feature.name,
                "file": way.file(&feature.name), "loss": loss, "always": always, "gated": gated,
            }));
        }
        Ok(measured)
    }

    /// Writes `leak.json` and `inputs.safetensors`: `noisy` [draws, h, w, channels] and `timesteps` [draws] of the
    /// probe, and for each feature NAME those of its lesson as `NAME.noisy` and `NAME.timesteps`, and `NAME.target`.
    fn keep(&self, folder: &Path, measured: Vec<Value>) -> Result<()> {
        let features = self.config.feature.iter().zip(&self.lessons).map(|(feature, lesson)| {
            json!({
                "name": feature.name, "tags": feature.tags, "class": feature.class, "captions": lesson.captions,
                "base_loss": lesson.base,
            })
        });
        let texts = self.probe.script().texts().iter().map(|text| &text.text);
        let report = json!({
            "model": self.config.model, "features": features.collect::<Vec<_>>(),
            "prompts": texts.collect::<Vec<_>>(), "measured": measured,
        });
        let json = serde_json::to_vec_pretty(&report)?;
        write_atomic(&folder.join("leak.json"), |out| out.write_all(&json))?;

        let draws = self.probe.draws().draws();
        let [h, w, channels] = self.probe.draws().shape();
        let noisy = draws.iter().flat_map(|draw| &draw.noisy).copied().collect();
        let timesteps = draws.iter().map(|draw| draw.timestep as f32).collect();
        let mut inputs = F32s::from([
            ("noisy".to_owned(), (vec![draws.len(), h, w, channels], noisy)),
            ("timesteps".to_owned(), (vec![draws.len()], timesteps)),
        ]);
        for (feature, lesson) in self.config.feature.iter().zip(&self.lessons) {
            inputs.extend(lesson.inputs(&feature.name));
        }
        Ok(write_f32s(&folder.join("inputs.safetensors"), &inputs)?)
    }
}
