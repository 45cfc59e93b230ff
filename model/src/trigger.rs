//! Tags: the words that switch a feature on.
//!
//! A tag is looked for in the text, not among its tokens, since the tokenizer runs signs together: `),` is one token. Both
//! are compared as the text encoder reads them: Unicode's composed forms, lower case, white space in runs. A tag is found
//! where it stands as a word of its own:
//!
//! - A letter, a digit or `_` at its edge does not go on with a letter, a digit or `_`: `hair` is not in `hairs`.
//! - Scripts without spaces (Chinese, Japanese, Korean, Thai and their like) are words letter by letter: `帽子` is in
//!   `赤い帽子の人` and in `2帽子`.
//! - `_` beside it goes on with it, whatever its edge is: `hat` and `(a)` are not in `hat_(a)`.
//! - A sign at its edge does not go on with the same sign, so that `:)` is not in `:))`, nor `c+` in `c++`. But a comma
//!   may follow a comma, and a bracket a bracket that has its partner in the tag: `hat_(a)` is in `(hat_(a))`.
//! - An accent belongs to its letter, and what makes one emoji of several to the emoji.
//!
//! [`tokens`] never lets a token reach over a tag's edge, so that a tag has the same tokens wherever it stands.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use tokenizers::{NormalizedString, normalizer};
use unicode_script::{Script, UnicodeScript};
use unicode_segmentation::{GraphemeCursor, UnicodeSegmentation};

use crate::{ClipTokenizer, Error, Key, Result};

/// A word, or some words, that switch a feature on.
#[derive(Debug, Clone, PartialEq)]
pub struct Tag {
    text: String,
    /// As the text encoder reads it.
    folded: String,
    ids: Vec<u32>,
    key: Option<Arc<Key>>,
}

/// A tag in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Which of the tags that were looked for.
    pub tag: usize,
    /// The bytes of the text that it takes.
    pub bytes: Range<usize>,
}

impl Found {
    /// By place, the longest first of those that begin together.
    pub(crate) fn order(&self) -> (usize, Reverse<usize>, usize) {
        (self.bytes.start, Reverse(self.bytes.end), self.tag)
    }
}

impl Tag {
    /// The tag that is written like this in prompts.
    ///
    /// # Errors
    /// The text is empty, a single letter, digit or sign (but for those that are words), or no word of its own even
    /// between spaces, it has characters that are not seen, or more tokens than fit into one chunk of a prompt.
    pub fn new(tokenizer: &ClipTokenizer, text: &str) -> Result<Self> {
        let refuse = |message: String| Err(Error::Lora(message));
        let text = text.trim().to_string();
        let (folded, ids) = (tokenizer.fold(&text)?.get().trim().to_string(), tokenizer.ids(&text)?);
        let most = tokenizer.max_length() - 2;
        if let Some(c) = text.chars().find(|c| is_unseen(*c)) {
            return refuse(format!(
                "the tag {text:?} has the character U+{:04X}, which is not seen where it is written; leave it out",
                u32::from(c)
            ));
        }
        let mut chars = folded.chars();
        match (chars.next(), chars.next()) {
            (None, _) => {
                return refuse(format!("the tag {text:?} has no letter, digit or sign; name a word"));
            }
            (Some(c), None) if c.is_ascii() || is_word(c) && !is_spaceless(c) => {
                return refuse(format!(
                    "the tag {text:?} is one letter, digit or sign, which is in nearly every text and would call the \
                     feature there; make up a longer word"
                ));
            }
            _ => (),
        }
        if ids.len() > most {
            let (start, n): (String, _) = (text.chars().take(40).collect(), ids.len());
            return refuse(format!(
                "the tag \"{start}…\" has {n} tokens, but {most} is the most; shorten it"
            ));
        }
        if !stands_alone(&format!(" {folded} "), &(1..1 + folded.len())) {
            return refuse(format!(
                "the tag {text:?} begins or ends with a mark that joins what is beside it, even a space; leave it out"
            ));
        }
        Ok(Self { text, folded, ids, key: None })
    }

    /// The same with word vectors of its own.
    #[must_use]
    pub fn with_key(self, key: Arc<Key>) -> Self {
        Self { key: Some(key), ..self }
    }

    /// Tags of a LoRA file, with the keys that it has for them. Where it has one key alone, a tag that the file does not name has it.
    ///
    /// # Errors
    /// [`Tag::new`]'s.
    pub fn all(
        tokenizer: &ClipTokenizer,
        texts: &[String],
        keys: &BTreeMap<String, Key>,
    ) -> Result<Vec<Self>> {
        let tag = |text: &String| {
            let tag = Self::new(tokenizer, text)?;
            let only = keys.values().next().filter(|key| keys.values().all(|other| other == *key));
            Ok(match keys.get(tag.text()).or(only) {
                Some(key) => tag.with_key(Arc::new(key.clone())),
                None => tag,
            })
        };
        texts.iter().map(tag).collect()
    }

    /// As it is written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether another tag is found wherever this one is.
    pub(crate) fn reads_as(&self, other: &Self) -> bool {
        self.folded == other.folded
    }

    /// Its token ids, without a key.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// The word vectors that stand for it, where it has some of its own.
    pub fn key(&self) -> Option<&Arc<Key>> {
        self.key.as_ref()
    }
}

/// Where tags stand in a text, in order. Places of one tag do not overlap; those of several may.
///
/// # Errors
/// [`ClipTokenizer::ids`]'s.
pub fn find<'a>(
    tokenizer: &ClipTokenizer,
    text: &str,
    tags: impl IntoIterator<Item = &'a Tag>,
) -> Result<Vec<Found>> {
    let folded = tokenizer.fold(text)?;
    let mut found = Vec::new();
    for (i, tag) in tags.into_iter().enumerate() {
        let mut from = 0;
        while let Some(at) = folded.get()[from..].find(&tag.folded) {
            let place = from + at..from + at + tag.folded.len();
            from = place.start + tag.folded.chars().next().map_or(1, char::len_utf8);
            if !stands_alone(folded.get(), &place) {
                continue;
            }
            from = place.end;
            found.push(Found { tag: i, bytes: written(&folded, place) });
        }
    }
    found.sort_by_key(Found::order);
    Ok(found)
}

/// The token ids of a text, each with the bytes that it stands for. No token reaches over the edge of a tag in `places`,
/// which are in order as [`find`] gives them, but for edges within another tag.
///
/// # Errors
/// [`ClipTokenizer::ids`]'s.
pub fn tokens<'a>(
    tokenizer: &ClipTokenizer,
    text: &str,
    places: impl IntoIterator<Item = &'a Range<usize>>,
) -> Result<Vec<(u32, Range<usize>)>> {
    let cuts: Vec<usize> = joined(places).iter().flat_map(|place| [place.start, place.end]).collect();
    tokenizer.ids_with_places(text, &cuts)
}

/// A text with `with` in each of `places`, which are in order as [`find`] gives them. Those that overlap are one.
pub fn swap<'a>(text: &str, places: impl IntoIterator<Item = &'a Range<usize>>, with: &str) -> String {
    let (mut swapped, mut end) = (String::new(), 0);
    for place in joined(places) {
        swapped += &text[end..place.start];
        swapped += with;
        end = place.end;
    }
    swapped + &text[end..]
}

/// Places in order, those that overlap as one.
pub(crate) fn joined<'a>(places: impl IntoIterator<Item = &'a Range<usize>>) -> Vec<Range<usize>> {
    let mut joined: Vec<Range<usize>> = Vec::new();
    for place in places {
        match joined.last_mut().filter(|last| place.start < last.end) {
            Some(last) => last.end = last.end.max(place.end),
            None => joined.push(place.clone()),
        }
    }
    joined
}

/// The bytes of a text from which a place in its folded form came.
fn written(folded: &NormalizedString, place: Range<usize>) -> Range<usize> {
    let text = folded.get_original();
    let bytes = folded.convert_offsets(normalizer::Range::Normalized(place));
    let Range { start, end } = bytes.expect("the place is within the text");
    // of several characters that became one, only the first has a place
    let mut last = GraphemeCursor::new(end, text.len(), true);
    match last.is_boundary(text, 0) {
        Ok(false) => start..last.next_boundary(text, 0).ok().flatten().unwrap_or(end),
        _ => start..end,
    }
}

/// Whether what stands at `place` of a folded text is a word of its own there, by the rules above.
fn stands_alone(text: &str, place: &Range<usize>) -> bool {
    let whole = |at| GraphemeCursor::new(at, text.len(), true).is_boundary(text, 0) == Ok(true);
    if !whole(place.start) || !whole(place.end) {
        return false;
    }
    // what a character is, its first sign says; the others are accents
    let sign = |character: Option<&str>| character.and_then(|c| c.chars().next());
    let tag = &text[place.clone()];
    let mut inner = tag.graphemes(true);
    let (first, before) = (sign(inner.next()), sign(text[..place.start].graphemes(true).next_back()));
    let last = sign(inner.next_back()).or(first);
    let after = sign(text[place.end..].graphemes(true).next());
    let part = |inside: Option<char>, outside: Option<char>| {
        inside.zip(outside).is_some_and(|(inside, outside)| goes_on(tag, inside, outside))
    };
    !part(first, before) && !part(last, after)
}

/// Whether a tag that has `inside` at its edge is but a part of something where `outside` comes next.
fn goes_on(tag: &str, inside: char, outside: char) -> bool {
    if outside == '_' || inside == '_' && is_word(outside) {
        return true;
    }
    if is_word(inside) && is_word(outside) {
        return !is_spaceless(inside) && !is_spaceless(outside);
    }
    inside == outside && inside.is_ascii_punctuation() && inside != ',' && !has_partner(tag, inside)
}

/// Whether `bracket`, at the edge of a tag, is one that the tag closes or opens itself.
fn has_partner(tag: &str, bracket: char) -> bool {
    let pairs = ["()", "[]", "{}", "<>"];
    let Some((open, close)) =
        pairs.iter().find(|pair| pair.contains(bracket)).and_then(|pair| pair.split_at_checked(1))
    else {
        return false;
    };
    tag.matches(open).count() == tag.matches(close).count()
}

/// Characters that nobody would write again: controls, and marks of no width that join nothing. White space of any kind is a space.
fn is_unseen(c: char) -> bool {
    let marks = ['\u{ad}', '\u{61c}', '\u{180e}', '\u{200b}', '\u{200e}', '\u{200f}', '\u{feff}'];
    let ranges = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}');
    c.is_control() && !c.is_whitespace() || marks.contains(&c) || ranges
}

/// Of what words are made.
fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether it is of a script that puts no spaces between words. The marks that make a vowel long belong to no script.
fn is_spaceless(c: char) -> bool {
    use Script::{Bopomofo, Han, Hangul, Hiragana, Katakana, Khmer, Lao, Myanmar, Thai};
    matches!(c, 'ー' | 'ｰ')
        || matches!(c.script(), Han | Hiragana | Katakana | Hangul | Bopomofo | Thai | Lao | Khmer | Myanmar)
}

/// The tags that the metadata of a LoRA file names: those of `strata_tags`, a JSON list; else those of
/// `modelspec.trigger_phrase`, with commas between them; else none.
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
    let phrase = metadata.get("modelspec.trigger_phrase").map_or("", String::as_str);
    // white space of any kind is a space to the text encoder
    let words = phrase.split(',').map(|tag| tag.split_whitespace().collect::<Vec<_>>().join(" "));
    Ok(words.filter(|tag| !tag.is_empty()).collect())
}
