//! Tags: the words that switch a feature on.
//!
//! A tag is found by its token ids, so case and Unicode forms are folded as the text encoder folds them, and only as
//! whole words: `hair_style_a` is neither in `hair_style_ab` nor in `xhair_style_a`.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::{ClipTokenizer, Error, Result};

/// A word, or some words, that switch a feature on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    text: String,
    ids: Vec<u32>,
}

impl Tag {
    /// The tag that is written like this in prompts.
    ///
    /// # Errors
    /// The text has no token, or more than fit into one chunk of a prompt.
    pub fn new(tokenizer: &ClipTokenizer, text: &str) -> Result<Self> {
        let (text, ids) = (text.trim().to_string(), tokenizer.ids(text)?);
        let most = tokenizer.max_length() - 2;
        match ids.len() {
            0 => Err(Error::Lora(format!("the tag {text:?} has no letter, digit or sign; name a word"))),
            n if n > most => {
                let start: String = text.chars().take(40).collect();
                Err(Error::Lora(format!(
                    "the tag \"{start}…\" has {n} tokens, but {most} is the most; shorten it"
                )))
            }
            _ => Ok(Self { text, ids }),
        }
    }

    /// As it is written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Its token ids.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }
}

/// Where a tag begins in a sequence of token ids, with or without BOS and EOS. Its first token must begin a word and
/// its last one end one. Ids do not tell `style2` from `style 2`, as each digit is a word; [`find_in`] does.
pub fn find(tokenizer: &ClipTokenizer, ids: &[u32], tag: &Tag) -> Vec<usize> {
    find_ids(tokenizer, ids, &tag.ids)
}

/// [`find`] for the token ids of a tag, of which there is at least one.
pub fn find_ids(tokenizer: &ClipTokenizer, ids: &[u32], tag: &[u32]) -> Vec<usize> {
    let mut found: Vec<usize> = Vec::new();
    for (at, window) in ids.windows(tag.len().max(1)).enumerate() {
        let begins_word = at == 0 || tokenizer.ends_word(ids[at - 1]);
        let free = found.last().is_none_or(|last| last + tag.len() <= at);
        if window == tag && begins_word && free {
            found.push(at);
        }
    }
    found
}

/// Where a tag begins among the token ids of a text ([`ClipTokenizer::ids`]). Neither side of it may go on with a
/// letter, a digit or `_`, so that `style` is not in `style_2`.
///
/// # Errors
/// [`ClipTokenizer::ids`]'s.
pub fn find_in(tokenizer: &ClipTokenizer, text: &str, tag: &Tag) -> Result<Vec<usize>> {
    Ok(find_spans(tokenizer, text, &tokenizer.ids_with_places(text)?, tag))
}

/// A text with `with` in the place of every tag that [`find_in`] finds in it.
///
/// # Errors
/// [`ClipTokenizer::ids`]'s.
pub fn swap(tokenizer: &ClipTokenizer, text: &str, tags: &[Tag], with: &str) -> Result<String> {
    let tokens = tokenizer.ids_with_places(text)?;
    let bytes = |at: usize, tag: &Tag| tokens[at].1.start..tokens[at + tag.ids.len() - 1].1.end;
    let mut found: Vec<Range<usize>> = Vec::new();
    for tag in tags {
        found.extend(find_spans(tokenizer, text, &tokens, tag).into_iter().map(|at| bytes(at, tag)));
    }
    // the longest of those that begin together, and none that begins within another
    found.sort_by_key(|place| (place.start, std::cmp::Reverse(place.end)));
    let (mut swapped, mut end) = (String::new(), 0);
    for place in found {
        if place.start >= end {
            swapped += &text[end..place.start];
            swapped += with;
            end = place.end;
        }
    }
    Ok(swapped + &text[end..])
}

/// [`find_in`] for tokens that are there already.
pub(crate) fn find_spans(
    tokenizer: &ClipTokenizer,
    text: &str,
    tokens: &[(u32, Range<usize>)],
    tag: &Tag,
) -> Vec<usize> {
    let ids: Vec<u32> = tokens.iter().map(|(id, _)| *id).collect();
    let stands_alone = |at: &usize| {
        let (first, last) = (&tokens[*at].1, &tokens[at + tag.ids.len() - 1].1);
        !within_word(text, first.start) && !within_word(text, last.end)
    };
    find(tokenizer, &ids, tag).into_iter().filter(stands_alone).collect()
}

/// Whether both characters around a byte position belong to words.
fn within_word(text: &str, at: usize) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let before = text.get(..at).and_then(|text| text.chars().next_back());
    let after = text.get(at..).and_then(|text| text.chars().next());
    before.is_some_and(word) && after.is_some_and(word)
}

/// The tags that the metadata of a LoRA file names: those of `strata_tags`, a JSON list; else the whole of
/// `modelspec.trigger_phrase` as one tag; else none.
///
/// # Errors
/// `strata_tags` is not a list of strings.
pub fn tags_of(metadata: &BTreeMap<String, String>) -> Result<Vec<String>> {
    if let Some(tags) = metadata.get("strata_tags") {
        return serde_json::from_str(tags).map_err(|e| {
            Error::Lora(format!(
                "the file's metadata has strata_tags = {tags}, not a JSON list of strings: {e}"
            ))
        });
    }
    let phrase = metadata.get("modelspec.trigger_phrase").map(|phrase| phrase.trim());
    Ok(phrase.filter(|phrase| !phrase.is_empty()).map(str::to_string).into_iter().collect())
}
