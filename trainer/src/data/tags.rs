//! The tags of a feature, found in texts and taken out of them.

use std::sync::Arc;

use strata_model::{ClipTokenizer, Key, Tag, find, swap};

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
    /// [`Tag::new`]'s.
    pub fn new(tokenizer: &Arc<ClipTokenizer>, tags: &[String]) -> Result<Self> {
        let tags = tags.iter().map(|tag| Tag::new(tokenizer, tag)).collect::<Result<_, _>>()?;
        Ok(Self { tokenizer: tokenizer.clone(), tags })
    }

    /// The same, each with these word vectors.
    pub(crate) fn with_key(&self, key: &Arc<Key>) -> Self {
        let tags = self.tags.iter().map(|tag| tag.clone().with_key(key.clone())).collect();
        Self { tags, ..self.clone() }
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Tag> {
        self.tags.iter()
    }

    /// Whether a caption carries one of them, as a prompt must for the feature to be on.
    ///
    /// # Errors
    /// The text cannot be encoded.
    pub fn are_in(&self, text: &str) -> Result<bool> {
        Ok(!find(&self.tokenizer, text, &self.tags)?.is_empty())
    }

    /// A text with something else, or nothing, in the place of its tags, and no comma left alone.
    ///
    /// # Errors
    /// The text cannot be encoded.
    pub fn swap(&self, text: &str, with: &str) -> Result<String> {
        let found = find(&self.tokenizer, text, &self.tags)?;
        let swapped = swap(text, found.iter().map(|found| &found.bytes), with);
        let parts = swapped.split(',').map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "));
        Ok(parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", "))
    }
}
