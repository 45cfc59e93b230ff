//! Text states of many prompts, summed up as they come.

use std::collections::BTreeSet;

use nalgebra::{DMatrix, DVector};

use crate::{Error, Result};
use strata_model::progress::bar;
use strata_model::{Prompt, Reading, Tag, TextEncoder};

/// Prompts that go through CLIP at once.
pub(crate) const PROMPTS_AT_ONCE: usize = 8;

/// What is kept of the text states of prompts: the state of BOS, and the sum of x xᵀ over all others. The states are
/// those that cross-attention sees: all positions, padding among them.
#[derive(Debug, Clone)]
pub struct States {
    /// How many chunks of prompts there are.
    pub(super) prompts: usize,
    /// States per chunk beside BOS.
    pub(super) others: usize,
    /// [C].
    pub(super) bos: DVector<f64>,
    /// [C, C], of the states beside BOS.
    pub(super) second: DMatrix<f64>,
}

impl States {
    /// Runs the text encoder over prompts, in which `tags` of the run may stand. Equal ones count once, brackets are no weights, and of prompts in several chunks
    /// each chunk counts. Shows progress on stderr where that is a terminal.
    ///
    /// # Errors
    /// There is no prompt, or the GPU fails.
    pub fn collect(text: &TextEncoder, prompts: &[String], tags: &[(usize, &Tag)]) -> Result<Self> {
        let mut seen = BTreeSet::new();
        let prompts = prompts.iter().filter(|prompt| seen.insert(*prompt));
        let read = |prompt: &String| Prompt::read(text.tokenizer(), prompt, tags, Reading::Literal);
        let prompts = prompts.map(read).collect::<Result<Vec<_>, _>>()?;
        if prompts.is_empty() {
            return Err(Error::Silence("no prompts to be silent on; give a bank of them".into()));
        }
        let progress = bar(prompts.len() as u64, "prompts");
        let (tokens, channels) = (text.tokenizer().max_length(), text.clip().config().hidden_size);
        let mut states = Self {
            prompts: prompts.iter().map(Prompt::chunks).sum(),
            others: tokens - 1,
            bos: DVector::zeros(channels),
            second: DMatrix::zeros(channels, channels),
        };
        for alike in prompts.chunk_by(|a, b| a.chunks() == b.chunks()) {
            for batch in alike.chunks(PROMPTS_AT_ONCE) {
                let hidden = text.encode(batch, 0)?.states.to_f32()?;
                for chunk in hidden.chunks_exact(tokens * channels) {
                    states.add(chunk);
                }
                progress.inc(batch.len() as u64);
            }
        }
        progress.finish_and_clear();
        if !states.second.iter().chain(&states.bos).all(|v| v.is_finite()) {
            return Err(Error::Silence(
                "the text encoder gives states that are not finite; its weights are damaged".into(),
            ));
        }
        Ok(states)
    }

    /// Adds the states of one chunk, [tokens, C].
    fn add(&mut self, text: &[f32]) {
        let channels = self.bos.len();
        let (bos, others) = text.split_at(channels);
        // The same in every prompt but for rounding.
        let share = 1.0 / self.prompts as f64;
        self.bos.iter_mut().zip(bos).for_each(|(sum, x)| *sum += share * f64::from(*x));
        let others = DMatrix::from_iterator(channels, self.others, others.iter().map(|x| f64::from(*x)));
        self.second.gemm(1.0, &others, &others.transpose(), 1.0);
    }

    /// C: the width of a state.
    pub fn channels(&self) -> usize {
        self.bos.len()
    }

    /// The state of the first token.
    pub fn bos(&self) -> &[f64] {
        self.bos.as_slice()
    }

    /// The same states, each reduced to its part within a span.
    #[must_use]
    pub fn within(&self, span: &super::Basis) -> Self {
        let u = span.matrix();
        let onto = u.tr_mul(&u);
        Self { bos: &onto * &self.bos, second: &onto * &self.second * &onto, ..self.clone() }
    }

    /// Σ x xᵀ over all states, BOS among them.
    pub(super) fn all(&self) -> DMatrix<f64> {
        &self.second + self.prompts as f64 * &self.bos * self.bos.transpose()
    }
}
