//! What a key is worth, and the way to a better one.

use std::sync::Arc;

use nalgebra::DMatrixView;
use strata_engine::{DType, Tape, Tensor};
use strata_kernels::tape;
use strata_model::{Clip, Cx, Key, Prompt, Reading, Tag, TextEncoder};

use super::{Called, texts};
use crate::features::silence::Basis;
use crate::{Error, Result};

/// J = Σ ‖x P‖² / Σ ‖x‖² − λ Σ ‖y − y₀‖² / Σ ‖y₀‖²: x are the states at the tag's tokens, y those after it up to the end of
/// the text, and y₀ the same where an ordinary word has the tag's place. CLIP reads from left to right, so that a key chosen for
/// its own tokens alone unsettles all that is said after it.
pub(super) struct Objective<'a> {
    clip: &'a Clip,
    off: &'a Basis,
    contexts: Vec<Context>,
    /// Row-major [positions, C].
    positions: Vec<f32>,
    /// The root mean square of ordinary word vectors.
    pub length: f64,
}

/// A caption with its tag.
struct Context {
    /// Word plus position vectors, row-major [T, C]; of all of the chunk, an ordinary word in the tag's place.
    embedded: Vec<f32>,
    /// The first of the tag's tokens.
    at: usize,
    /// y₀, row-major.
    after: Vec<f32>,
}

/// J and what it is made of.
pub(super) struct Worth {
    /// Of the energy at the tag's tokens, what lies outside.
    pub share: f64,
    /// How far later states are from what they were, as a share of their energy.
    pub moved: f64,
    /// ∂J/∂vectors, row-major.
    pub gradient: Vec<f64>,
}

impl<'a> Objective<'a> {
    /// For keys of `count` vectors.
    ///
    /// # Errors
    /// No caption carries a tag, or the GPU fails.
    pub fn new(text: &'a TextEncoder, off: &'a Basis, called: &Called<'_>, count: usize) -> Result<Self> {
        let (clip, channels) = (text.clip(), off.channels());
        let positions = clip.position_vectors()?;
        let tokens = text.tokenizer().max_length();
        // an ordinary word of as many tokens as the key has
        let ordinary = match text.tokenizer().ids(called.class)? {
            ids if ids.is_empty() => called.tags[0].ids().to_vec(),
            ids => ids,
        };
        let ordinary: Vec<u32> = ordinary.into_iter().cycle().take(count).collect();
        let ordinary = clip.embed(&Tensor::from_u32(clip.gpu(), &ordinary, &[1, count])?)?.to_f32()?;
        let ordinary = ordinary.iter().zip(&positions).map(|(embedded, position)| embedded - position);
        let ordinary = Arc::new(Key::new(ordinary.collect(), channels)?);
        let tags: Vec<Tag> =
            called.tags.iter().map(|tag| (*tag).clone().with_key(ordinary.clone())).collect();
        let tags: Vec<(usize, &Tag)> = tags.iter().map(|tag| (0, tag)).collect();
        let (mut contexts, mut squares, mut words) = (Vec::new(), 0.0, 0);
        for caption in called.captions {
            let prompt = Prompt::read(text.tokenizer(), caption, &tags, Reading::Literal)?;
            // of a caption in several chunks, the first that has the tag
            let Some(mention) = prompt.mentions().first() else { continue };
            let chunk = mention.tokens.start / tokens;
            let ids = &prompt.ids()[chunk * tokens..][..tokens];
            let at = mention.tokens.start - chunk * tokens;
            let is_end = |id: &u32| *id == text.tokenizer().eos();
            let end = ids[at + count..].iter().position(is_end).map_or(tokens, |i| at + count + i + 1);
            let embedded = text.embed(std::slice::from_ref(&prompt))?.to_f32()?;
            let embedded = embedded[chunk * tokens * channels..][..tokens * channels].to_vec();
            let read =
                Tensor::from_f32(clip.gpu(), &embedded[..end * channels], &[1, end, channels], DType::F32)?;
            let states = clip.encode(&Cx::new(&Tape::off()), read, 0)?.to_f32()?;
            let own = embedded.iter().zip(&positions).take(at * channels).skip(channels);
            squares += own.map(|(e, p)| f64::from(e - p).powi(2)).sum::<f64>();
            words += at - 1;
            contexts.push(Context { embedded, at, after: states[(at + count) * channels..].to_vec() });
        }
        if contexts.is_empty() {
            return Err(Error::Dataset(format!("no caption has one of the tags {:?}", texts(called.tags))));
        }
        // a tag that is the first word of every caption stands beside no other
        let length = if words > 0 { (squares / (words * channels) as f64).sqrt() } else { rms(&positions) };
        Ok(Self { clip, off, contexts, positions, length })
    }

    /// Captions that have a tag.
    pub fn len(&self) -> usize {
        self.contexts.len()
    }

    /// Of vectors, row-major [n, C], in some of the captions, with `keep` for λ.
    ///
    /// # Errors
    /// The GPU fails.
    pub fn worth(&self, vectors: &[f32], captions: impl Iterator<Item = usize>, keep: f64) -> Result<Worth> {
        let (clip, channels) = (self.clip, self.off.channels());
        let count = vectors.len() / channels;
        let batch: Vec<&Context> = captions.map(|i| &self.contexts[i]).collect();
        let ends = batch.iter().map(|context| context.at + count + context.after.len() / channels);
        // tokens see only those before them
        let tokens = ends.max().unwrap_or(1);
        let mut embedded = Vec::with_capacity(batch.len() * tokens * channels);
        for context in &batch {
            let start = embedded.len() + context.at * channels;
            embedded.extend(&context.embedded[..tokens * channels]);
            let own = embedded[start..].iter_mut().zip(vectors).zip(&self.positions[context.at * channels..]);
            own.for_each(|((value, vector), position)| *value = vector + position);
        }
        let shape = [batch.len(), tokens, channels];
        let embedded = Tensor::from_f32(clip.gpu(), &embedded, &shape, DType::F32)?;
        let tape: Tape = tape();
        tape.track(&embedded);
        let states = clip.encode(&Cx::new(&tape), embedded.clone(), 0)?;
        let values = states.to_f32()?;

        let rows = |i: usize| &values[i * tokens * channels..][..tokens * channels];
        let (mut all, mut kept, mut moved, mut plain) = (0.0, 0.0, 0.0, 0.0);
        for (i, context) in batch.iter().enumerate() {
            let (own, after) = rows(i)[context.at * channels..].split_at(count * channels);
            for state in own.chunks_exact(channels) {
                all += energy(state);
                kept += energy(&outside(self.off, state));
            }
            moved += after.iter().zip(&context.after).map(|(y, y0)| f64::from(y - y0).powi(2)).sum::<f64>();
            plain += energy(&context.after);
        }
        let (share, moved) = (kept / all, moved / plain);
        // Σ ‖x‖² times the gradient: numbers of a size that f32 and the way back are at ease with
        let mut upstream = vec![0.0; values.len()];
        for (i, context) in batch.iter().enumerate() {
            let start = (i * tokens + context.at) * channels;
            for at in (start..start + count * channels).step_by(channels) {
                let state = &values[at..at + channels];
                let kept = outside(self.off, state);
                let by = kept.iter().zip(state).map(|(k, x)| 2.0 * (f64::from(*k) - share * f64::from(*x)));
                upstream[at..].iter_mut().zip(by).for_each(|(u, by)| *u = by as f32);
            }
            let start = start + count * channels;
            let by = values[start..].iter().zip(&context.after);
            let by = by.map(|(y, y0)| -2.0 * keep * (all / plain) * f64::from(y - y0));
            upstream[start..].iter_mut().zip(by).for_each(|(u, by)| *u = by as f32);
        }
        let upstream = Tensor::from_f32(clip.gpu(), &upstream, &shape, DType::F32)?;
        let grads = tape.backward(&states, upstream)?;
        let arrived = grads.get(&embedded).map(Tensor::to_f32).transpose()?.unwrap_or_default();
        let mut gradient = vec![0.0; vectors.len()];
        for (i, context) in batch.iter().enumerate() {
            let from = &arrived[(i * tokens + context.at) * channels..][..vectors.len()];
            gradient.iter_mut().zip(from).for_each(|(sum, g)| *sum += f64::from(*g) / all);
        }
        Ok(Worth { share, moved, gradient })
    }
}

/// x P.
pub(super) fn outside(off: &Basis, state: &[f32]) -> Vec<f32> {
    let basis = DMatrixView::from_slice(off.rows(), off.channels(), off.rows().len() / off.channels());
    let mut rest: Vec<f64> = state.iter().map(|x| f64::from(*x)).collect();
    for direction in basis.column_iter() {
        let along: f64 = direction.iter().zip(state).map(|(u, x)| f64::from(*u) * f64::from(*x)).sum();
        rest.iter_mut().zip(direction.iter()).for_each(|(rest, u)| *rest -= along * f64::from(*u));
    }
    rest.into_iter().map(|x| x as f32).collect()
}

pub(super) fn energy(state: &[f32]) -> f64 {
    state.iter().map(|x| f64::from(*x).powi(2)).sum()
}

pub(super) fn rms(vector: &[f32]) -> f64 {
    (energy(vector) / vector.len() as f64).sqrt()
}
