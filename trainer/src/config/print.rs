//! From a config to commented TOML.

use std::fmt::Write;

use super::check::join;
use super::section::{Entry, Section};
use super::{
    Config, DatasetConfig, FeatureConfig, KeyConfig, LoraRule, PreserveConfig, SilenceConfig, Switch,
};

impl Config {
    /// Every key at its default, with comments: a file to start from.
    pub fn default_toml() -> String {
        Self::default().to_toml()
    }

    /// A config of two features with every key: a file to start from.
    pub fn example_toml() -> String {
        let feature = |name: &str, class: &str, select: &str| FeatureConfig {
            name: name.into(),
            tags: vec![name.into()],
            class: class.into(),
            describes: vec![class.into()],
            dataset: DatasetConfig { folder: format!("pictures/{name}").into(), ..DatasetConfig::default() },
            lora: vec![LoraRule { select: select.into(), ..LoraRule::default() }],
            key: Switch::On(KeyConfig::default()),
            silence: Some(SilenceConfig::default()),
            preserve: Some(PreserveConfig::default()),
            ..FeatureConfig::default()
        };
        let feature = vec![
            feature("hair_style_a", "hair", "up_blocks.1 & attn"),
            feature("clothing_style_b", "clothing", "up_blocks.2 & attn"),
        ];
        Self { feature, ..Self::default() }.to_toml()
    }

    /// The whole config in effect as commented TOML, which parses back to the same config.
    pub fn to_toml(&self) -> String {
        let mut text = String::from("# Paths are relative to the folder of this file.\n\n");
        // a run with features has no pictures and layers of its own
        let own = |entry: &Entry<'_>| {
            let Entry::Table { name, .. } = entry else { return true };
            self.feature.is_empty() || !["dataset", "lora"].contains(name)
        };
        print(&mut text, self.entries().into_iter().filter(own), "");
        text
    }
}

/// The entries of the table `at`.
fn print<'a>(text: &mut String, entries: impl Iterator<Item = Entry<'a>>, at: &str) {
    for entry in entries {
        match entry {
            Entry::Key(key) => match (key.value, key.example) {
                (Some(value), _) => line(text, key.name, &value, key.note),
                // TOML cannot say "none"
                (None, Some(example)) => line(text, &format!("# {}", key.name), &example, key.note),
                (None, None) => {}
            },
            Entry::Table { name, repeated, sections } => {
                let path = join(at, name);
                for section in sections {
                    table(text, section, &path, repeated);
                }
            }
        }
    }
}

fn table(text: &mut String, section: &dyn Section, path: &str, repeated: bool) {
    let name = if repeated { format!("[[{path}]]") } else { format!("[{path}]") };
    let note = if section.heading().is_empty() { String::new() } else { format!(" # {}", section.heading()) };
    writeln!(text, "\n{name}{note}").expect("a String takes any text");
    print(text, section.entries().into_iter(), path);
}

/// `key = value # note`
fn line(text: &mut String, key: &str, value: &str, note: &str) {
    writeln!(text, "{:<28} # {note}", format!("{key} = {value}")).expect("a String takes any text");
}
