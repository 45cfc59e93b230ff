//! Features at generation: when each is on, from the prompts.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::together::{Take, With, takes};
use crate::{
    ClipTokenizer, Error, Gates, Prompt, Reading, Region, Result, RowGates, Sampling, Tag, Takes, Together,
};

/// When a feature is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateMode {
    /// In every sample, wanted or not: what other programs do with a LoRA. Tags mean nothing then.
    Always,
    /// In samples whose prompt has one of its tags.
    Prompt,
    /// As `Prompt`, but keys and values of cross-attention only at the tokens of the tag.
    Token {
        /// And at those after it in its chunk, which have seen the tag.
        after: bool,
    },
}

/// A LoRA to draw with: one for each set that is attached, in the same order.
#[derive(Debug, Clone, PartialEq)]
pub struct Feature {
    /// Any of them switches it on.
    pub tags: Vec<Tag>,
    /// When it is on.
    pub mode: GateMode,
    /// How strong it is, times the weight of its tag in the prompt.
    pub weight: f32,
    /// The part of the picture it is kept to. What lies inside still reaches what lies outside, through self-attention
    /// and convolutions.
    pub region: Option<Region>,
    /// Whether it is on in the unwanted sample wherever it is in the wanted one, and not in the wanted one alone.
    pub uncond: bool,
}

/// The prompts of a batch of pictures, read.
#[derive(Debug, Clone, PartialEq)]
pub struct Wording {
    /// What each picture should show.
    pub wanted: Vec<Prompt>,
    /// What it should not; as many chunks as the wanted.
    pub unwanted: Vec<Prompt>,
}

impl Feature {
    /// How strong feature number `i` is in a picture of this prompt: 0 where it is off. Of several tags the strongest
    /// counts.
    pub fn strength(&self, i: usize, prompt: &Prompt) -> f32 {
        if self.mode == GateMode::Always {
            return self.weight;
        }
        let weights = prompt.mentions().iter().filter(|m| m.feature == i).map(|m| m.weight);
        weights.fold(0.0, stronger) * self.weight
    }

    /// How strong its modules of the text encoder are in feature number `i`'s prompts: the wanted one and the unwanted one of a picture.
    /// States of text are shared by a whole prompt and a whole picture, so a feature at some tokens, in some places, or in
    /// competition with others leaves them alone.
    pub(crate) fn in_text(&self, i: usize, wanted: &Prompt, together: Together) -> [f32; 2] {
        let parted = matches!(self.mode, GateMode::Token { .. }) || self.region.is_some();
        if parted || together == Together::Place && self.competes() {
            return [0.0; 2];
        }
        let (strength, both) = (self.strength(i, wanted), self.uncond || self.mode == GateMode::Always);
        [strength, if both { strength } else { 0.0 }]
    }

    /// How strong it is at each token of the prompt.
    fn tokens(&self, i: usize, prompt: &Prompt, after: bool) -> Vec<f32> {
        let mut gates = vec![0.0; prompt.ids().len()];
        for mention in prompt.mentions().iter().filter(|m| m.feature == i) {
            let Range { start, end } = mention.tokens;
            let end = if after { mention.chunk_end } else { end };
            let weight = mention.weight * self.weight;
            gates[start..end].iter_mut().for_each(|gate| *gate = stronger(*gate, weight));
        }
        gates
    }

    /// Whether it competes for places with others ([`Together::Place`]).
    fn competes(&self) -> bool {
        self.mode != GateMode::Always && self.region.is_none()
    }
}

/// A tag that several features have stands for one thing in the text.
fn one_key_each<'a>(tags: impl Iterator<Item = &'a Tag>) -> Result<()> {
    let mut keys = BTreeMap::new();
    for tag in tags {
        if *keys.entry(tag.text()).or_insert(tag.key()) != tag.key() {
            return Err(Error::Lora(format!(
                "the tag {:?} has another key in one LoRA than in another, and can have only one; give one of them a tag of its own \
                 (tag=WORD)",
                tag.text()
            )));
        }
    }
    Ok(())
}

fn stronger(a: f32, b: f32) -> f32 {
    if b.abs() > a.abs() { b } else { a }
}

impl Wording {
    /// Reads the prompts, one wanted and one unwanted for each picture, with the tags of the features in them, and gives
    /// all of them equally many chunks.
    ///
    /// # Errors
    /// The wanted and unwanted are not equally many, a feature waits for a tag but has none, or [`Prompt::read`]'s.
    pub fn read(
        tokenizer: &ClipTokenizer,
        wanted: &[&str],
        unwanted: &[&str],
        features: &[Feature],
    ) -> Result<Self> {
        let waits = |feature: &Feature| feature.mode != GateMode::Always;
        if wanted.len() != unwanted.len() {
            let (wanted, unwanted) = (wanted.len(), unwanted.len());
            return Err(Error::Input(format!("{wanted} wanted prompts and {unwanted} unwanted ones")));
        }
        if let Some(i) = features.iter().position(|feature| waits(feature) && feature.tags.is_empty()) {
            return Err(Error::Lora(format!("feature number {i} waits for its tags, but has none")));
        }
        one_key_each(features.iter().flat_map(|feature| &feature.tags))?;
        // a feature that is always on hears no tags, but other programs read their word vectors wherever they are written
        let heard = |feature: &Feature, tag: &Tag| waits(feature) || tag.key().is_some();
        let read = |texts: &[&str], of: &dyn Fn(&Feature) -> bool| -> Result<Vec<Prompt>> {
            let features = features.iter().enumerate().filter(|(_, feature)| of(feature));
            let tags = features.flat_map(|(i, feature)| {
                feature.tags.iter().filter(|tag| heard(feature, tag)).map(move |tag| (i, tag))
            });
            let tags: Vec<(usize, &Tag)> = tags.collect();
            texts.iter().map(|text| Prompt::read(tokenizer, text, &tags, Reading::Weighted)).collect()
        };
        let mut wanted = read(wanted, &|_| true)?;
        let mut unwanted = read(unwanted, &|feature| !waits(feature) || feature.uncond)?;
        let chunks = wanted.iter().chain(&unwanted).map(Prompt::chunks).max().unwrap_or(1);
        wanted.iter_mut().chain(&mut unwanted).for_each(|prompt| prompt.pad(tokenizer, chunks));
        Ok(Self { wanted, unwanted })
    }

    /// The gates of a batch of the wanted prompts, with `guided` behind the unwanted ones. `features` are those that the
    /// prompts were read with; places are those of latents of h × w.
    ///
    /// # Errors
    /// [`Region::places`]'s.
    pub fn gates(&self, features: &[Feature], guided: bool, latent: [usize; 2]) -> Result<Gates> {
        self.gates_of(&takes(&vec![Vec::new(); self.wanted.len()], guided), features, latent)
    }

    /// What [`Pipeline::sample`](crate::Pipeline::sample) runs the model on.
    ///
    /// # Errors
    /// [`Region::places`]'s.
    pub fn takes(&self, features: &[Feature], sampling: &Sampling, latent: [usize; 2]) -> Result<Takes> {
        let competes =
            |i: &usize, prompt: &Prompt| features[*i].competes() && features[*i].strength(*i, prompt) != 0.0;
        let rivals = |prompt: &Prompt| match sampling.together {
            Together::Sum => Vec::new(),
            Together::Place => (0..features.len()).filter(|i| competes(i, prompt)).collect(),
        };
        let takes = takes(&self.wanted.iter().map(rivals).collect::<Vec<_>>(), sampling.guided());
        let gates = self.gates_of(&takes, features, latent)?;
        Ok(Takes::new(takes, self.wanted.len(), gates))
    }

    fn gates_of(&self, takes: &[Take], features: &[Feature], latent: [usize; 2]) -> Result<Gates> {
        let rows = |(i, feature): (usize, &Feature)| -> Result<RowGates> {
            // one that is on in both was looked for in the unwanted as well, for the sake of its tokens
            let both = feature.uncond || feature.mode == GateMode::Always;
            let on = |take: &Take| match take.with {
                _ if !take.wanted => both,
                With::All => true,
                With::NoRival => !feature.competes(),
                With::Rival(one) => one == i || !feature.competes(),
            };
            let sample = |take: &Take| match on(take) {
                true => feature.strength(i, &self.wanted[take.picture]),
                false => 0.0,
            };
            let tokens = |take: &Take, after: bool| {
                let prompts = if take.wanted { &self.wanted } else { &self.unwanted };
                let prompt = &prompts[take.picture];
                match on(take) {
                    true => feature.tokens(i, prompt, after),
                    false => vec![0.0; prompt.ids().len()],
                }
            };
            let text = match feature.mode {
                GateMode::Token { after } => {
                    Some(takes.iter().flat_map(|take| tokens(take, after)).collect())
                }
                GateMode::Always | GateMode::Prompt => None,
            };
            let places = feature.region.as_ref().map(|region| region.places(latent)).transpose()?;
            Ok(RowGates { samples: takes.iter().map(sample).collect(), text, places })
        };
        Ok(Gates::rows(features.iter().enumerate().map(rows).collect::<Result<_>>()?))
    }
}
