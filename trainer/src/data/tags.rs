//! The tags of a feature, found in texts and taken out of them.

use std::sync::Arc;

use strata_model::{ClipTokenizer, Tag, find_in, swap};

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
            if !find_in(&self.tokenizer, text, tag)?.is_empty() {
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
        let swapped = swap(&self.tokenizer, text, &self.tags, with)?;
        let parts = swapped.split(',').map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "));
        Ok(parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", "))
    }
}
