//! Which prompts a feature is probed with.
//!
//! Carriers are prompts with a place for words, `{}`. With the feature's tag in that place they are the group `own_tag`;
//! with the tags of another feature `other_tag`, with a word for what the feature is a special case of `class`. Beside
//! them stand `ordinary` prompts and the `empty` one. A prompt that has the feature's tag is in no group but `own_tag`.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use strata_engine::Tensor;
use strata_model::{ClipTokenizer, Prompt, Reading, Tag, swap};

use crate::{Error, Result};

const CARRIERS: [&str; 4] =
    ["a photo of {}", "{}, portrait", "an illustration of {}, detailed", "{}, outdoors, soft light"];

/// None of them is in the bank that features are kept silent on, so that what is measured was not trained.
const ORDINARY: [&str; 16] = [
    "a photo of a smiling person at a bus stop",
    "studio portrait of a man in a green sweater",
    "a woman with a backpack seen from behind",
    "two kids building a snow fort",
    "a tabby cat curled up on a piano",
    "a horse and its foal by a wooden fence",
    "a bowl of ramen with a soft egg, top view",
    "an empty subway car late at night",
    "a lighthouse on a cliff in heavy rain",
    "rolling hills with poppies, impressionist painting",
    "isometric drawing of a tiny bakery",
    "a red bicycle leaning against a brick wall",
    "macro shot of dew on a spider web",
    "anime girl waving, cherry blossoms, 4k",
    "chrome robot playing chess, concept art",
    "abstract shapes in blue and orange",
];

/// A feature to probe.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbeFeature {
    /// Another one for each feature.
    pub name: String,
    /// The words that it should answer to: at least one.
    pub tags: Vec<Tag>,
    /// What it is a special case of, such as `hair`.
    pub class: Option<String>,
    /// What its LoRA is multiplied by.
    pub weight: f32,
}

/// What the prompts of a group are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupKind {
    /// With one of the feature's tags.
    OwnTag,
    /// With one of another feature's, and none of its own.
    OtherTag,
    /// With the class word instead.
    Class,
    /// About anything else.
    Ordinary,
    /// The empty prompt.
    Empty,
}

/// Prompts of one kind.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Group {
    /// What they are.
    pub kind: GroupKind,
    /// The other feature's name, or the class word.
    pub of: Option<String>,
    /// Their places in [`Script::texts`]; never none.
    pub prompts: Vec<usize>,
}

/// A prompt and what the text encoder says about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Text {
    /// As it is written.
    pub text: String,
    /// As it is read, with the tags of all features.
    pub prompt: Prompt,
    /// Text states.
    pub states: Vec<f32>,
    /// Tokens and channels of the states.
    pub shape: [usize; 2],
}

/// All prompts of a probe, each once, and which of them each feature is tried with.
#[derive(Debug, Clone, PartialEq)]
pub struct Script {
    features: Vec<ProbeFeature>,
    /// By feature; that of the own tag is the first.
    groups: Vec<Vec<Group>>,
    texts: Vec<Text>,
}

impl Script {
    /// The prompts for some features, in the order in which their LoRAs are attached. Of `lines`, those with `{}` are
    /// carriers for all features; others with the tag of a feature are carriers for that one; all others are the ordinary
    /// prompts. Where there are none of a kind, built-in ones stand in. `states` is the text encoder: it gives states
    /// [1, T, C] of a prompt.
    ///
    /// # Errors
    /// A feature has no tag, its tag is not read as one within a carrier, or `states` fails.
    pub fn new(
        tokenizer: &ClipTokenizer,
        features: Vec<ProbeFeature>,
        lines: &[String],
        mut states: impl FnMut(&Prompt) -> strata_model::Result<Tensor>,
    ) -> Result<Self> {
        let tags: Vec<(usize, &Tag)> = features
            .iter()
            .enumerate()
            .flat_map(|(i, feature)| feature.tags.iter().map(move |tag| (i, tag)))
            .collect();
        let mut reader = Reader { tokenizer, tags: &tags, known: BTreeMap::new(), prompts: Vec::new() };
        let wordings = Wordings::new(&reader, lines, features.len())?;
        let groups =
            (0..features.len()).map(|i| reader.groups(i, &features, &wordings)).collect::<Result<_>>()?;
        let mut texts = Vec::new();
        for (text, prompt) in reader.prompts {
            let encoded = states(&prompt)?;
            let (shape, states) = ([encoded.rows(), encoded.last()], encoded.to_f32()?);
            texts.push(Text { text, prompt, states, shape });
        }
        Ok(Self { features, groups, texts })
    }

    /// The features.
    pub fn features(&self) -> &[ProbeFeature] {
        &self.features
    }

    /// The groups of a feature, that of its own tag first.
    pub fn groups(&self, feature: usize) -> &[Group] {
        &self.groups[feature]
    }

    /// All prompts.
    pub fn texts(&self) -> &[Text] {
        &self.texts
    }

    /// Which of them a feature is tried with.
    pub fn prompts_of(&self, feature: usize) -> BTreeSet<usize> {
        self.groups[feature].iter().flat_map(|group| &group.prompts).copied().collect()
    }
}

/// Prompts by what they are for.
struct Wordings {
    carriers: Vec<String>,
    /// By feature, carriers for that one alone.
    own: Vec<Vec<String>>,
    ordinary: Vec<String>,
}

impl Wordings {
    fn new(reader: &Reader, lines: &[String], features: usize) -> Result<Self> {
        let (mut carriers, mut own, mut ordinary) = (Vec::new(), vec![Vec::new(); features], Vec::new());
        for line in lines {
            if line.contains("{}") {
                carriers.push(line.clone());
                continue;
            }
            let prompt = reader.read(line)?;
            if prompt.mentions().is_empty() {
                ordinary.push(line.clone());
            }
            for (i, own) in own.iter_mut().enumerate() {
                let tags = prompt.mentions().iter().filter(|mention| mention.feature == i);
                let places: Vec<_> = tags.map(|mention| &mention.bytes).collect();
                if !places.is_empty() {
                    own.push(swap(line, places, "{}"));
                }
            }
        }
        let or = |given: Vec<String>, default: &[&str]| match given.is_empty() {
            true => default.iter().map(|text| text.to_string()).collect(),
            false => given,
        };
        Ok(Self { carriers: or(carriers, &CARRIERS), own, ordinary: or(ordinary, &ORDINARY) })
    }

    fn carriers(&self, feature: usize) -> &[String] {
        if self.own[feature].is_empty() { &self.carriers } else { &self.own[feature] }
    }
}

struct Reader<'a> {
    tokenizer: &'a ClipTokenizer,
    tags: &'a [(usize, &'a Tag)],
    known: BTreeMap<String, usize>,
    prompts: Vec<(String, Prompt)>,
}

impl Reader<'_> {
    /// As generation reads prompts.
    fn read(&self, text: &str) -> Result<Prompt> {
        Ok(Prompt::read(self.tokenizer, text, self.tags, Reading::Weighted)?)
    }

    /// The place of a prompt, which is read if it is new.
    fn place(&mut self, text: String) -> Result<usize> {
        if let Some(place) = self.known.get(&text) {
            return Ok(*place);
        }
        let prompt = self.read(&text)?;
        self.known.insert(text.clone(), self.prompts.len());
        self.prompts.push((text, prompt));
        Ok(self.prompts.len() - 1)
    }

    fn has_tag_of(&self, feature: usize, prompt: usize) -> bool {
        self.prompts[prompt].1.mentions().iter().any(|mention| mention.feature == feature)
    }

    fn groups(&mut self, i: usize, features: &[ProbeFeature], wordings: &Wordings) -> Result<Vec<Group>> {
        let (feature, carriers) = (&features[i], wordings.carriers(i));
        let put = |words: &str| carriers.iter().map(|c| c.replace("{}", words)).collect::<Vec<_>>();
        let put_tags = |feature: &ProbeFeature| feature.tags.iter().flat_map(|t| put(t.text())).collect();
        let own: Vec<usize> = self.places(put_tags(feature))?;
        if let Some(prompt) = own.iter().find(|prompt| !self.has_tag_of(i, **prompt)) {
            let (name, text) = (&feature.name, &self.prompts[*prompt].0);
            return Err(Error::Probe(format!(
                "feature {name}: its tag is not read as a tag in {text:?}, where other letters or signs run together with \
                 it; write {{}} as a word of its own"
            )));
        }
        if own.is_empty() {
            return Err(Error::Probe(format!("feature {} has no tag; give it at least one", feature.name)));
        }
        let mut groups = vec![Group { kind: GroupKind::OwnTag, of: None, prompts: own }];
        let mut add = |kind, of: Option<&str>, texts: Vec<String>| -> Result<()> {
            let mut prompts = self.places(texts)?;
            prompts.retain(|prompt| !self.has_tag_of(i, *prompt));
            if !prompts.is_empty() {
                groups.push(Group { kind, of: of.map(str::to_owned), prompts });
            }
            Ok(())
        };
        for (_, other) in features.iter().enumerate().filter(|(j, _)| *j != i) {
            add(GroupKind::OtherTag, Some(&other.name), put_tags(other))?;
        }
        if let Some(class) = &feature.class {
            add(GroupKind::Class, Some(class), put(class))?;
        }
        add(GroupKind::Ordinary, None, wordings.ordinary.clone())?;
        add(GroupKind::Empty, None, vec![String::new()])?;
        Ok(groups)
    }

    /// The places of prompts, each once.
    fn places(&mut self, texts: Vec<String>) -> Result<Vec<usize>> {
        let mut places = Vec::new();
        for text in texts {
            let place = self.place(text)?;
            if !places.contains(&place) {
                places.push(place);
            }
        }
        Ok(places)
    }
}
