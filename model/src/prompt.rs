//! Prompts as people write them: weights in brackets, tags of features, any length.
//!
//! Captions are literal text. In prompts, `(text)` is text × 1.1, `[text]` is ÷ 1.1, `(text:1.3)` is × 1.3, and they
//! nest; `\(` is a bracket that means itself. So far as A1111's; but brackets of a tag are its own and no weights:
//! `(hat_(a):1.2)` is `hat_(a)` × 1.2. What a weight does: a feature's tag passes it on to the feature's gate; of all
//! other text the token states are multiplied, and then the chunk as a whole so that its mean is what it was.
//!
//! A tag with a [`Key`] takes as many tokens as the key has vectors, which stand in their place whatever their ids are. So does a word
//! that the tokenizer was given vectors for ([`ClipTokenizer::words`]), which switches nothing on: its weight is that of text.
//!
//! CLIP takes 75 tokens at a time. Longer prompts are cut into chunks, each with a BOS and an EOS of its own, whose
//! states come one after the other. No cut goes through a tag. The word `BREAK` in a prompt ends a chunk.

use std::ops::Range;
use std::sync::Arc;

use crate::trigger::{find, joined, tokens};
use crate::{ClipTokenizer, Error, Found, Key, Result, Tag};

mod weights;

use weights::{Span, spans};

/// How a text is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// As it stands: captions.
    Literal,
    /// With weights in brackets: prompts.
    Weighted,
}

/// A prompt, read.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// Whole chunks.
    ids: Vec<u32>,
    /// What the states are multiplied by, one per id.
    weights: Vec<f32>,
    /// Length of a chunk with BOS and EOS.
    chunk: usize,
    mentions: Vec<Mention>,
    /// Where the tokens of keys begin.
    keys: Vec<(usize, Arc<Key>)>,
}

/// A tag in a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Mention {
    /// The feature whose tag it is.
    pub feature: usize,
    /// The tag as the feature writes it.
    pub tag: String,
    /// Where it stands in the text.
    pub bytes: Range<usize>,
    /// Where it stands in [`Prompt::ids`].
    pub tokens: Range<usize>,
    /// Where the chunk ends that it stands in.
    pub chunk_end: usize,
    /// Its weight.
    pub weight: f32,
    /// Whether it has brackets that would be weights if they were not its own: worth a note, as other programs read them
    /// so.
    pub own_brackets: bool,
}

impl Prompt {
    /// Reads a text and looks for the tags of features, given with the features' numbers. A tag is in a weighted prompt
    /// wherever it would be in a caption, and where its brackets are escaped.
    ///
    /// # Errors
    /// A weight is not a number; tags overlap so that no cut avoids them all; or [`ClipTokenizer::ids`]'s.
    pub fn read(
        tokenizer: &ClipTokenizer,
        text: &str,
        tags: &[(usize, &Tag)],
        reading: Reading,
    ) -> Result<Self> {
        let (mut ids, mut weights, mut mentions, mut keys) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        // words count after the tags
        let only = || tags.iter().map(|(_, tag)| *tag).chain(tokenizer.words());
        let key = |i: usize| match i.checked_sub(tags.len()) {
            None => tags[i].1.key(),
            Some(word) => tokenizer.words()[word].key(),
        };
        let (mut whole, mut breaks): (Vec<Range<usize>>, Vec<usize>) = (Vec::new(), Vec::new());
        let plain = find(tokenizer, text, only())?;
        let spans = match reading {
            Reading::Literal => vec![Span::literal(text)],
            Reading::Weighted => spans(text, &joined(plain.iter().map(|found| &found.bytes)))?,
        };
        for span in spans {
            breaks.resize(breaks.len() + span.breaks, ids.len());
            let mut here: Vec<Found> = plain.iter().filter_map(|found| span.find(found)).collect();
            if reading == Reading::Weighted && text.contains('\\') {
                // of what brackets hide from the text as it stands, only what backslashes show is a tag
                let escaped = find(tokenizer, &span.text, only())?.into_iter();
                here.extend(escaped.filter(|found| text[span.bytes(&found.bytes)].contains('\\')));
                here.sort_by_key(Found::order);
                here.dedup();
            }
            let tokens = tokens(tokenizer, &span.text, here.iter().map(|found| &found.bytes))?;
            let places: Vec<Range<usize>> = here.iter().map(|found| within(&tokens, &found.bytes)).collect();
            let keyed = here.iter().zip(&places);
            let keyed = keyed.filter_map(|(found, place)| Some((place.clone(), key(found.tag)?)));
            let moved = swap_keys(&tokens, keyed, &mut ids, &mut keys);
            let weight = span.weight as f32;
            weights.resize(ids.len(), weight);
            for (Found { tag, bytes }, place) in here.into_iter().zip(places) {
                let (tokens, bytes) = (moved[place.start]..moved[place.end], span.bytes(&bytes));
                whole.push(tokens.clone());
                let Some((feature, own)) = tags.get(tag) else { continue };
                weights[tokens.clone()].fill(1.0);
                let own_brackets = reading == Reading::Weighted
                    && plain.contains(&Found { tag, bytes: bytes.clone() })
                    && text[bytes.clone()].contains(['(', ')', '[', ']']);
                let (feature, tag) = (*feature, own.text().to_string());
                mentions.push(Mention { feature, tag, bytes, tokens, chunk_end: 0, weight, own_brackets });
            }
        }
        mentions.sort_by_key(|mention| mention.tokens.start);
        let parts = cut(ids.len(), tokenizer.max_length() - 2, &breaks, &whole)?;
        Self::in_chunks(tokenizer, &ids, &weights, &parts, &mentions, &keys)
    }

    /// Makes a chunk of each of `parts` of ids without BOS and EOS, with their weights and tags.
    fn in_chunks(
        tokenizer: &ClipTokenizer,
        ids: &[u32],
        weights: &[f32],
        parts: &[Range<usize>],
        mentions: &[Mention],
        keys: &[(usize, Arc<Key>)],
    ) -> Result<Self> {
        let chunk = tokenizer.max_length();
        let mut prompt =
            Self { ids: Vec::new(), weights: Vec::new(), chunk, mentions: Vec::new(), keys: Vec::new() };
        for part in parts {
            let first = prompt.ids.len() + 1;
            prompt.ids.extend(tokenizer.wrap(&ids[part.clone()]));
            prompt.weights.resize(prompt.ids.len(), 1.0);
            prompt.weights[first..][..part.len()].copy_from_slice(&weights[part.clone()]);
            let here = mentions.iter().filter(|mention| part.contains(&mention.tokens.start));
            let inside = keys.iter().filter(|(at, _)| part.contains(at));
            prompt.keys.extend(inside.map(|(at, key)| (at - part.start + first, key.clone())));
            let chunk_end = prompt.ids.len();
            prompt.mentions.extend(here.map(|mention| {
                let Range { start, end } = mention.tokens;
                let tokens = start - part.start + first..end - part.start + first;
                Mention { tokens, chunk_end, ..mention.clone() }
            }));
        }
        Ok(prompt)
    }

    /// Token ids, chunk after chunk, each [`ClipTokenizer::max_length`] long.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// What the state of each token is multiplied by.
    pub fn weights(&self) -> &[f32] {
        &self.weights
    }

    /// How many chunks there are: at least one.
    pub fn chunks(&self) -> usize {
        self.ids.len() / self.chunk
    }

    /// The tags in it, in order.
    pub fn mentions(&self) -> &[Mention] {
        &self.mentions
    }

    /// Where the vectors of keys begin, each for as many tokens as it has.
    pub(crate) fn keys(&self) -> &[(usize, Arc<Key>)] {
        &self.keys
    }

    /// Adds empty chunks until there are so many.
    pub fn pad(&mut self, tokenizer: &ClipTokenizer, chunks: usize) {
        while self.chunks() < chunks {
            self.ids.extend(tokenizer.wrap(&[]));
        }
        self.weights.resize(self.ids.len(), 1.0);
    }
}

/// The tokens that stand for some bytes of the text.
fn within(tokens: &[(u32, Range<usize>)], bytes: &Range<usize>) -> Range<usize> {
    let first = tokens.partition_point(|(_, token)| token.end <= bytes.start);
    first..tokens.partition_point(|(_, token)| token.start < bytes.end)
}

/// Adds tokens to `ids`, and in place of those of keyed tags as many as their keys have vectors. Where tags overlap, the first
/// has the place. Returns where each token, and the end, then is.
fn swap_keys<'a>(
    tokens: &[(u32, Range<usize>)],
    keyed: impl Iterator<Item = (Range<usize>, &'a Arc<Key>)>,
    ids: &mut Vec<u32>,
    keys: &mut Vec<(usize, Arc<Key>)>,
) -> Vec<usize> {
    let mut moved = Vec::with_capacity(tokens.len() + 1);
    let keep = |upto: usize, moved: &mut Vec<usize>, ids: &mut Vec<u32>| {
        for (id, _) in &tokens[moved.len()..upto] {
            moved.push(ids.len());
            ids.push(*id);
        }
    };
    for (place, key) in keyed {
        if place.start < moved.len() || place.is_empty() {
            continue;
        }
        keep(place.start, &mut moved, ids);
        moved.resize(place.end, ids.len());
        keys.push((ids.len(), key.clone()));
        ids.resize(ids.len() + key.count(), tokens[place.start].0);
    }
    keep(tokens.len(), &mut moved, ids);
    moved.push(ids.len());
    moved
}

/// Parts of at most `most` out of `count` tokens, cut at `breaks`, and else before one of `whole` rather than through it. At least
/// one part.
fn cut(count: usize, most: usize, breaks: &[usize], whole: &[Range<usize>]) -> Result<Vec<Range<usize>>> {
    let mut parts = Vec::new();
    let mut start = 0;
    // what is behind the last text ends nothing
    for last in breaks.iter().copied().filter(|at| *at < count).chain([count]) {
        loop {
            let mut end = last.min(start + most);
            let torn = |end: usize| {
                let torn = whole.iter().find(|own| end < last && own.start < end && end < own.end);
                torn.map(|own| own.start)
            };
            while let Some(before) = torn(end) {
                end = before;
            }
            if end <= start && last > start {
                return Err(Error::Input(format!(
                    "a prompt has overlapping tags over more than {most} tokens; leave some of them out"
                )));
            }
            parts.push(start..end);
            start = end;
            if end == last {
                break;
            }
        }
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_are_before_tags() {
        let cut = |count: usize, tags: &[(usize, usize)]| {
            let whole = |(start, end): &(usize, usize)| *start..*end;
            let parts = cut(count, 75, &[], &tags.iter().map(whole).collect::<Vec<_>>())?;
            Ok::<_, Error>(parts.into_iter().map(|part| part.end).collect::<Vec<_>>())
        };
        type Case<'a> = (usize, &'a [(usize, usize)], &'a [usize]);
        let cases: [Case<'_>; 8] = [
            (0, &[], &[0]),
            (75, &[], &[75]),
            (76, &[], &[75, 76]),
            (100, &[(70, 75)], &[75, 100]),
            (100, &[(73, 78)], &[73, 100]),
            (100, &[(75, 80)], &[75, 100]),
            (100, &[(70, 74), (73, 78), (69, 71)], &[69, 100]),
            (200, &[(74, 76), (148, 150)], &[74, 148, 200]),
        ];
        for (count, tags, ends) in cases {
            assert_eq!(cut(count, tags).unwrap(), ends, "{count} {tags:?}");
        }
        assert!(cut(110, &[(0, 60), (50, 110)]).is_err());
        let broken = super::cut(100, 75, &[0, 10, 90, 90], &[84..88, 95..96]).unwrap();
        assert_eq!(broken, [0..0, 0..10, 10..84, 84..90, 90..90, 90..100]);
    }
}
