//! Prompts as people write them: weights in brackets, tags of features, any length.
//!
//! `(text)` is text × 1.1, `[text]` is ÷ 1.1, `(text:1.3)` is × 1.3, and they nest; `\(` is a bracket that means itself.
//! So far as A1111's. What a weight does: a feature's tag passes it on to the feature's gate; of all other text the
//! token states are multiplied, and then the chunk as a whole so that its mean is what it was.
//!
//! CLIP takes 75 tokens at a time. Longer prompts are cut into chunks, each with a BOS and an EOS of its own, whose
//! states come one after the other. No cut goes through a tag.

use std::ops::Range;

use crate::trigger::find_spans;
use crate::{ClipTokenizer, Error, Result, Tag};

/// What brackets mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// Themselves, as in captions.
    Literal,
    /// Weights, as in prompts.
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
    /// Where it stands in [`Prompt::ids`].
    pub tokens: Range<usize>,
    /// Where the chunk ends that it stands in.
    pub chunk_end: usize,
    /// Its weight.
    pub weight: f32,
}

impl Prompt {
    /// Reads a prompt and looks for the tags of features, given with the features' numbers. A tag is found only within
    /// text of one weight.
    ///
    /// # Errors
    /// A weight is not a number; tags overlap so that no cut avoids them all; or [`ClipTokenizer::ids`]'s.
    pub fn read(
        tokenizer: &ClipTokenizer,
        text: &str,
        reading: Reading,
        tags: &[(usize, &Tag)],
    ) -> Result<Self> {
        let (mut ids, mut weights, mut mentions) = (Vec::new(), Vec::new(), Vec::new());
        let parts = match reading {
            Reading::Literal => vec![(text.to_owned(), 1.0)],
            Reading::Weighted => weighted(text)?,
        };
        for (text, weight) in parts {
            let tokens = tokenizer.ids_with_places(&text)?;
            let (start, weight) = (ids.len(), weight as f32);
            ids.extend(tokens.iter().map(|(id, _)| *id));
            weights.resize(ids.len(), weight);
            for (feature, tag) in tags {
                for at in find_spans(tokenizer, &text, &tokens, tag) {
                    let tokens = start + at..start + at + tag.ids().len();
                    weights[tokens.clone()].fill(1.0);
                    let (feature, tag) = (*feature, tag.text().to_string());
                    mentions.push(Mention { feature, tag, tokens, chunk_end: 0, weight });
                }
            }
        }
        mentions.sort_by_key(|mention| mention.tokens.start);

        let chunk = tokenizer.max_length();
        let mut prompt = Prompt { ids: Vec::new(), weights: Vec::new(), chunk, mentions: Vec::new() };
        for part in cut(ids.len(), chunk - 2, &mentions)? {
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

/// Text and its weight, as brackets give it; neighbours of one weight are one text.
fn weighted(text: &str) -> Result<Vec<(String, f64)>> {
    let mut parts: Vec<(String, f64)> = Vec::new();
    let (mut round, mut square) = (Vec::new(), Vec::new());
    let multiply = |parts: &mut Vec<(String, f64)>, from: usize, factor: f64| {
        parts[from..].iter_mut().for_each(|(_, weight)| *weight *= factor);
    };
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let mut length = c.len_utf8();
        let mut literal = None;
        let close = closing_weight(rest).filter(|_| !round.is_empty());
        match c {
            '\\' => {
                let escaped = rest[1..].chars().next().filter(|c| r"()[]\".contains(*c));
                length += escaped.map_or(0, char::len_utf8);
                literal = Some(escaped.unwrap_or(c));
            }
            '(' => round.push(parts.len()),
            '[' => square.push(parts.len()),
            ':' if close.is_some() => {
                let (number, bytes) = close.unwrap_or_default();
                let Some(factor) = number.parse().ok().filter(|factor: &f64| (*factor as f32).is_finite())
                else {
                    return Err(Error::Input(format!(
                        "the prompt has the weight `{number}`, which is no number; write one such as (cat:1.2)"
                    )));
                };
                length = bytes;
                multiply(&mut parts, round.pop().unwrap_or(0), factor);
            }
            ')' if !round.is_empty() => multiply(&mut parts, round.pop().unwrap_or(0), 1.1),
            ']' if !square.is_empty() => multiply(&mut parts, square.pop().unwrap_or(0), 1.0 / 1.1),
            _ => literal = Some(c),
        }
        if let Some(c) = literal {
            // brackets that are open here begin a part of their own
            let fresh =
                [&round, &square].iter().all(|open| open.last().is_none_or(|from| *from < parts.len()));
            match parts.last_mut().filter(|(_, weight)| fresh && *weight == 1.0) {
                Some((text, _)) => text.push(c),
                None => parts.push((c.to_string(), 1.0)),
            }
        }
        rest = &rest[length..];
    }
    // a bracket that is never closed reaches to the end
    round.iter().for_each(|from| multiply(&mut parts, *from, 1.1));
    square.iter().for_each(|from| multiply(&mut parts, *from, 1.0 / 1.1));

    let mut merged: Vec<(String, f64)> = Vec::new();
    for (text, weight) in parts {
        match merged.last_mut().filter(|(_, last)| *last == weight) {
            Some((last, _)) => last.push_str(&text),
            None => merged.push((text, weight)),
        }
    }
    Ok(merged)
}

/// `: 1.2 )` at the start of `text`: the number, and the bytes of it all.
fn closing_weight(text: &str) -> Option<(&str, usize)> {
    let number = text.strip_prefix(':')?.trim_start();
    let digits = number.strip_prefix(['+', '-']).unwrap_or(number);
    let after = digits.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
    if after.len() == digits.len() {
        return None;
    }
    let close = after.trim_start().strip_prefix(')')?;
    Some((&number[..number.len() - after.len()], text.len() - close.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> Vec<(String, f64)> {
        weighted(text).unwrap().into_iter().map(|(text, w)| (text, (w * 1e4).round() / 1e4)).collect()
    }

    /// A1111's own examples, from the docs of its `parse_prompt_attention`, and more.
    #[test]
    fn brackets_are_a1111s() {
        let cases: [(&str, &[(&str, f64)]); 15] = [
            ("normal text", &[("normal text", 1.0)]),
            ("an (important) word", &[("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
            ("(unbalanced", &[("unbalanced", 1.1)]),
            (r"\(literal\]", &[("(literal]", 1.0)]),
            ("(unnecessary)(parens)", &[("unnecessaryparens", 1.1)]),
            (
                "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
                &[
                    ("a ", 1.0),
                    ("house", 1.573),
                    (" ", 1.1),
                    ("on", 1.0),
                    (" a ", 1.1),
                    ("hill", 0.55),
                    (", sun, ", 1.1),
                    ("sky", 1.4641),
                    (".", 1.1),
                ],
            ),
            ("[x]", &[("x", 0.9091)]),
            ("[(x)]", &[("x", 1.0)]),
            ("a:1.2) b", &[("a:1.2) b", 1.0)]),
            ("(a: -0.5 )b", &[("a", -0.5), ("b", 1.0)]),
            ("(a:b:2)", &[("a:b", 2.0)]),
            (":) ;]", &[(":) ;]", 1.0)]),
            (r"C:\x\\", &[(r"C:\x\", 1.0)]),
            ("()", &[]),
            ("", &[]),
        ];
        for (text, expected) in cases {
            let expected: Vec<(String, f64)> = expected.iter().map(|(t, w)| (t.to_string(), *w)).collect();
            assert_eq!(parts(text), expected, "{text}");
        }
        let error = weighted("(a:1.2.3)").unwrap_err().to_string();
        assert!(error.contains("1.2.3"), "{error}");
    }

    #[test]
    fn cuts_are_before_tags() {
        let cut = |count: usize, tags: &[(usize, usize)]| {
            let mention = |(start, end): &(usize, usize)| {
                let tokens = *start..*end;
                Mention { feature: 0, tag: "t".into(), tokens, chunk_end: 0, weight: 1.0 }
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
}
