//! Prompts on which a feature must leave the model as it is.
//!
//! Preservation widens ai-toolkit's differential output preservation from the class to everything that can be said
//! without the tag: its loss is ‖ε_LoRA(z, t, c′) − ε_base(z, t, c′)‖², the base being the model without the feature.

use crate::config::{FeatureConfig, PreservePrompt};
use crate::features::silence::default_bank;
use crate::noise::{self, Stream};
use crate::{Result, Tags};

/// Ordinary prompts that one feature is preserved on: enough to be varied, few enough to be kept in memory.
const FROM_BANK: usize = 64;

/// The prompts without the tag that a feature is preserved on.
#[derive(Debug, Clone, Default)]
pub struct Preservation {
    /// Per picture and kind.
    own: Vec<Vec<Vec<String>>>,
    /// Per kind that does not depend on the picture.
    common: Vec<Vec<String>>,
}

impl Preservation {
    /// For a feature with these tags and captions beside other features. Kinds that have no prompt, as that of the class
    /// where none is given, are left out.
    ///
    /// # Errors
    /// A caption cannot be encoded.
    pub fn new(
        seed: u64,
        feature: &FeatureConfig,
        tags: &Tags,
        captions: &[&str],
        others: &[&FeatureConfig],
    ) -> Result<Self> {
        let kinds = feature.preserve.as_ref().map_or(&[][..], |p| &p.prompts);
        let wants = |kind| kinds.contains(&kind);
        let own = |caption: &&str| -> Result<Vec<Vec<String>>> {
            let mut own = Vec::new();
            if wants(PreservePrompt::Untagged) {
                own.push(vec![tags.swap(caption, "")?]);
            }
            if wants(PreservePrompt::Class) && !feature.class.is_empty() {
                own.push(vec![tags.swap(caption, &feature.class)?]);
            }
            if wants(PreservePrompt::Others) && !others.is_empty() {
                let theirs = others.iter().flat_map(|other| &other.tags);
                own.push(theirs.map(|tag| tags.swap(caption, tag)).collect::<Result<_>>()?);
            }
            Ok(own)
        };
        let mut common = Vec::new();
        if wants(PreservePrompt::Empty) {
            common.push(vec![String::new()]);
        }
        if wants(PreservePrompt::Bank) {
            let bank = default_bank();
            let order = noise::order(seed, 0, bank.len());
            common.push(order.into_iter().take(FROM_BANK).map(|i| bank[i].clone()).collect());
        }
        Ok(Self { own: captions.iter().map(own).collect::<Result<_>>()?, common })
    }

    /// Every prompt that can be drawn.
    pub fn all(&self) -> impl Iterator<Item = &String> {
        self.own.iter().flatten().chain(&self.common).flatten()
    }

    /// A prompt for a picture: all kinds are equally likely, and all prompts of a kind. None where there is no kind.
    pub fn draw(&self, seed: u64, step: u64, sample: u64, picture: usize) -> Option<&str> {
        let kinds: Vec<&Vec<String>> = self.own[picture].iter().chain(&self.common).collect();
        let [kind, prompt] = noise::below_twice(seed, Stream::Preserve, step, sample, kinds.len(), |kind| {
            kinds.get(kind).map_or(0, |prompts| prompts.len())
        });
        Some(kinds.get(kind)?.get(prompt)?)
    }
}
