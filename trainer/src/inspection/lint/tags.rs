//! What is wrong with the tags themselves.

use strata_model::{Found, Tag, find};

use super::report::{Code, FeatureSummary, Finding};
use super::text::Encoded;
use super::{OwnTag, Reading, Text};
use crate::Result;

pub(super) fn check(readings: &[Reading], summaries: &[FeatureSummary], text: &Text) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for (i, (reading, summary)) in readings.iter().zip(summaries).enumerate() {
        if reading.tags.is_empty() {
            let message = "the feature has no tag, so that nothing can call it; give it one".to_owned();
            findings.push(Finding::new(Code::EmptyTag, reading.name(), message));
        }
        for (OwnTag { encoded, tag }, summary) in reading.tags.iter().zip(&summary.tags) {
            let tag = match tag {
                Ok(tag) => tag,
                Err(why) => {
                    let code = if encoded.ids.is_empty() { Code::EmptyTag } else { Code::UnusableTag };
                    findings.push(Finding::new(code, reading.name(), why.to_string()));
                    continue;
                }
            };
            findings.extend(known_words(reading.name(), encoded, &summary.evidence(), text));
            for (j, other) in readings.iter().enumerate().filter(|(j, _)| *j != i) {
                for of in other.usable() {
                    let collision = collision(tag, of, other.name(), i < j, text)?;
                    findings
                        .extend(collision.map(|(code, message)| Finding::new(code, reading.name(), message)));
                }
            }
        }
    }
    Ok(findings)
}

/// A tag that is, or is within, a tag of another feature. That two are the same is said once, where `first`.
fn collision(tag: &Tag, other: &Tag, of: &str, first: bool, text: &Text) -> Result<Option<(Code, String)>> {
    let (ours, theirs) = (tag.text(), other.text());
    if tag.ids() == other.ids() {
        let message = format!(
            "tag `{ours}` has the tokens of `{theirs}`, a tag of feature `{of}` (capital letters make no difference), so \
             that the text encoder cannot tell them apart; rename one of them"
        );
        return Ok(first.then_some((Code::SameTag, message)));
    }
    let found = find(text.tokenizer(), theirs, [tag])?;
    let Some(Found { bytes, .. }) = found.first() else { return Ok(None) };
    let how = if bytes.start == 0 { "is the beginning of" } else { "is contained in" };
    let message = format!(
        "tag `{ours}` {how} `{theirs}`, a tag of feature `{of}`, so that each prompt with `{theirs}` calls both; rename \
         one of them"
    );
    Ok(Some((Code::ContainedTag, message)))
}

/// Words in a tag that the base model knows. It draws them already, and what is trained into the tag leaks into every
/// prompt that has these words.
fn known_words(feature: &str, tag: &Encoded, evidence: &str, text: &Text) -> Option<Finding> {
    if tag.ids.len() == 1 {
        let size = text.vocabulary_size();
        let message = format!(
            "tag `{}` is one token of the vocabulary, so that the base model has a meaning for it, the stronger the lower \
             its id is among {size} ({evidence}); make up a word that splits into several tokens",
            tag.text
        );
        return Some(Finding::new(Code::VocabularyTag, feature, message));
    }
    let known: Vec<String> = tag
        .words
        .iter()
        .filter(|word| word.tokens.len() == 1)
        .filter_map(|word| text.known_word(tag.ids[word.tokens.start]))
        .collect();
    if known.is_empty() {
        return None;
    }
    let message = format!(
        "tag `{}` has words that the base model knows and will draw: {} ({evidence}); make up a word instead",
        tag.text,
        known.join(", ")
    );
    Some(Finding::new(Code::OrdinaryTag, feature, message))
}
