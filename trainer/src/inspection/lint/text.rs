//! Captions and tags as the text encoder reads them.

use std::ops::Range;
use std::sync::Arc;

use strata_model::{Checkpoint, ClipTokenizer, Prompt, Reading, Tag, tokens};

use super::Nearest;
use crate::Result;

/// Tokens of fewer letters are no words that mean anything: nearly every pair of letters is in CLIP's vocabulary.
const LETTERS_OF_A_WORD: usize = 3;

/// What the linter needs of a model: its tokenizer, and the vectors that its tokens begin as.
pub struct Text {
    tokenizer: Arc<ClipTokenizer>,
    /// [vocabulary, width], row-major.
    table: Vec<f32>,
    width: usize,
}

/// A text in tokens and in words.
pub(super) struct Encoded<'a> {
    pub text: &'a str,
    /// No BOS or EOS, not cut.
    pub ids: Vec<u32>,
    pub words: Vec<Word>,
}

/// A word, or a run of punctuation.
pub(super) struct Word {
    /// In lower case, as the text encoder sees it.
    pub text: String,
    /// Where it stands.
    pub bytes: Range<usize>,
    /// Its tokens.
    pub tokens: Range<usize>,
}

impl Text {
    /// Reads what is needed of a model. No GPU takes part.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) where tokenizer or text encoder are missing, damaged or of another kind.
    pub fn open(checkpoint: &Checkpoint) -> Result<Self> {
        let (table, width) = checkpoint.token_vectors()?;
        Ok(Self { tokenizer: Arc::new(checkpoint.tokenizer()?), table, width })
    }

    pub(super) fn tokenizer(&self) -> &Arc<ClipTokenizer> {
        &self.tokenizer
    }

    /// How many tokens of a caption the text encoder reads at once: 75.
    pub(super) fn limit(&self) -> usize {
        self.tokenizer.max_length() - 2
    }

    pub(super) fn vocabulary_size(&self) -> usize {
        self.table.len() / self.width
    }

    pub(super) fn token(&self, id: u32) -> String {
        self.tokenizer.token(id).unwrap_or_default()
    }

    /// A caption with the tags of features in it, as training reads it.
    pub(super) fn read(&self, caption: &str, tags: &[(usize, &Tag)]) -> Result<Prompt> {
        Ok(Prompt::read(&self.tokenizer, caption, tags, Reading::Literal)?)
    }

    /// The text in tokens and words, of which none reaches over the edge of a tag.
    pub(super) fn encode<'a>(&self, text: &'a str, tags: &[&Range<usize>]) -> Result<Encoded<'a>> {
        let (ids, places): (Vec<u32>, Vec<Range<usize>>) =
            tokens(&self.tokenizer, text, tags.iter().copied())?.into_iter().unzip();
        let mut words = Vec::new();
        let mut start = 0;
        for end in 1..=ids.len() {
            if end == ids.len() || self.tokenizer.ends_word(ids[end - 1]) {
                let bytes = places[start].start..places[end - 1].end;
                let word = text.get(bytes.clone()).unwrap_or_default().to_lowercase();
                words.push(Word { text: word, bytes, tokens: start..end });
                start = end;
            }
        }
        Ok(Encoded { text, ids, words })
    }

    /// The word that a token is by itself, where it is one that means something.
    pub(super) fn known_word(&self, id: u32) -> Option<String> {
        let mut word = self.token(id);
        let letters = word.strip_suffix("</w>")?.len();
        word.truncate(letters);
        (letters >= LETTERS_OF_A_WORD && word.bytes().all(|b| b.is_ascii_alphabetic())).then_some(word)
    }

    /// The `n` words whose vectors have the largest cosine with the mean of the tag's, its own words left out.
    ///
    /// These are the vectors before the text encoder: what the tag begins as, not what it means in a sentence.
    pub(super) fn nearest_words(&self, tag: &[u32], n: usize) -> Vec<Nearest> {
        let row = |id: u32| self.table.chunks_exact(self.width).nth(id as usize);
        let mut mean = vec![0.0; self.width];
        for vector in tag.iter().filter_map(|&id| row(id)) {
            mean.iter_mut().zip(vector).for_each(|(sum, v)| *sum += v);
        }
        let mut nearest: Vec<Nearest> = (0..self.vocabulary_size() as u32)
            .zip(self.table.chunks_exact(self.width))
            .filter(|(id, _)| !tag.contains(id))
            .filter_map(|(id, vector)| {
                let cosine = cosine(&mean, vector)?;
                Some(Nearest { word: self.known_word(id)?, cosine })
            })
            .collect();
        nearest.sort_by(|a, b| b.cosine.total_cmp(&a.cosine));
        nearest.truncate(n);
        nearest
    }
}

/// a·b / (|a| |b|); `None` where one of them has no direction.
fn cosine(a: &[f32], b: &[f32]) -> Option<f32> {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    cosine.is_finite().then_some(cosine)
}
