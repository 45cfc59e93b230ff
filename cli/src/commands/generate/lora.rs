//! A LoRA to draw with: what the sampler is told of it, and what people are.

use anyhow::Result;
use strata_model::{
    ClipTokenizer, Feature, GateMode, LoraSet, Mention, Prompt, Rows, Tag, Together, counted, keys_of,
};

use crate::commands::lora::Lora;

impl Lora {
    /// What the sampler is told.
    pub fn feature(&self, tokenizer: &ClipTokenizer) -> Result<Feature> {
        let mut tags = Tag::all(tokenizer, &self.tags, &keys_of(&self.file.metadata)?)?;
        if self.gate == GateMode::Always {
            tags.retain(|tag| tag.key().is_some());
        }
        let (region, uncond) = (self.region.clone(), self.uncond);
        Ok(Feature { tags, mode: self.gate, weight: self.weight, region, uncond })
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
            GateMode::Always if self.tags.is_empty() => {
                format!("on at {strength} whatever the prompt, as it names no tag")
            }
            GateMode::Always => format!("on at {strength} whatever the prompt"),
            _ if heard.is_empty() => format!("off: the prompt has none of its tags ({})", tags.join(", ")),
            _ => format!("on at {strength}, by {}", heard.join(", ")),
        };
        format!("{}: {state}", self.path.display())
    }

    /// What a part of a text or of a picture cannot be applied to, if anything.
    pub fn left_out(&self, set: &LoraSet, together: Together) -> Vec<String> {
        let text = self.text.as_ref().map_or(0, |text| text.modules.len());
        let parted = self.region.is_some() || matches!(self.gate, GateMode::Token { .. });
        let competes = together == Together::Place && self.gate != GateMode::Always;
        let in_text = (text > 0 && (parted || competes)).then(|| {
            let path = self.path.display();
            format!(
                "{path}: off in {text} layers of the text encoder, whose states belong to the whole prompt and picture; \
                 they are on with gate=prompt or always, without a region and without --together place"
            )
        });
        in_text.into_iter().chain(self.left_out_in_time(set)).collect()
    }

    /// The layers that a region cannot be applied to, if any.
    fn left_out_in_time(&self, set: &LoraSet) -> Option<String> {
        self.region.as_ref()?;
        let count = set.entries().iter().filter(|entry| Rows::of(&entry.path) == Rows::Sample).count();
        let path = self.path.display();
        (count > 0).then(|| {
            let layers = counted(count, "layer");
            format!("{path}: off in {layers} on the time embedding, which has no places for a region")
        })
    }
}
