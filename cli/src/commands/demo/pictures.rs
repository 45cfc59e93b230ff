//! The demo's pictures: the same prompts and seeds, without a tag, with each and with both, drawn in four ways.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use image::{RgbImage, imageops};
use strata_engine::{DType, Gpu};
use strata_model::progress::bar;
use strata_model::{
    Checkpoint, Feature, GateMode, LoraSet, LoraWeights, Sampling, Scene, Tag, Wording, keys_of, png,
};
use strata_trainer::{Alignment, Sheet};

use super::files::{FEATURES, PLAIN, put};
use super::unseen::Unseen;
use crate::commands::generate::open;

/// Captions of portraits that nothing was trained on, one a line: `a portrait of a man, HAIR, CLOTHES, …`.
const CAPTIONS: &str = include_str!("../../../../examples/portraits/unseen.txt");
/// How many there are.
pub const PROMPTS: i64 = 64;
/// Pixels of a side.
const SIZE: u32 = 64;
/// Pictures of a prompt in the grid; the base model and the gates draw no others with tags.
pub const SHOWN: usize = 3;
/// How far pictures in the grid are enlarged.
const ZOOM: u32 = 2;
const GUIDANCE: f32 = 4.0;

/// A way to draw.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    Base,
    Plain,
    Always,
    Gated,
}

impl Way {
    pub const ALL: [Self; 4] = [Self::Base, Self::Plain, Self::Always, Self::Gated];

    pub fn name(self) -> &'static str {
        match self {
            Self::Base => "base model",
            Self::Plain => "ordinary LoRA",
            Self::Always => "Strata, always on",
            Self::Gated => "Strata, by tag",
        }
    }

    fn slug(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Plain => "plain",
            Self::Always => "always",
            Self::Gated => "gated",
        }
    }
}

/// Which tags are in the prompts.
pub type Tags = &'static [Unseen];
pub const TAGS: [Tags; 4] =
    [&[], &[Unseen::HairStyleA], &[Unseen::ClothingStyleB], &[Unseen::HairStyleA, Unseen::ClothingStyleB]];

/// What stands above a column.
pub fn title(tags: Tags) -> &'static str {
    match tags {
        [] => "no tag",
        [one] => one.tag(),
        _ => "both tags",
    }
}

/// Pictures of one way and one set of tags, the first prompts first.
pub struct Series {
    pub way: Way,
    pub tags: Tags,
    pub prompts: Vec<String>,
    pub pictures: Vec<RgbImage>,
    latents: Vec<u32>,
}

/// All pictures.
pub struct Album {
    pub series: Vec<Series>,
}

/// The first `count` prompts; tags stand in place of the words for hair and for clothes.
fn prompts(count: usize, tags: Tags) -> Vec<String> {
    let prompt = |caption: &str| {
        let mut words: Vec<&str> = caption.split(", ").collect();
        for feature in tags {
            let place = if *feature == Unseen::HairStyleA { 1 } else { 2 };
            words[place] = feature.tag();
        }
        words.join(", ")
    };
    CAPTIONS.lines().take(count).map(prompt).collect()
}

/// The LoRA file of a feature in the demo's folder.
pub fn lora(folder: &Path, config: &str, feature: Unseen) -> PathBuf {
    folder.join(format!("{config}-{}.safetensors", feature.tag()))
}

impl Album {
    /// Draws `count` prompts in every way.
    pub fn draw(gpu: &Gpu, folder: &Path, count: usize, steps: usize) -> Result<Self> {
        let mut pipeline = open(gpu, &Checkpoint::open(&folder.join("model"))?, DType::F32)?;
        let mut all = Vec::new();
        for (config, feature) in [FEATURES, PLAIN].into_iter().flat_map(|c| Unseen::ALL.map(|f| (c, f))) {
            let path = lora(folder, config, feature);
            let file = LoraWeights::read(&path)?;
            let set = LoraSet::from_weights(gpu, DType::F32, &file, &pipeline.unet)?;
            pipeline.unet.attach(&set).with_context(|| path.display().to_string())?;
            let keys = keys_of(&file.metadata)?;
            all.push((config, Tag::all(pipeline.text.tokenizer(), &[feature.tag().to_owned()], &keys)?));
        }
        let plan: Vec<(Way, Tags, usize)> = Way::ALL
            .into_iter()
            .flat_map(|way| TAGS.map(|tags| (way, tags)))
            .map(|(way, tags)| {
                // the gate changes nothing where a tag is, and the base model has no feature
                let few = matches!(way, Way::Base | Way::Gated) && !tags.is_empty();
                (way, tags, if few { count.min(SHOWN) } else { count })
            })
            .collect();
        let progress = bar((plan.len() * steps) as u64, "steps");
        let sampling = Sampling { steps, guidance: GUIDANCE, ..Sampling::default() };
        let size = [pipeline.unet.config().sample_size; 2];
        let mut series = Vec::new();
        for (way, tags, count) in plan {
            let prompts = prompts(count, tags);
            let said: Vec<&str> = prompts.iter().map(String::as_str).collect();
            let features: Vec<Feature> =
                all.iter().map(|(config, tags)| feature(config, tags, way)).collect();
            let wording = Wording::read(pipeline.text.tokenizer(), &said, &vec![""; count], &features)?;
            let scene = Scene::new(&pipeline, &wording, &features, &sampling, DType::F32, size, 0)?;
            let seeds: Vec<u64> = (0..count as u64).collect();
            let latents = scene.draw(&pipeline, &seeds, None, || progress.inc(1))?;
            let pictures = pipeline.decode(&latents)?;
            let latents = latents.to_f32()?.into_iter().map(f32::to_bits).collect();
            series.push(Series { way, tags, prompts, pictures, latents });
        }
        progress.finish_and_clear();
        Ok(Self { series })
    }

    pub fn of(&self, way: Way, tags: Tags) -> Option<&Series> {
        self.series.iter().find(|series| series.way == way && series.tags == tags)
    }

    /// How many pictures without a tag have latents that are the base model's, bit for bit.
    pub fn untouched(&self, way: Way) -> usize {
        let (Some(base), Some(other)) = (self.of(Way::Base, &[]), self.of(way, &[])) else { return 0 };
        let values = base.latents.len() / base.pictures.len().max(1);
        let pairs = base.latents.chunks_exact(values).zip(other.latents.chunks_exact(values));
        pairs.filter(|(base, other)| base == other).count()
    }

    /// Writes each picture, and the grid of the first ones.
    pub fn write(&self, folder: &Path) -> Result<()> {
        for Series { way, tags, pictures, .. } in &self.series {
            for (i, picture) in pictures.iter().enumerate() {
                let name = format!("{}-{}-{i:02}.png", way.slug(), title(tags).replace(' ', "-"));
                put(&folder.join("pictures").join(name), &png(picture)?)?;
            }
        }
        put(&folder.join("grid.png"), &self.grid()?.to_png()?)
    }

    fn grid(&self) -> Result<Sheet> {
        const GAP: u32 = 4;
        const BETWEEN: u32 = 16;
        const TOP: u32 = 36;
        let (left, side) = (18 * Sheet::LETTER, SIZE * ZOOM);
        let group = SHOWN as u32 * (side + GAP) + BETWEEN;
        let (columns, rows) = (TAGS.len() as u32, Way::ALL.len() as u32);
        let mut sheet = Sheet::new(left + columns * group - BETWEEN, TOP + rows * (side + GAP));
        let ink = [0; 3];
        for (column, tags) in (0..).zip(TAGS) {
            let x = left + column * group;
            sheet.write(title(tags), [x + (group - BETWEEN) / 2, TOP / 2], Alignment::Center, ink);
            for (row, way) in (0..).zip(Way::ALL) {
                let y = TOP + row * (side + GAP);
                sheet.write(way.name(), [Sheet::LETTER / 2, y + side / 2], Alignment::Left, ink);
                let Some(series) = self.of(way, tags) else { bail!("{} has no pictures", way.name()) };
                for (i, picture) in (0..).zip(series.pictures.iter().take(SHOWN)) {
                    let large = imageops::resize(picture, side, side, imageops::FilterType::Nearest);
                    sheet.place(&large, [x + i * (side + GAP), y]);
                }
            }
        }
        Ok(sheet)
    }
}

/// How a LoRA set is on: Strata's two by their tags or always, the ordinary two always, or none. A tag that is not listened to
/// has no key either.
fn feature(config: &str, tags: &[Tag], way: Way) -> Feature {
    let (mode, on) = match way {
        Way::Base => (GateMode::Always, false),
        Way::Plain => (GateMode::Always, config == PLAIN),
        Way::Always => (GateMode::Always, config == FEATURES),
        Way::Gated => (GateMode::Prompt, config == FEATURES),
    };
    match on {
        true => Feature { tags: tags.to_vec(), mode, weight: 1.0, region: None, uncond: false },
        false => {
            Feature { tags: Vec::new(), mode: GateMode::Always, weight: 0.0, region: None, uncond: false }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_stand_in_place_of_words() {
        let first = |tags: Tags| prompts(1, tags).remove(0);
        let [none, hair, clothes, both] = TAGS.map(first);
        assert_eq!(none, "a portrait of a woman, pink ponytail, grey suit, night background, surprised");
        assert_eq!(hair, none.replace("pink ponytail", "hair_style_a"));
        assert_eq!(clothes, none.replace("grey suit", "clothing_style_b"));
        assert_eq!(both, hair.replace("grey suit", "clothing_style_b"));
        let all = prompts(usize::MAX, TAGS[3]);
        assert_eq!(all.len() as i64, PROMPTS);
        all.iter().for_each(|prompt| assert!(prompt.contains("a, clothing_style_b, "), "{prompt}"));
    }
}
