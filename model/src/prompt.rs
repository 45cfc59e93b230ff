//! Prompts as people write them: weights in brackets, tags of features, any length.
//!
//! Captions are literal text. In prompts, `(text)` is text × 1.1, `[text]` is ÷ 1.1, `(text:1.3)` is × 1.3, and they
//! nest; `\(` is a bracket that means itself. So far as A1111's; but brackets of a tag are its own and no weights:
//! `(hat_(a):1.2)` is `hat_(a)` × 1.2. What a weight does: a feature's tag passes it on to the feature's gate; of all
//! other text the token states are multiplied, and then the chunk as a whole so that its mean is what it was.
//!
//! CLIP takes 75 tokens at a time. Longer prompts are cut into chunks, each with a BOS and an EOS of its own, whose
//! states come one after the other. No cut goes through a tag.

use std::ops::Range;

use strata_engine::{Tape, Tensor};

use crate::trigger::{find, joined, tokens};
use crate::{Clip, ClipTokenizer, Cx, Error, Found, Pipeline, Result, Tag};

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
        let (mut ids, mut weights, mut mentions) = (Vec::new(), Vec::new(), Vec::new());
        let only = || tags.iter().map(|(_, tag)| *tag);
        let plain = find(tokenizer, text, only())?;
        let spans = match reading {
            Reading::Literal => vec![Span::literal(text)],
            Reading::Weighted => spans(text, &joined(plain.iter().map(|found| &found.bytes)))?,
        };
        for span in spans {
            let mut here: Vec<Found> = plain.iter().filter_map(|found| span.find(found)).collect();
            if reading == Reading::Weighted && text.contains('\\') {
                // of what brackets hide from the text as it stands, only what backslashes show is a tag
                let escaped = find(tokenizer, &span.text, only())?.into_iter();
                here.extend(escaped.filter(|found| text[span.bytes(&found.bytes)].contains('\\')));
                here.sort_by_key(Found::order);
                here.dedup();
            }
            let tokens = tokens(tokenizer, &span.text, here.iter().map(|found| &found.bytes))?;
            let (start, weight) = (ids.len(), span.weight as f32);
            ids.extend(tokens.iter().map(|(id, _)| *id));
            weights.resize(ids.len(), weight);
            for Found { tag, bytes } in here {
                let first = tokens.partition_point(|(_, token)| token.end <= bytes.start);
                let end = tokens.partition_point(|(_, token)| token.start < bytes.end);
                let (tokens, bytes) = (start + first..start + end, span.bytes(&bytes));
                weights[tokens.clone()].fill(1.0);
                let own_brackets = reading == Reading::Weighted
                    && plain.contains(&Found { tag, bytes: bytes.clone() })
                    && text[bytes.clone()].contains(['(', ')', '[', ']']);
                let (feature, tag) = (tags[tag].0, tags[tag].1.text().to_string());
                mentions.push(Mention { feature, tag, bytes, tokens, chunk_end: 0, weight, own_brackets });
            }
        }
        mentions.sort_by_key(|mention| mention.tokens.start);
        Self::in_chunks(tokenizer, &ids, &weights, &mentions)
    }

    /// Cuts ids without BOS and EOS, with their weights and tags, into chunks.
    fn in_chunks(
        tokenizer: &ClipTokenizer,
        ids: &[u32],
        weights: &[f32],
        mentions: &[Mention],
    ) -> Result<Self> {
        let chunk = tokenizer.max_length();
        let mut prompt = Prompt { ids: Vec::new(), weights: Vec::new(), chunk, mentions: Vec::new() };
        for part in cut(ids.len(), chunk - 2, mentions)? {
            let first = prompt.ids.len() + 1;
            prompt.ids.extend(tokenizer.wrap(&ids[part.clone()]));
            prompt.weights.resize(prompt.ids.len(), 1.0);
            prompt.weights[first..][..part.len()].copy_from_slice(&weights[part.clone()]);
            let here = mentions.iter().filter(|mention| part.contains(&mention.tokens.start));
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

    /// Adds empty chunks until there are so many.
    pub fn pad(&mut self, tokenizer: &ClipTokenizer, chunks: usize) {
        while self.chunks() < chunks {
            self.ids.extend(tokenizer.wrap(&[]));
        }
        self.weights.resize(self.ids.len(), 1.0);
    }
}

/// Parts of at most `most` out of `count` tokens, cut before a tag rather than through it. At least one part.
fn cut(count: usize, most: usize, mentions: &[Mention]) -> Result<Vec<Range<usize>>> {
    let mut parts = Vec::new();
    let mut start = 0;
    loop {
        let mut end = count.min(start + most);
        let torn = |end: usize| {
            let torn = mentions.iter().find(|m| end < count && m.tokens.start < end && end < m.tokens.end);
            torn.map(|mention| mention.tokens.start)
        };
        while let Some(before) = torn(end) {
            end = before;
        }
        if end <= start && count > 0 {
            return Err(Error::Input(format!(
                "a prompt has overlapping tags over more than {most} tokens; leave some of them out"
            )));
        }
        parts.push(start..end);
        if end == count {
            return Ok(parts);
        }
        start = end;
    }
}

impl Pipeline {
    /// Text states [B, T, C] of prompts that are read and have equally many chunks. `skip` is
    /// [`Clip::forward`](crate::Clip::forward)'s.
    ///
    /// # Errors
    /// There is no prompt, chunks differ in number, `skip` is more than there are layers, or the GPU fails.
    pub fn states(&self, prompts: &[Prompt], skip: usize) -> Result<Tensor> {
        self.clip.states(self.tokenizer.max_length(), prompts, skip)
    }
}

impl Clip {
    /// Text states [B, T, C] of prompts that are read and have equally many chunks of `chunk` tokens. `skip` is
    /// [`Clip::forward`]'s.
    ///
    /// # Errors
    /// There is no prompt, chunks differ in number, `skip` is more than there are layers, or the GPU fails.
    pub fn states(&self, chunk: usize, prompts: &[Prompt], skip: usize) -> Result<Tensor> {
        let tokens = prompts.first().map_or(0, |prompt| prompt.ids.len());
        if let Some(other) = prompts.iter().find(|prompt| prompt.ids.len() != tokens) {
            let other = other.ids.len();
            return Err(Error::Input(format!(
                "prompts of {tokens} and of {other} tokens; pad them to one length"
            )));
        }
        let ids: Vec<u32> = prompts.iter().flat_map(|prompt| &prompt.ids).copied().collect();
        let ids = Tensor::from_u32(self.gpu(), &ids, &[ids.len() / chunk, chunk])?;
        let states = self.forward(&Cx::new(&Tape::off()), &ids, skip)?;
        let channels = states.last();
        let states = states.reshape(&[prompts.len(), tokens, channels])?;
        let weights: Vec<f32> = prompts.iter().flat_map(|prompt| &prompt.weights).copied().collect();
        if weights.iter().all(|weight| *weight == 1.0) {
            return Ok(states);
        }
        let mut values = states.to_f32()?;
        for (values, weights) in values.chunks_exact_mut(chunk * channels).zip(weights.chunks_exact(chunk)) {
            emphasise(values, weights);
        }
        Ok(Tensor::from_f32(states.gpu(), &values, states.shape(), states.dtype())?)
    }
}

/// Multiplies the states of one chunk by the weights of its tokens, and then all of them by what gives the chunk its
/// old mean again. A chunk without weights keeps its bits.
fn emphasise(values: &mut [f32], weights: &[f32]) {
    if weights.iter().all(|weight| *weight == 1.0) {
        return;
    }
    let sum = |values: &[f32]| values.iter().map(|v| f64::from(*v)).sum::<f64>();
    let before = sum(values);
    for (state, weight) in values.chunks_exact_mut(values.len() / weights.len()).zip(weights) {
        state.iter_mut().for_each(|v| *v *= weight);
    }
    let restore = (before / sum(values)) as f32;
    if restore.is_finite() {
        values.iter_mut().for_each(|v| *v *= restore);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_are_before_tags() {
        let cut = |count: usize, tags: &[(usize, usize)]| {
            let mention = |(start, end): &(usize, usize)| {
                let tokens = *start..*end;
                let (tag, bytes) = ("t".into(), 0..0);
                Mention { feature: 0, tag, bytes, tokens, chunk_end: 0, weight: 1.0, own_brackets: false }
            };
            let parts = cut(count, 75, &tags.iter().map(mention).collect::<Vec<_>>())?;
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
    }

    #[test]
    fn weights_keep_the_mean() {
        let mut values = vec![1.0, 2.0, 3.0, 4.0];
        emphasise(&mut values, &[1.0, 1.0]);
        assert_eq!(values, [1.0, 2.0, 3.0, 4.0]);
        emphasise(&mut values, &[1.0, 2.0]);
        assert_eq!(values.iter().sum::<f32>(), 10.0);
        assert!((values[2] / values[0] - 6.0).abs() < 1e-6);
        // a mean of 0 cannot be restored
        let mut balanced = vec![1.0, -1.0];
        emphasise(&mut balanced, &[1.0, 1.0 / 0.9]);
        assert!(balanced.iter().all(|v| v.is_finite()));
    }
}
