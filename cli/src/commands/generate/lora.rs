//! `--lora FILE[:WEIGHT][,OPTION…]`: a LoRA, how strong it is, when, and where.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use strata_model::{
    ClipTokenizer, Feature, GateMode, LoraFile, LoraSet, Mention, Prompt, Region, Rows, Tag, tags_of,
};

/// The argument, read.
pub struct LoraArg {
    pub path: PathBuf,
    pub file: LoraFile,
    weight: f32,
    options: Options,
}

#[derive(Default)]
struct Options {
    gate: Option<Gate>,
    tags: Vec<String>,
    region: Option<Region>,
    after: bool,
    uncond: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Gate {
    Always,
    Prompt,
    Token,
}

impl LoraArg {
    pub fn parse(arg: &str) -> Result<Self> {
        let (base, options) = split_options(arg);
        let (path, weight) = if Path::new(base).exists() { (base, 1.0) } else { split_weight(base) };
        ensure!(weight.is_finite(), "--lora {arg}: the weight must be a number, such as 0.8");
        if let Some((_, option)) = path.rsplit_once(',').filter(|_| !Path::new(path).exists()) {
            bail!(
                "--lora {arg}: there is no file {path}, and `{option}` is no option; options are gate=always|prompt|token, \
                 tag=WORD, region=LEFT:TOP:RIGHT:BOTTOM or region=MASK.png, after and uncond"
            );
        }
        let mut read = Options::default();
        for option in options {
            read.add(option).with_context(|| format!("--lora {arg}"))?;
        }
        let (path, file) = (PathBuf::from(path), LoraFile::read(Path::new(path))?);
        if read.tags.is_empty() {
            read.tags = tags_of(&file.metadata).with_context(|| path.display().to_string())?;
        }
        let mode = read.mode();
        ensure!(
            mode == Gate::Always || !read.tags.is_empty(),
            "--lora {arg}: the file names no tags to wait for; add tag=WORD"
        );
        ensure!(mode == Gate::Token || !read.after, "--lora {arg}: after needs gate=token");
        Ok(Self { path, file, weight, options: read })
    }

    /// What the sampler is told.
    pub fn feature(&self, tokenizer: &ClipTokenizer) -> Result<Feature> {
        let Options { tags, region, after, uncond, .. } = &self.options;
        let mode = match self.options.mode() {
            Gate::Always => GateMode::Always,
            Gate::Prompt => GateMode::Prompt,
            Gate::Token => GateMode::Token { after: *after },
        };
        let tags = match mode {
            GateMode::Always => Vec::new(),
            _ => tags.iter().map(|tag| Tag::new(tokenizer, tag)).collect::<Result<_, _>>()?,
        };
        Ok(Feature { tags, mode, weight: self.weight, region: region.clone(), uncond: *uncond })
    }

    /// Whether LoRA number `i` is on for a prompt, and why.
    pub fn state(&self, i: usize, feature: &Feature, prompt: &Prompt) -> String {
        let strength = f64::from(feature.strength(i, prompt));
        let strength = (strength * 1000.0).round() / 1000.0;
        let name = |m: &Mention| match m.own_brackets {
            true => format!("{} (its brackets are its own, not weights)", m.tag),
            false => m.tag.clone(),
        };
        let mut heard: Vec<String> = prompt.mentions().iter().filter(|m| m.feature == i).map(name).collect();
        heard.dedup();
        let tags: Vec<&str> = feature.tags.iter().map(Tag::text).collect();
        let state = match feature.mode {
            GateMode::Always if self.options.gate.is_none() => {
                format!("on at {strength} whatever the prompt, as it names no tag")
            }
            GateMode::Always => format!("on at {strength} whatever the prompt"),
            _ if heard.is_empty() => format!("off: the prompt has none of its tags ({})", tags.join(", ")),
            _ => format!("on at {strength}, by {}", heard.join(", ")),
        };
        format!("{}: {state}", self.path.display())
    }

    /// What a region cannot be applied to, if anything.
    pub fn left_out(&self, set: &LoraSet) -> Option<String> {
        self.options.region.as_ref()?;
        let count = set.entries().iter().filter(|entry| Rows::of(&entry.path) == Rows::Sample).count();
        let path = self.path.display();
        (count > 0).then(|| {
            format!("{path}: off in {count} layers on the time embedding, which has no places for a region")
        })
    }
}

impl Options {
    /// Tags are waited for unless something else is asked for.
    fn mode(&self) -> Gate {
        self.gate.unwrap_or(if self.tags.is_empty() { Gate::Always } else { Gate::Prompt })
    }

    fn add(&mut self, option: &str) -> Result<()> {
        match option.split_once('=').unwrap_or((option, "")) {
            ("gate", name) => {
                self.gate = Some(match name {
                    "always" => Gate::Always,
                    "prompt" => Gate::Prompt,
                    "token" => Gate::Token,
                    _ => bail!("gate={name}: choose always, prompt or token"),
                });
            }
            ("tag", tag) => {
                ensure!(!tag.trim().is_empty(), "tag=: name a word");
                self.tags.push(tag.to_owned());
            }
            ("region", place) => self.region = Some(region(place)?),
            ("after", _) => self.after = true,
            _ => self.uncond = true,
        }
        Ok(())
    }
}

/// Four shares, or a picture that is white inside.
fn region(place: &str) -> Result<Region> {
    let shares: Vec<f64> = place.split(':').filter_map(|side| side.parse().ok()).collect();
    let region = match <[f64; 4]>::try_from(shares) {
        Ok(sides) if place.matches(':').count() == 3 => Region::Box(sides),
        _ => {
            let context = || format!("region={place}: neither LEFT:TOP:RIGHT:BOTTOM nor a readable picture");
            let mask = image::open(place).with_context(context)?.into_luma8();
            let values = mask.as_raw().iter().map(|value| f32::from(*value) / 255.0).collect();
            Region::Mask { width: mask.width() as usize, height: mask.height() as usize, values }
        }
    };
    region.check()?;
    Ok(region)
}

/// The options at the end of the argument; a path may have commas of its own.
fn split_options(arg: &str) -> (&str, Vec<&str>) {
    let known = |option: &str| {
        matches!(option, "after" | "uncond")
            || ["gate=", "tag=", "region="].iter().any(|start| option.starts_with(start))
    };
    let (mut base, mut options) = (arg, Vec::new());
    while let Some((rest, option)) = base.rsplit_once(',').filter(|(_, option)| known(option)) {
        options.insert(0, option);
        base = rest;
    }
    (base, options)
}

/// A path and the number after its last colon, if there is one: a path may have colons of its own.
pub fn split_weight(arg: &str) -> (&str, f32) {
    let split = arg.rsplit_once(':').and_then(|(path, weight)| Some((path, weight.parse().ok()?)));
    split.unwrap_or((arg, 1.0))
}

#[cfg(test)]
mod tests {
    use super::{split_options, split_weight};

    #[test]
    fn weights_after_a_colon() {
        assert_eq!(split_weight("a.safetensors:0.8"), ("a.safetensors", 0.8));
        assert_eq!(split_weight("a.safetensors:-1"), ("a.safetensors", -1.0));
        assert_eq!(split_weight(r"C:\a.safetensors"), (r"C:\a.safetensors", 1.0));
        assert_eq!(split_weight("a.safetensors"), ("a.safetensors", 1.0));
    }

    #[test]
    fn options_after_commas() {
        assert_eq!(split_options("a,b.safetensors:0.8"), ("a,b.safetensors:0.8", vec![]));
        assert_eq!(split_options("a:1,gate=token,after"), ("a:1", vec!["gate=token", "after"]));
        assert_eq!(split_options("a,tag=x y,region=0:0:1:1"), ("a", vec!["tag=x y", "region=0:0:1:1"]));
        assert_eq!(split_options("a,gaet=token,after"), ("a,gaet=token", vec!["after"]));
    }
}
