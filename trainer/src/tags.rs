//! The tags of a feature, found in texts and taken out of them.

use std::sync::Arc;

use strata_model::{ClipTokenizer, Tag, places};

use crate::Result;

/// The tags of a feature.
#[derive(Clone)]
pub struct Tags {
    tokenizer: Arc<ClipTokenizer>,
    tags: Vec<Tag>,
}

impl Tags {
    /// Tags as a config has them.
    ///
    /// # Errors
    /// A tag has no token, or more than the text encoder reads.
    pub fn new(tokenizer: &Arc<ClipTokenizer>, tags: &[String]) -> Result<Self> {
        let tags = tags.iter().map(|tag| Tag::new(tokenizer, tag)).collect::<Result<_, _>>()?;
        Ok(Self { tokenizer: tokenizer.clone(), tags })
    }

    /// Whether a text carries one of them, as a prompt must for the feature to be on.
    ///
    /// # Errors
    /// The text cannot be encoded.
    pub fn are_in(&self, text: &str) -> Result<bool> {
        for tag in &self.tags {
            if !places(&self.tokenizer, text, tag)?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A text with something else, or nothing, in the place of its tags, and no comma left alone.
    ///
    /// # Errors
    /// The text cannot be encoded.
    pub fn swap(&self, text: &str, with: &str) -> Result<String> {
        let mut found = Vec::new();
        for tag in &self.tags {
            found.extend(places(&self.tokenizer, text, tag)?);
        }
        // the longest of those that begin together, and none that begins within another
        found.sort_by_key(|place| (place.start, std::cmp::Reverse(place.end)));
        let (mut swapped, mut end) = (String::new(), 0);
        for place in found.into_iter() {
            if place.start >= end {
                swapped += &text[end..place.start];
                swapped += with;
                end = place.end;
            }
        }
        swapped += &text[end..];
        let parts = swapped.split(',').map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "));
        Ok(parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", "))
    }
}
