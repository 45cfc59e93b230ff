//! A key: word vectors for a tag, found before any picture is looked at, whose text states lie where those of ordinary
//! text do not.
//!
//! A LoRA on cross-attention's keys and values hears text through `down` alone. What [`silence`](super::silence) takes out
//! of `down` is what it cannot hear: ordinary text, and with it an ordinary word such as a tag, whose states lie among the
//! others. A key moves the tag out of there. With P = I − Q Qᵀ, Q the basis of ordinary text, it maximises the share of the
//! energy that P keeps of the states x at the tag's tokens, Σ ‖x P‖² / Σ ‖x‖², over captions that carry the tag; CLIP is
//! frozen, and the gradient goes through it to the vectors (textual inversion, Gal et al., arXiv 2208.01618, without
//! pictures). The file stays a plain LoRA, beside a plain textual-inversion file, and is silent in every program.

use std::sync::Arc;

use nalgebra::{DMatrix, DMatrixView};
use strata_engine::{DType, Tape, Tensor};
use strata_kernels::tape;
use strata_model::noise::{Bits, normal};
use strata_model::progress::bar;
use strata_model::{Clip, Cx, Key, Prompt, Reading, Tag, TextEncoder};

use crate::config::KeyConfig;
use crate::features::silence::{Basis, States, principal};
use crate::noise::Stream;
use crate::{Error, Result};

/// Captions that go through CLIP in one step.
const BATCH: usize = 6;
/// Of an ordinary word vector's root mean square, in one step.
const RATE: f64 = 0.05;
const BETAS: [f64; 2] = [0.9, 0.999];
/// Of ordinary text at most so much energy should be left where the key lies.
const LEFT: f64 = 0.01;
/// The rank of the basis is a multiple of this where the config does not say it.
const RANKS: usize = 8;
/// One of so many ordinary prompts is not in the basis, but tells how much of ordinary text it leaves.
const HELD_OUT: usize = 8;
/// Directions that the states at a tag's tokens mostly lie in.
const SPAN: usize = 4;

/// What text states of ordinary prompts are made of.
pub(crate) struct Ordinary {
    /// Those the basis is of.
    pub states: States,
    held_out: States,
}

/// What a search came to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Found {
    pub key: Arc<Key>,
    /// Directions of ordinary text that are kept off, beside BOS.
    pub rank: usize,
    /// Share of the energy of held-out ordinary text that lies outside them.
    pub ordinary: f64,
    /// The same of the states at the tag's tokens, before and with the key.
    pub before: f64,
    pub with: f64,
}

impl Ordinary {
    /// Runs the text encoder over prompts without the tag.
    pub fn collect(text: &TextEncoder, prompts: &[String]) -> Result<Self> {
        let every = |held: bool| {
            let some = prompts.iter().enumerate().filter(|(i, _)| (i % HELD_OUT == HELD_OUT - 1) == held);
            some.map(|(_, prompt)| prompt.clone()).collect::<Vec<_>>()
        };
        Ok(Self {
            states: States::collect(text, &every(false), &[])?,
            held_out: States::collect(text, &every(true), &[])?,
        })
    }

    /// BOS and so many directions, or as few as leave less than [`LEFT`].
    pub fn basis(&self, rank: Option<usize>) -> Result<Basis> {
        if let Some(rank) = rank {
            return Basis::new(&self.states, rank);
        }
        let all = Basis::new(&self.states, self.states.channels().saturating_sub(2))?;
        let mut ranks = (RANKS..all.rank()).step_by(RANKS);
        let rank = ranks.find(|rank| all.first(*rank).outside(&self.held_out) < LEFT);
        Ok(all.first(rank.unwrap_or(all.rank() / 2)))
    }
}

impl Found {
    /// How much of its effect the feature has on ordinary text, if a LoRA hears all directions outside alike.
    pub fn expected_leak(&self) -> f64 {
        self.ordinary / self.with
    }

    /// For people, before training.
    pub fn summary(&self, name: &str) -> String {
        format!(
            "{name}: a key of {} vectors keeps off BOS and {} directions of ordinary text. Outside them lie {:.2} % of \
             ordinary text, {:.2} % of the tag without a key and {:.1} % with it; expected leak in any program {:.3}",
            self.key.count(),
            self.rank,
            100.0 * self.ordinary,
            100.0 * self.before,
            100.0 * self.with,
            self.expected_leak()
        )
    }
}

/// A caption up to the end of its tag, whose later tokens the tag does not see.
struct Context {
    /// Word plus position vectors, row-major [T, C]; of all of the chunk.
    embedded: Vec<f32>,
    /// The first of the tag's tokens.
    at: usize,
}

/// Looks for the key of a feature's tags, which have it in common. `off` is what it has to keep off, `ordinary` what was left out of that.
///
/// # Errors
/// No caption carries a tag, nothing was found, or the GPU fails.
pub(crate) fn search(
    text: &TextEncoder,
    config: &KeyConfig,
    ordinary: &Ordinary,
    off: &Basis,
    tags: &[&Tag],
    captions: &[&str],
    seed: u64,
) -> Result<Found> {
    let (clip, channels) = (text.clip(), off.channels());
    let positions = clip.position_vectors()?;
    let (contexts, length) = contexts(text, tags, captions, config.vectors, &positions)?;
    let before = share(text, off, tags, captions)?;
    let mut vectors = vec![0.0; config.vectors * channels];
    normal(seed, Stream::Key, 0, 0, &mut vectors);
    vectors.iter_mut().for_each(|v| *v *= length as f32);
    let (mut first, mut second) = (vec![0.0; vectors.len()], vec![0.0; vectors.len()]);
    let progress = bar(config.steps, "key");
    let mut with = 0.0;
    for step in 0..config.steps {
        let drawn = |i| {
            let n = contexts.len() as u64;
            &contexts[Bits::new(seed, Stream::Key, step + 1, i).below(n) as usize]
        };
        let batch: Vec<&Context> = (0..BATCH as u64).map(drawn).collect();
        let (kept, gradient) = gradient(clip, off, &batch, &vectors, &positions)?;
        if !kept.is_finite() {
            return Err(Error::Silence(
                "the search for a key met text states that are not finite; the text encoder's weights are damaged".into(),
            ));
        }
        with = kept;
        // Adam, at a rate that falls to 0 along a cosine
        let done = step as f64 / config.steps as f64;
        let rate = RATE * length * 0.5 * (1.0 + libm::cos(std::f64::consts::PI * done));
        let [a, b] = BETAS;
        let corrected = |beta: f64| 1.0 - libm::pow(beta, (step + 1) as f64);
        for (i, g) in gradient.into_iter().enumerate() {
            first[i] = a * first[i] + (1.0 - a) * g;
            second[i] = b * second[i] + (1.0 - b) * g * g;
            let moved = (first[i] / corrected(a)) / ((second[i] / corrected(b)).sqrt() + 1e-12);
            vectors[i] += (rate * moved) as f32;
        }
        for vector in vectors.chunks_exact_mut(channels) {
            let own = rms(vector);
            let most = config.max_length * length;
            if own > most {
                vector.iter_mut().for_each(|v| *v *= (most / own) as f32);
            }
        }
        progress.set_message(format!("outside {:.1} %", 100.0 * kept));
        progress.inc(1);
    }
    progress.finish_and_clear();
    if with <= before {
        return Err(Error::Silence(format!(
            "no key was found for {:?}: {:.1} % of its text states lie outside ordinary text without one, and {:.1} % \
             with the best; raise key.steps or key.max_length, or lower key.rank",
            texts(tags),
            100.0 * before,
            100.0 * with
        )));
    }
    let key = Arc::new(Key::new(vectors, channels)?);
    let keyed: Vec<Tag> = tags.iter().map(|tag| (*tag).clone().with_key(key.clone())).collect();
    let with = share(text, off, &keyed.iter().collect::<Vec<_>>(), captions)?;
    let outside = off.outside(&ordinary.held_out);
    Ok(Found { key, rank: off.rank(), ordinary: outside, before, with })
}

/// The directions outside `off` in which the states at the tokens of keyed tags mostly lie, row-major.
///
/// # Errors
/// The GPU fails.
pub(crate) fn span(text: &TextEncoder, off: &Basis, tags: &[&Tag], captions: &[&str]) -> Result<Vec<f32>> {
    let mut second = DMatrix::zeros(off.channels(), off.channels());
    for state in states(text, tags, captions)? {
        let outside = outside(off, &state);
        let x = DMatrix::from_row_slice(1, outside.len(), &outside);
        second.gemm(1.0, &x.transpose(), &x, 1.0);
    }
    let (_, directions) = principal(&second)?;
    Ok(directions.columns(0, SPAN.min(off.channels())).iter().map(|v| *v as f32).collect())
}

/// The share of the energy of the states at the tags' tokens that lies outside.
fn share(text: &TextEncoder, off: &Basis, tags: &[&Tag], captions: &[&str]) -> Result<f64> {
    let (mut kept, mut all) = (0.0, 0.0);
    for state in states(text, tags, captions)? {
        kept += energy(&outside(off, &state));
        all += energy(&state);
    }
    Ok(kept / all)
}

/// The states at the tags' tokens, over captions.
fn states(text: &TextEncoder, tags: &[&Tag], captions: &[&str]) -> Result<Vec<Vec<f64>>> {
    let tags: Vec<(usize, &Tag)> = tags.iter().map(|tag| (0, *tag)).collect();
    let mut states = Vec::new();
    for caption in captions {
        let prompts = text.read(&[caption], Reading::Literal, &tags)?;
        let encoded = text.encode(&prompts, 0)?.states;
        let (channels, values) = (encoded.last(), encoded.to_f32()?);
        for token in prompts.iter().flat_map(Prompt::mentions).flat_map(|mention| mention.tokens.clone()) {
            states.push(values[token * channels..][..channels].iter().map(|v| f64::from(*v)).collect());
        }
    }
    Ok(states)
}

/// Captions with room for `count` vectors where the tag stands, and the root mean square of ordinary word vectors.
fn contexts(
    text: &TextEncoder,
    tags: &[&Tag],
    captions: &[&str],
    count: usize,
    positions: &[f32],
) -> Result<(Vec<Context>, f64)> {
    let channels = text.clip().config().hidden_size;
    let tokens = text.tokenizer().max_length();
    let blank = Arc::new(Key::new(vec![0.0; count * channels], channels)?);
    let blank: Vec<Tag> = tags.iter().map(|tag| (*tag).clone().with_key(blank.clone())).collect();
    let blank: Vec<(usize, &Tag)> = blank.iter().map(|tag| (0, tag)).collect();
    let (mut contexts, mut squares, mut words) = (Vec::new(), 0.0, 0);
    for caption in captions {
        let prompt = Prompt::read(text.tokenizer(), caption, &blank, Reading::Literal)?;
        // of a caption in several chunks, the first that has the tag
        let Some(mention) = prompt.mentions().first() else { continue };
        let chunk = mention.tokens.start / tokens;
        let embedded = text.embed(std::slice::from_ref(&prompt))?.to_f32()?;
        let embedded = embedded[chunk * tokens * channels..][..tokens * channels].to_vec();
        let at = mention.tokens.start - chunk * tokens;
        let own = embedded.iter().zip(positions).take(at * channels).skip(channels);
        squares += own.map(|(e, p)| f64::from(e - p).powi(2)).sum::<f64>();
        words += at - 1;
        contexts.push(Context { embedded, at });
    }
    if contexts.is_empty() {
        return Err(Error::Dataset(format!("no caption has one of the tags {:?}", texts(tags))));
    }
    // a tag that is the first word of every caption stands beside no other
    let length = if words > 0 { (squares / (words * channels) as f64).sqrt() } else { rms(positions) };
    Ok((contexts, length))
}

/// The share of the states at the tag's tokens that lies outside, and its gradient by the vectors.
fn gradient(
    clip: &Clip,
    off: &Basis,
    batch: &[&Context],
    vectors: &[f32],
    positions: &[f32],
) -> Result<(f64, Vec<f64>)> {
    let channels = off.channels();
    let count = vectors.len() / channels;
    // tokens see only those before them
    let tokens = batch.iter().map(|context| context.at + count).max().unwrap_or(1);
    let mut embedded = Vec::with_capacity(batch.len() * tokens * channels);
    for context in batch {
        let start = embedded.len() + context.at * channels;
        embedded.extend(&context.embedded[..tokens * channels]);
        let own = embedded[start..].iter_mut().zip(vectors).zip(&positions[context.at * channels..]);
        own.for_each(|((value, vector), position)| *value = vector + position);
    }
    let shape = [batch.len(), tokens, channels];
    let embedded = Tensor::from_f32(clip.gpu(), &embedded, &shape, DType::F32)?;
    let tape: Tape = tape();
    tape.track(&embedded);
    let states = clip.encode(&Cx::new(&tape), embedded.clone(), 0)?;
    let values = states.to_f32()?;
    // of each token of the tag: where it is, its state, and what of that lies outside
    let mut own = Vec::new();
    for (i, context) in batch.iter().enumerate() {
        for token in context.at..context.at + count {
            let start = (i * tokens + token) * channels;
            let state: Vec<f64> = values[start..][..channels].iter().map(|v| f64::from(*v)).collect();
            let kept = outside(off, &state);
            own.push((start, state, kept));
        }
    }
    let all: f64 = own.iter().map(|(_, state, _)| energy(state)).sum();
    let share = own.iter().map(|(.., kept)| energy(kept)).sum::<f64>() / all;
    let mut upstream = vec![0.0; values.len()];
    for (start, state, kept) in &own {
        for (i, (x, k)) in state.iter().zip(kept).enumerate() {
            // numbers of a size that f32 and the way back are at ease with
            upstream[start + i] = (2.0 * (k - share * x)) as f32;
        }
    }
    let upstream = Tensor::from_f32(clip.gpu(), &upstream, &shape, DType::F32)?;
    let grads = tape.backward(&states, upstream)?;
    let arrived = grads.get(&embedded).map(Tensor::to_f32).transpose()?.unwrap_or_default();
    let mut gradient = vec![0.0; vectors.len()];
    for (i, context) in batch.iter().enumerate() {
        let from = &arrived[(i * tokens + context.at) * channels..][..vectors.len()];
        gradient.iter_mut().zip(from).for_each(|(sum, g)| *sum += f64::from(*g) / all);
    }
    Ok((share, gradient))
}

fn texts<'a>(tags: &[&'a Tag]) -> Vec<&'a str> {
    tags.iter().map(|tag| tag.text()).collect()
}

/// x P.
fn outside(off: &Basis, state: &[f64]) -> Vec<f64> {
    let basis = DMatrixView::from_slice(off.rows(), off.channels(), off.rows().len() / off.channels());
    let mut rest = state.to_vec();
    for direction in basis.column_iter() {
        let along: f64 = direction.iter().zip(state).map(|(u, x)| f64::from(*u) * x).sum();
        rest.iter_mut().zip(direction.iter()).for_each(|(rest, u)| *rest -= along * f64::from(*u));
    }
    rest
}

fn energy(state: &[f64]) -> f64 {
    state.iter().map(|x| x * x).sum()
}

fn rms(vector: &[f32]) -> f64 {
    (vector.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / vector.len() as f64).sqrt()
}
