//! What is wrong with the captions: tags that lack or stray, and words that tie the feature to something.

use std::collections::{BTreeMap, BTreeSet};

use strata_model::Tag;

use super::report::{Code, Concerned, Finding};
use super::text::Word;
use super::{Caption, ENOUGH, NEARLY_ALL, Reading, Text};
use crate::{Picture, Result, Tags};

/// So many words, all equally frequent, is the least variety that teaches what does not belong to the feature: about
/// three things that vary (place, light, pose), each in three ways. Fewer captions need only one word each.
const VARIED_WORDS: usize = 8;

/// Words that only hold a sentence together. They are in all captions, and nothing in a picture is tied to them.
const STOP_WORDS: [&str; 46] = [
    "a", "an", "the", "this", "that", "these", "those", "some", "and", "or", "but", "of", "in", "on", "at",
    "by", "for", "with", "without", "from", "to", "into", "onto", "over", "under", "as", "is", "are", "was",
    "were", "be", "been", "has", "have", "it", "its", "his", "her", "their", "he", "she", "they", "there",
    "while", "who", "which",
];

/// What is wrong with the captions, or worth a note.
pub(super) fn check(readings: &[Reading], text: &Text) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for reading in readings {
        let tags: Vec<String> = reading.usable().map(|tag| tag.text().to_owned()).collect();
        let tags = Tags::new(text.tokenizer(), &tags)?;
        findings.extend(errors(reading.name(), &tags, reading.feature.pictures)?);
        findings.extend(foreign_tags(reading, readings));
        findings.extend(lengths(reading, text.limit()));
        findings.extend(repeated(reading));
        findings.extend(words(reading));
    }
    Ok(findings)
}

/// What would keep a feature from being learned by its tags at all: captions that are empty or carry none of them. One
/// finding of each kind, about all pictures that it concerns. A feature without tags can lack none.
///
/// # Errors
/// A caption cannot be encoded.
pub fn errors(feature: &str, tags: &Tags, pictures: &[Picture]) -> Result<Vec<Finding>> {
    let (mut empty, mut untagged) = (Vec::new(), Vec::new());
    for picture in pictures {
        if picture.caption.trim().is_empty() {
            empty.push(Concerned::new(&picture.path));
        } else if !tags.are_in(&picture.caption)? {
            untagged.push(Concerned::new(&picture.path));
        }
    }
    let message = "these captions are empty; write the tag and what else the picture shows".to_owned();
    let mut findings = Vec::from_iter(Finding::new(Code::EmptyCaption, feature, message).concerning(empty));
    let tags: Vec<String> = tags.iter().map(|tag| format!("`{}`", tag.text())).collect();
    if !tags.is_empty() {
        let message = format!(
            "these captions lack the tag {}, so that the feature is learned without it; write it in",
            tags.join(" or ")
        );
        findings.extend(Finding::new(Code::MissingTag, feature, message).concerning(untagged));
    }
    Ok(findings)
}

/// The finding about all pictures whose caption is `bad`, where there are any.
fn about(reading: &Reading, code: Code, message: String, bad: impl Fn(&Caption) -> bool) -> Option<Finding> {
    let files = reading.captioned().filter(|(_, caption)| bad(caption)).map(|(p, _)| Concerned::new(&p.path));
    Finding::new(code, reading.name(), message).concerning(files)
}

fn foreign_tags(reading: &Reading, readings: &[Reading]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (i, other) in readings.iter().enumerate() {
        for tag in other.usable().map(Tag::text) {
            let message = format!(
                "these captions carry `{tag}`, a tag of feature `{}`, which would be learned along; take it out, or move \
                 the picture to that feature",
                other.name()
            );
            let carries = |c: &Caption| c.foreign.iter().any(|m| m.feature == i && m.tag == tag);
            findings.extend(about(reading, Code::ForeignTag, message, carries));
        }
    }
    findings
}

fn lengths(reading: &Reading, limit: usize) -> Option<Finding> {
    let long = reading.captioned().filter_map(|(picture, caption)| {
        let (tokens, chunks) = (caption.encoded.ids.len(), caption.chunks);
        (chunks > 1).then(|| Concerned::noted(&picture.path, format!("{tokens} tokens in {chunks} chunks")))
    });
    let message = format!(
        "these captions are longer than the {limit} tokens that the text encoder reads at once; each is read in chunks, \
         which do not know of each other"
    );
    Finding::new(Code::LongCaption, reading.name(), message).concerning(long)
}

/// Captions that are the same to the text encoder, group by group.
fn repeated(reading: &Reading) -> Vec<Finding> {
    let mut groups: BTreeMap<&[u32], Vec<Concerned>> = BTreeMap::new();
    for (picture, caption) in reading.captioned().filter(|(_, caption)| !caption.encoded.ids.is_empty()) {
        groups.entry(&caption.encoded.ids).or_default().push(Concerned::new(&picture.path));
    }
    let mut groups: Vec<_> = groups.into_values().filter(|files| files.len() > 1).collect();
    groups.sort_by(|a, b| a[0].path.cmp(&b[0].path));
    let message = "these captions are the same, though the pictures differ; say what is different";
    let finding =
        |files| Finding::new(Code::DuplicateCaption, reading.name(), message.to_owned()).concerning(files);
    groups.into_iter().filter_map(finding).collect()
}

/// Words beside the tag: those that describe the feature, those that never change, and whether there are enough others.
fn words(reading: &Reading) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut described = BTreeSet::new();
    for phrase in &reading.describes {
        let message = format!(
            "these captions say `{}`, which describes the feature: what is said in words is not learned by the tag; take \
             it out",
            phrase.text
        );
        findings
            .extend(about(reading, Code::DescribingWord, message, |caption| says(caption, &phrase.words)));
        described.extend(phrase.words.iter().map(|word| stem(&word.text)));
    }
    let of_tags: BTreeSet<&str> = reading
        .tags
        .iter()
        .flat_map(|tag| &tag.encoded.words)
        .filter(|w| means_something(w))
        .map(|w| stem(&w.text))
        .collect();
    for word in of_tags.difference(&described) {
        let message = format!(
            "these captions have `{word}`, a word of the tag, outside it: the two will be mixed up; take it out, or make \
             up another tag"
        );
        let has = |caption: &Caption| free_words(caption).any(|w| stem(&w.text) == *word);
        findings.extend(about(reading, Code::TagWord, message, has));
    }
    described.extend(of_tags);
    findings.extend(variety(reading, &described));
    findings
}

/// Whether the captions say enough, and the same words not everywhere. Words in `described` are passed over.
fn variety(reading: &Reading, described: &BTreeSet<&str>) -> Vec<Finding> {
    let captions: Vec<&Caption> = reading.captions.iter().filter(|c| !c.encoded.ids.is_empty()).collect();
    let n = captions.len();
    if n < ENOUGH {
        return Vec::new();
    }
    // in how many captions each word is
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for caption in &captions {
        let words: BTreeSet<&str> =
            free_words(caption).filter(|w| means_something(w)).map(|w| w.text.as_str()).collect();
        words
            .into_iter()
            .filter(|w| !described.contains(stem(w)))
            .for_each(|w| *counts.entry(w).or_default() += 1);
    }
    let (constant, varying): (Vec<_>, Vec<_>) =
        counts.into_iter().partition(|(_, count)| *count as f64 >= NEARLY_ALL * n as f64);

    let mut findings = Vec::new();
    if !constant.is_empty() {
        let message = format!(
            "nearly all captions have {}: what these words show becomes part of the feature; vary them, or leave them out \
             of half of the captions",
            listing(&constant, n)
        );
        findings.push(Finding::new(Code::ConstantWord, reading.name(), message));
    }
    let (effective, least) = (effective_words(varying.iter().map(|(_, count)| *count)), n.min(VARIED_WORDS));
    if effective < least as f64 {
        let most = if varying.is_empty() { "none".to_owned() } else { listing(&varying, n) };
        let message = format!(
            "the captions say too little beside the tag, so that all else in the pictures is learned along with the \
             feature: their other words are worth {effective:.1} equally frequent ones, and should be worth {least} \
             ({most}); say what differs from picture to picture"
        );
        findings.push(Finding::new(Code::LittleVariety, reading.name(), message));
    }
    findings
}

/// e to the entropy of the words' frequencies: how many equally frequent words would be as varied.
fn effective_words(counts: impl Iterator<Item = usize> + Clone) -> f64 {
    let total = counts.clone().sum::<usize>() as f64;
    if total == 0.0 {
        return 0.0;
    }
    let entropy: f64 = counts.map(|count| count as f64 / total).map(|p| -p * p.ln()).sum();
    entropy.exp()
}

/// `red` in 5 of 8, the most frequent first.
fn listing(counts: &[(&str, usize)], n: usize) -> String {
    const SHOWN: usize = 8;
    let mut counts = counts.to_vec();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let shown: Vec<String> =
        counts.iter().take(SHOWN).map(|(word, count)| format!("`{word}` in {count} of {n}")).collect();
    let more =
        if counts.len() > SHOWN { format!(" and {} more", counts.len() - SHOWN) } else { String::new() };
    shown.join(", ") + &more
}

/// Words that belong to no tag.
fn free_words<'a>(caption: &'a Caption) -> impl Iterator<Item = &'a Word> {
    caption.encoded.words.iter().filter(|word| !caption.in_a_tag(word))
}

/// Whether a caption says a phrase outside its tags.
fn says(caption: &Caption, phrase: &[Word]) -> bool {
    let same = |words: &[Word]| words.iter().zip(phrase).all(|(a, b)| stem(&a.text) == stem(&b.text));
    let free = |words: &[Word]| words.iter().all(|word| !caption.in_a_tag(word));
    !phrase.is_empty() && caption.encoded.words.windows(phrase.len()).any(|words| same(words) && free(words))
}

/// A word without the s of its plural; `hairs` says as much as `hair`.
fn stem(word: &str) -> &str {
    match word.strip_suffix('s') {
        Some(stem) if stem.len() >= 3 => stem,
        _ => word,
    }
}

/// Letters, at least two, and no stop word.
fn means_something(word: &Word) -> bool {
    let text = word.text.as_str();
    text.chars().all(char::is_alphabetic) && text.chars().nth(1).is_some() && !STOP_WORDS.contains(&text)
}
