//! What the text encoder says about captions and prompts, computed once before training.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use strata_model::progress::bar;
use strata_model::{Reading, Tag, TextEncoder};

use crate::{Error, Result};

/// Text states, in host memory and f32. Texts are literal, as captions are: brackets are no weights. Those of over 75 tokens
/// are read in chunks, as at generation.
#[derive(Debug, Clone)]
pub struct Texts {
    /// Of each text its chunks, one after the other.
    states: BTreeMap<String, Vec<f32>>,
    /// Of a chunk that says nothing.
    nothing: Vec<f32>,
    /// Tokens of a chunk, and channels.
    shape: [usize; 2],
}

impl Texts {
    /// Of states that are there: those of each text, whole chunks of `[tokens, channels]` values, and those of a chunk that
    /// says nothing.
    pub fn new(states: BTreeMap<String, Vec<f32>>, nothing: Vec<f32>, shape: [usize; 2]) -> Self {
        Self { states, nothing, shape }
    }

    /// Runs the text encoder over texts; equal ones count once. `tags` are those of the run, so that texts come to the same
    /// tokens as in prompts at generation.
    ///
    /// # Errors
    /// States are not finite, or the GPU fails.
    pub fn encode(text: &TextEncoder, texts: &BTreeSet<String>, tags: &[(usize, &Tag)]) -> Result<Self> {
        let progress = bar(texts.len() as u64, "captions");
        let states = |caption: &str| -> Result<(Vec<f32>, [usize; 2])> {
            let prompts = text.read(&[caption], Reading::Literal, tags)?;
            let states = text.encode(&prompts, 0)?.states;
            let values = states.to_f32()?;
            if !values.iter().all(|v| v.is_finite()) {
                return Err(Error::Dataset(format!(
                    "the text encoder gives states that are not finite for {caption:?}; its weights are damaged"
                )));
            }
            Ok((values, [states.rows() / prompts[0].chunks(), states.last()]))
        };
        let (nothing, shape) = states("")?;
        let mut encoded = Self::new(BTreeMap::new(), nothing, shape);
        for caption in texts {
            encoded.states.insert(caption.clone(), states(caption)?.0);
            progress.inc(1);
        }
        progress.finish_and_clear();
        Ok(encoded)
    }

    /// Chunks of the longest of some texts; at least one.
    ///
    /// # Errors
    /// A text was not among those encoded.
    pub fn chunks<'a>(&self, texts: impl IntoIterator<Item = &'a str>) -> Result<usize> {
        texts.into_iter().try_fold(1, |most, text| Ok(most.max(self.own(text)?.len() / self.nothing.len())))
    }

    /// Tokens and channels of the states of a text that is brought to so many chunks.
    pub fn shape_of(&self, chunks: usize) -> [usize; 2] {
        [self.shape[0] * chunks, self.shape[1]]
    }

    /// The states of a text, row-major tokens × channels, with chunks that say nothing behind it until there are so many.
    ///
    /// # Errors
    /// The text was not among those encoded, or is longer.
    pub fn get(&self, text: &str, chunks: usize) -> Result<Cow<'_, [f32]>> {
        let own = self.own(text)?;
        let missing = (chunks * self.nothing.len()).checked_sub(own.len());
        match missing {
            Some(0) => Ok(Cow::Borrowed(own)),
            Some(_) => {
                let mut states = own.to_vec();
                while states.len() < chunks * self.nothing.len() {
                    states.extend(&self.nothing);
                }
                Ok(Cow::Owned(states))
            }
            None => Err(Error::Dataset(format!(
                "{text:?} has {} chunks of {} tokens, more than the {chunks} there is room for",
                own.len() / self.nothing.len(),
                self.shape[0]
            ))),
        }
    }

    fn own(&self, text: &str) -> Result<&[f32]> {
        let missing = || Error::Dataset(format!("{text:?}: was not encoded before the training began"));
        self.states.get(text).map(Vec::as_slice).ok_or_else(missing)
    }
}
