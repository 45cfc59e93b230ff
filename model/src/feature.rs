//! Features at generation: when each is on, from the prompts.

use std::ops::Range;

use crate::{ClipTokenizer, Error, Gates, Prompt, Region, Result, RowGates, Tag};

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

    /// The same for each token of the prompt.
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
        let read = |texts: &[&str], heard: &dyn Fn(&Feature) -> bool| -> Result<Vec<Prompt>> {
            let features = features.iter().enumerate().filter(|(_, feature)| heard(feature));
            let tags: Vec<(usize, &Tag)> =
                features.flat_map(|(i, feature)| feature.tags.iter().map(move |tag| (i, tag))).collect();
            texts.iter().map(|text| Prompt::read(tokenizer, text, &tags)).collect()
        };
        let mut wanted = read(wanted, &waits)?;
        let mut unwanted = read(unwanted, &|feature| waits(feature) && feature.uncond)?;
        let chunks = wanted.iter().chain(&unwanted).map(Prompt::chunks).max().unwrap_or(1);
        wanted.iter_mut().chain(&mut unwanted).for_each(|prompt| prompt.pad(tokenizer, chunks));
        Ok(Self { wanted, unwanted })
    }

    /// The gates of the batch that [`Pipeline::sample`](crate::Pipeline::sample) gives the model for latents of h × w:
    /// with guidance the unwanted samples and then the wanted ones, else the wanted ones. `features` are those that the
    /// prompts were read with.
    ///
    /// # Errors
    /// [`Region::places`]'s.
    pub fn gates(&self, features: &[Feature], guided: bool, latent: [usize; 2]) -> Result<Gates> {
        let unwanted = if guided { &self.unwanted[..] } else { &[] };
        let rows = |(i, feature): (usize, &Feature)| -> Result<RowGates> {
            let strengths = self.wanted.iter().map(|prompt| feature.strength(i, prompt));
            let both = feature.uncond || feature.mode == GateMode::Always;
            let before = strengths.clone().take(unwanted.len()).map(|gate| if both { gate } else { 0.0 });
            let text = match feature.mode {
                GateMode::Token { after } => {
                    // only a feature that is on in both was looked for in the unwanted
                    let prompts = unwanted.iter().chain(&self.wanted);
                    Some(prompts.flat_map(|prompt| feature.tokens(i, prompt, after)).collect())
                }
                GateMode::Always | GateMode::Prompt => None,
            };
            let places = feature.region.as_ref().map(|region| region.places(latent)).transpose()?;
            Ok(RowGates { samples: before.chain(strengths.clone()).collect(), text, places })
        };
        Ok(Gates::rows(features.iter().enumerate().map(rows).collect::<Result<_>>()?))
    }
}
