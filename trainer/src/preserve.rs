//! Prompts on which a feature must leave the model as it is, and whether a prompt carries a tag.
//!
//! Preservation widens ai-toolkit's differential output preservation from the class to everything that can be said
//! without the tag: its loss is ‖ε_LoRA(z, t, c′) − ε_base(z, t, c′)‖², the base being the model without the feature.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::config::{FeatureConfig, PreservePrompt};
use crate::noise::{self, Stream};
use crate::silence::default_bank;

/// Ordinary prompts that one feature is preserved on: enough to be varied, few enough to be kept in memory.
const FROM_BANK: usize = 64;

/// The prompts without the tag that a feature is preserved on.
#[derive(Debug, Clone)]
pub struct Preservation {
    /// Per picture and kind.
    own: Vec<Vec<Vec<String>>>,
    /// Per kind that does not depend on the picture.
    common: Vec<Vec<String>>,
}

impl Preservation {
    /// For a feature with these captions beside other features. Kinds that have no prompt, as that of the class where
    /// none is given, are left out.
    pub fn new(seed: u64, feature: &FeatureConfig, captions: &[&str], others: &[&FeatureConfig]) -> Self {
        let kinds = feature.preserve.as_ref().map_or(&[][..], |p| &p.prompts);
        let wants = |kind| kinds.contains(&kind);
        let swap = |caption: &str, with: &str| swap_tags(caption, &feature.tags, with);
        let own = |caption: &&str| {
            let mut own = Vec::new();
            if wants(PreservePrompt::Untagged) {
                own.push(vec![swap(caption, "")]);
            }
            if wants(PreservePrompt::Class) && !feature.class.is_empty() {
                own.push(vec![swap(caption, &feature.class)]);
            }
            if wants(PreservePrompt::Others) && !others.is_empty() {
                let tags = others.iter().flat_map(|other| &other.tags);
                own.push(tags.map(|tag| swap(caption, tag)).collect());
            }
            own
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
        Self { own: captions.iter().map(own).collect(), common }
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

/// Whether a text carries one of the tags.
pub fn carries(text: &str, tags: &[String]) -> bool {
    tags.iter().any(|tag| find(text, tag).is_some())
}

/// A caption with something else, or nothing, in the place of its tags, and no comma left alone.
pub fn swap_tags(caption: &str, tags: &[String], with: &str) -> String {
    let mut text = caption.to_owned();
    let mut longest_first: Vec<&String> = tags.iter().collect();
    longest_first.sort_by_key(|tag| std::cmp::Reverse(tag.len()));
    for tag in longest_first {
        let mut from = 0;
        while let Some(at) = find(&text[from..], tag) {
            text.replace_range(from + at.start..from + at.end, with);
            from += at.start + with.len();
        }
    }
    let parts = text.split(',').map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "));
    parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
}

/// Where a tag stands in a text as whole words, whatever the case of ASCII letters.
fn find(text: &str, tag: &str) -> Option<Range<usize>> {
    let (tag, word) = (tag.trim(), |c: char| c.is_alphanumeric() || c == '_');
    let edges = [tag.chars().next()?, tag.chars().next_back()?].map(word);
    text.char_indices().map(|(start, _)| start..start + tag.len()).find(|at| {
        let [before, after] =
            [text[..at.start].chars().next_back(), text.get(at.end..).and_then(|t| t.chars().next())];
        let torn = (edges[0] && before.is_some_and(word)) || (edges[1] && after.is_some_and(word));
        text.get(at.clone()).is_some_and(|found| found.eq_ignore_ascii_case(tag)) && !torn
    })
}

/// Every text whose states the training of a feature needs: captions, none, and preservation's.
pub fn texts<'a>(captions: impl Iterator<Item = &'a str>, preservation: &Preservation) -> BTreeSet<String> {
    let empty = std::iter::once(String::new());
    captions.map(str::to_owned).chain(preservation.all().cloned()).chain(empty).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_swapped_as_whole_words() {
        let tags = ["hair_style_a".to_owned(), "hair_style".to_owned()];
        let cases = [
            ("a man, hair_style_a, smiling", "", "a man, smiling"),
            ("hair_style_a", "hair", "hair"),
            ("Hair_Style_A man", "", "man"),
            ("a man with hair_style_ab", "", "a man with hair_style_ab"),
            ("hair_style_a hair_style", "x", "x x"),
            ("é, hair_style_a", "", "é"),
        ];
        for (caption, with, expected) in cases {
            assert_eq!(swap_tags(caption, &tags, with), expected, "{caption}");
        }
        assert!(carries("a HAIR_STYLE man", &tags) && !carries("xhair_style", &tags));
    }

    #[test]
    fn every_kind_is_drawn() {
        let feature = FeatureConfig {
            tags: vec!["aa".into()],
            class: "hair".into(),
            preserve: Some(Default::default()),
            ..FeatureConfig::default()
        };
        let other = FeatureConfig { tags: vec!["bb".into()], ..FeatureConfig::default() };
        let preservation = Preservation::new(1, &feature, &["a man, aa"], &[&other]);
        let drawn: BTreeSet<&str> = (0..200).filter_map(|i| preservation.draw(1, i, 0, 0)).collect();
        for prompt in ["a man", "a man, hair", "a man, bb", ""] {
            assert!(drawn.contains(prompt), "{prompt:?} in {drawn:?}");
        }
        assert!(drawn.len() > 20, "and ordinary ones");
        assert!(drawn.iter().all(|prompt| !carries(prompt, &feature.tags)));
        let none = Preservation::new(1, &FeatureConfig::default(), &["a man"], &[]);
        assert_eq!((none.draw(1, 0, 0, 0), none.all().count()), (None, 0));
    }
}
