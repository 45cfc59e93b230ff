//! Whether a feature's file is still what its config asks for.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use crate::config::FeatureConfig;
use crate::config::check::join;
use crate::config::section::{Entry, Section};
use crate::{Config, Dataset, Error, Result};

/// What the hash is of, by name, to tell what differs: keys of the config with their values as TOML, and digests of the rest.
pub(crate) type Makings = BTreeMap<String, String>;

/// What the value of a digest begins with, and no value of a key does.
pub(crate) const DIGEST: char = '#';

/// The updates of a feature among its [`Makings`], wherever their number comes from.
pub(crate) const STEPS: &str = "steps";

/// A hash of all that decides what a feature's file holds: the keys of its config that do, its pictures and captions, the
/// `prompts` it is preserved on and deaf to, what tells the `model` from others, and the fingerprints of the features that
/// it stands on (`before`). How the config is written does not matter, nor where files lie, nor what changes memory alone.
pub(crate) fn fingerprint(
    config: &Config,
    feature: &FeatureConfig,
    dataset: &Dataset,
    prompts: &[&String],
    before: &[&str],
    model: &[u8],
) -> Result<(String, Makings)> {
    let mut hash = Hash::default();
    hash.settings(config, feature);
    hash.bytes(model);
    hash.end("the model's files");
    hash.count(dataset.len());
    for picture in dataset.pictures() {
        hash.bytes(&std::fs::read(&picture.path).map_err(Error::io("read picture", &picture.path))?);
        hash.bytes(picture.caption.as_bytes());
    }
    hash.end("pictures and captions");
    hash.count(prompts.len());
    prompts.iter().for_each(|prompt| hash.bytes(prompt.as_bytes()));
    hash.end("prompts without the tag, and what is said of other keys");
    hash.count(before.len());
    before.iter().for_each(|fingerprint| hash.bytes(fingerprint.as_bytes()));
    hash.end("features before it");
    let whole = hash.whole.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((whole, hash.makings))
}

/// Every part comes with its length, so that no two sequences of parts are the same bytes.
#[derive(Default)]
struct Hash {
    whole: Sha256,
    /// Of what came since the last [`end`](Self::end).
    part: u32,
    makings: Makings,
}

impl Hash {
    fn update(&mut self, bytes: &[u8]) {
        self.whole.update(bytes);
        self.part = crc32c::crc32c_append(self.part, bytes);
    }

    fn count(&mut self, count: usize) {
        self.update(&(count as u64).to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.update(bytes);
    }

    /// Notes the digest of what came since the last end, under a name.
    fn end(&mut self, name: &str) {
        self.makings.insert(name.to_owned(), format!("{DIGEST}{:08x}", self.part));
        self.part = 0;
    }

    /// The keys that decide what a feature becomes.
    fn settings(&mut self, config: &Config, feature: &FeatureConfig) {
        let run = config.entries().into_iter().filter(|entry| matches!(entry, Entry::Key(_)));
        self.entries(run, ["", ""]);
        // in a run without features their keys stand at the top
        let place = if feature.name.is_empty() { "" } else { "feature" };
        self.entries(feature.entries().into_iter(), ["feature", place]);
        self.entries(config.train.entries().into_iter(), ["train"; 2]);
        let steps = config.steps_of(feature);
        self.bytes(b"steps");
        self.bytes(&steps.to_le_bytes());
        self.makings.insert(STEPS.to_owned(), steps.to_string());
        self.part = 0;
    }

    /// `at` is where the entries stand, and the same with the numbers of repeated tables, for people.
    fn entries<'a>(&mut self, entries: impl Iterator<Item = Entry<'a>>, [at, place]: [&str; 2]) {
        for entry in entries {
            match entry {
                Entry::Key(key) if key.decides => {
                    self.bytes(join(at, key.name).as_bytes());
                    self.count(usize::from(key.value.is_some()));
                    self.bytes(key.value.as_deref().unwrap_or_default().as_bytes());
                    self.makings.extend(key.value.map(|value| (join(place, key.name), value)));
                }
                Entry::Key(_) => {}
                Entry::Table { name, repeated, sections } => {
                    let (path, place) = (join(at, name), join(place, name));
                    self.bytes(path.as_bytes());
                    self.count(sections.len());
                    for (i, section) in sections.into_iter().enumerate() {
                        let place = if repeated { format!("{place}[{i}]") } else { place.clone() };
                        self.entries(section.entries().into_iter(), [&path, &place]);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use strata_model::PredictionType;
    use toml::{Table, Value};

    use super::*;
    use crate::config::section::Known;
    use crate::{DatasetConfig, KeyConfig, LoraRule, PreserveConfig, SilenceConfig, Switch};

    /// Keys that a feature with steps of its own does not depend on.
    const ASIDE: [&str; 17] = [
        "config",
        "embeddings",
        "feature.dataset.caption_extension",
        "feature.dataset.folder",
        "feature.describes",
        "feature.output",
        "feature.silence.bank",
        "log",
        "model",
        "output",
        "prediction",
        "tensorboard",
        "train.gradient_checkpointing",
        "train.save_every",
        "train.state_minutes",
        "train.steps",
        "vae",
    ];

    /// A config of one feature that sets every key.
    fn full() -> Config {
        let feature = FeatureConfig {
            name: "a".into(),
            tags: vec!["a".into()],
            output: Some("a.safetensors".into()),
            steps: Some(70),
            key: Switch::On(KeyConfig { rank: Some(8), ..KeyConfig::default() }),
            silence: Some(SilenceConfig::default()),
            preserve: Some(PreserveConfig::default()),
            lora: vec![LoraRule { lr: Some(1e-3), ..LoraRule::default() }],
            ..FeatureConfig::default()
        };
        let mut config = Config {
            log: Some("log.jsonl".into()),
            tensorboard: Some("curves".into()),
            vae: Some("vae.safetensors".into()),
            config: Some("folder".into()),
            prediction: Some(PredictionType::Epsilon),
            feature: vec![feature],
            ..Config::default()
        };
        config.train.loss.min_snr_gamma = Some(5.0);
        (config.train.probe_every, config.train.timestep_max) = (10, 900);
        config
    }

    fn parse(text: &str) -> Result<Config> {
        Config::parse(text, Path::new("run.toml"))
    }

    fn settings(config: &Config) -> Vec<u8> {
        let mut hash = Hash::default();
        hash.settings(config, &config.features()[0]);
        hash.whole.finalize().to_vec()
    }

    /// The paths of all keys below a table, and the values that they could have instead.
    fn leaves(table: &Table, at: &str) -> Vec<String> {
        let below = |(name, value): (&String, &Value)| {
            let path = join(at, name);
            match value {
                Value::Table(inner) => leaves(inner, &path),
                Value::Array(items) if items.iter().any(Value::is_table) => {
                    items.iter().filter_map(Value::as_table).flat_map(|inner| leaves(inner, &path)).collect()
                }
                _ => vec![path],
            }
        };
        table.iter().flat_map(below).collect()
    }

    fn leaf<'a>(table: &'a mut Table, path: &str) -> &'a mut Value {
        match path.split_once('.') {
            None => &mut table[path],
            Some((first, rest)) => match &mut table[first] {
                Value::Array(items) => leaf(items[0].as_table_mut().unwrap(), rest),
                value => leaf(value.as_table_mut().unwrap(), rest),
            },
        }
    }

    fn others(value: &Value) -> Vec<Value> {
        match value {
            Value::Integer(n) => vec![Value::Integer(n + 8)],
            Value::Float(x) => vec![Value::Float(x / 2.0 + 0.01)],
            Value::Boolean(on) => vec![Value::Boolean(!on)],
            Value::String(text) => {
                let near = [format!("x{text}"), format!("{text}x")];
                near.into_iter()
                    .chain(["f32", "linear", "joint", "v"].map(String::from))
                    .map(Value::String)
                    .collect()
            }
            Value::Array(items) if items.first().is_none_or(Value::is_str) => {
                vec![
                    Value::Array([items, &[Value::from("x")][..]].concat()),
                    Value::Array(items.iter().skip(1).cloned().collect()),
                ]
            }
            Value::Array(items) => {
                vec![Value::Array([&others(&items[0])[..1], &items[1..]].concat())]
            }
            value => panic!("{value}"),
        }
    }

    fn count(known: &[Known]) -> usize {
        known.iter().map(|known| known.table.as_ref().map_or(1, |(_, inner)| count(inner))).sum()
    }

    #[test]
    fn every_key_that_decides_changes_it_and_no_other_does() {
        let base = full();
        let table: Table = base.to_toml().parse().unwrap();
        let paths = leaves(&table, "");
        // a run with features has none of its own
        let own = count(&DatasetConfig::schema()) + count(&LoraRule::schema());
        assert_eq!(paths.len(), count(&<Config as Section>::schema()) - own);
        for path in paths {
            let changed = others(leaf(&mut table.clone(), &path)).into_iter().find_map(|value| {
                let mut table = table.clone();
                *leaf(&mut table, &path) = value;
                parse(&table.to_string()).ok()
            });
            let changed = changed.unwrap_or_else(|| panic!("{path} takes no other value"));
            assert_ne!(changed, base, "{path}");
            let decides = settings(&changed) != settings(&base);
            assert_eq!(decides, !ASIDE.contains(&path.as_str()), "{path}");
        }
    }

    #[test]
    fn how_a_config_is_written_does_not_matter() {
        let plain = "[[feature]]\nname = \"a\"\ntags = [\"a\", \"b\"]\n[feature.dataset]\nflip = true\n[train]\nlr = 1e-3\n";
        let other = "# a comment\n[train] # and another\nsteps = 1_000\nlr = 0.001\ngradient_checkpointing = true\n\
                     [[feature]]\ntags = [\n  \"a\",\n  \"b\",\n]\nname = 'a'\nsteps = 1000\ndescribes = [\"c\"]\n\
                     [feature.dataset]\nfolder = \"else\"\nflip = true\nresolution = [512, 512]\n[[feature.lora]]\nrank = 8\n";
        let [plain, other] = [plain, other].map(|text| settings(&parse(text).unwrap()));
        assert_eq!(plain, other);
        let tags =
            |tags: &str| settings(&parse(&format!("[[feature]]\nname = \"a\"\ntags = [{tags}]\n")).unwrap());
        assert_ne!(tags("\"a\", \"b\""), tags("\"a\\\", \\\"b\""));
    }

    #[test]
    fn steps_count_wherever_they_come_from() {
        let feature = "[[feature]]\nname = \"a\"\ntags = [\"a\"]\n";
        let of = |text: String| settings(&parse(&text).unwrap());
        let seven = of(format!("{feature}[train]\nsteps = 7\n"));
        assert_eq!(seven, of(format!("{feature}steps = 7\n[train]\nsteps = 9\n")));
        assert_ne!(seven, of(format!("{feature}[train]\nsteps = 9\n")));
    }

    #[test]
    fn contents_and_their_borders_count() {
        let folder = tempfile::tempdir().unwrap();
        let caption = folder.path().join("p.txt");
        image::RgbImage::new(8, 8).save(folder.path().join("p.png")).unwrap();
        let config = full();
        let of = |text: &str, prompts: &[&str], before: &[&str], model: &[u8]| {
            std::fs::write(&caption, text).unwrap();
            let dataset = DatasetConfig { folder: folder.path().to_owned(), ..DatasetConfig::default() };
            let dataset = Dataset::open(&dataset).unwrap();
            let prompts: Vec<String> = prompts.iter().map(|prompt| prompt.to_string()).collect();
            let prompts: Vec<&String> = prompts.iter().collect();
            fingerprint(&config, &config.features()[0], &dataset, &prompts, before, model).unwrap().0
        };
        let base = of("a", &["bc", "d"], &["e"], b"f");
        assert_eq!(base, of("a", &["bc", "d"], &["e"], b"f"));
        for other in [
            of("ab", &["c", "d"], &["e"], b"f"),
            of("a", &["b", "cd"], &["e"], b"f"),
            of("a", &["bc", "d", "e"], &[], b"f"),
            of("a", &["bc", "d"], &["e"], b"g"),
        ] {
            assert_ne!(base, other);
        }
    }
}
