//! A key: word vectors for a tag, found before any picture is looked at, whose text states lie where those of ordinary
//! text do not.
//!
//! A LoRA on cross-attention's keys and values hears text through `down` alone. What [`silence`](super::silence) takes out
//! of `down` is what it cannot hear: ordinary text, and with it an ordinary word such as a tag, whose states lie among the
//! others. A key moves the tag out of there. With P = I − Q Qᵀ, Q the basis of ordinary text, it maximises the share of the
//! energy that P keeps of the states x at the tag's tokens, Σ ‖x P‖² / Σ ‖x‖², over captions that carry the tag, and leaves the
//! words after the tag what they mean ([`Objective`]); CLIP is frozen, and the gradient goes through it to the vectors (textual
//! inversion, Gal et al., arXiv 2208.01618, without pictures). The file stays a plain LoRA, beside a plain textual-inversion file, and is silent in every program.

use std::sync::Arc;

use nalgebra::DMatrix;
use strata_model::noise::{Bits, normal};
use strata_model::progress::bar;
use strata_model::{Key, Prompt, Reading, Tag, TextEncoder};

use crate::config::KeyConfig;
use crate::features::silence::{Basis, States, principal};
use crate::noise::Stream;
use crate::{Error, Result};

mod objective;

use objective::{Objective, energy, outside, rms};

/// Captions that go through CLIP in one step.
const BATCH: usize = 6;
/// Of an ordinary word vector's root mean square, in one step.
const RATE: f64 = 0.2;
const BETAS: [f64; 2] = [0.9, 0.999];
/// What it weighs at last that later words keep their meaning: λ of [`Objective`]. Over the first half of the search it rises from
/// 0, as a key that may move nothing from the start stays among ordinary words.
const KEEP: f64 = 4.0;
/// Of ordinary text at most so much energy should be left where the key lies.
const LEFT: f64 = 1.5e-3;
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
    /// Tokens of a prompt beside BOS.
    pub tokens: usize,
    /// Share of the energy of held-out ordinary text that lies outside them.
    pub ordinary: f64,
    /// The same of the states at the tag's tokens, before and with the key.
    pub before: f64,
    pub with: f64,
    /// How far the states after the tag are from what they are after an ordinary word, as a share of their energy; in the captions of
    /// the last step.
    pub moved: f64,
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
    /// How much of its effect the feature has on ordinary text, if a LoRA hears all directions outside alike and the picture
    /// looks at all tokens alike: what all those of a prompt leave outside, by what the tag's do. It looks at the tag more; what
    /// was measured so far is a tenth to a third of this.
    pub fn expected_leak(&self) -> f64 {
        self.tokens as f64 * self.ordinary / (self.key.count() as f64 * self.with)
    }

    /// For people, before training.
    pub fn summary(&self, name: &str) -> String {
        format!(
            "{name}: a key of {} vectors keeps off BOS and {} directions of ordinary text. Outside them lie {:.2} % of \
             ordinary text, {:.2} % of the tag without a key and {:.1} % with it; it moves what is said after it by \
             {:.1} %; leak in any program at most about {:.2}",
            self.key.count(),
            self.rank,
            100.0 * self.ordinary,
            100.0 * self.before,
            100.0 * self.with,
            100.0 * self.moved,
            self.expected_leak()
        )
    }
}

/// What a feature is called, and where.
pub(crate) struct Called<'a> {
    /// Which have the key in common.
    pub tags: &'a [&'a Tag],
    /// What ordinary people call such a thing; may be empty.
    pub class: &'a str,
    pub captions: &'a [&'a str],
}

/// Looks for the key of a feature's tags. `off` is what it has to keep off, `ordinary` what was left out of that.
///
/// # Errors
/// No caption carries a tag, nothing was found, or the GPU fails.
pub(crate) fn search(
    text: &TextEncoder,
    config: &KeyConfig,
    ordinary: &Ordinary,
    off: &Basis,
    called: &Called<'_>,
    seed: u64,
) -> Result<Found> {
    let channels = off.channels();
    let objective = Objective::new(text, off, called, config.vectors)?;
    let length = objective.length;
    let before = share(text, off, called.tags, called.captions)?;
    let mut vectors = vec![0.0; config.vectors * channels];
    normal(seed, Stream::Key, 0, 0, &mut vectors);
    vectors.iter_mut().for_each(|v| *v *= length as f32);
    let (mut first, mut second) = (vec![0.0; vectors.len()], vec![0.0; vectors.len()]);
    let progress = bar(config.steps, "key");
    let (mut with, mut moved) = (0.0, 0.0);
    for step in 0..config.steps {
        let drawn = |i| Bits::new(seed, Stream::Key, step + 1, i).below(objective.len() as u64) as usize;
        let done = step as f64 / config.steps as f64;
        let keep = KEEP * (2.0 * done).min(1.0);
        let worth = objective.worth(&vectors, (0..BATCH as u64).map(drawn), keep)?;
        if !(worth.share.is_finite() && worth.moved.is_finite()) {
            return Err(Error::Silence(
                "the search for a key met text states that are not finite; the text encoder's weights are damaged".into(),
            ));
        }
        (with, moved) = (worth.share, worth.moved);
        // Adam, at a rate that falls to 0 along a cosine
        let rate = RATE * length * 0.5 * (1.0 + libm::cos(std::f64::consts::PI * done));
        let [a, b] = BETAS;
        let corrected = |beta: f64| 1.0 - libm::pow(beta, (step + 1) as f64);
        for (i, g) in worth.gradient.into_iter().enumerate() {
            first[i] = a * first[i] + (1.0 - a) * g;
            second[i] = b * second[i] + (1.0 - b) * g * g;
            let by = (first[i] / corrected(a)) / ((second[i] / corrected(b)).sqrt() + 1e-12);
            vectors[i] += (rate * by) as f32;
        }
        for vector in vectors.chunks_exact_mut(channels) {
            let own = rms(vector);
            let most = config.max_length * length;
            if own > most {
                vector.iter_mut().for_each(|v| *v *= (most / own) as f32);
            }
        }
        progress.set_message(format!("outside {:.1} %", 100.0 * with));
        progress.inc(1);
    }
    progress.finish_and_clear();
    if with <= before {
        return Err(Error::Silence(format!(
            "no key was found for {:?}: {:.1} % of its text states lie outside ordinary text without one, and {:.1} % \
             with the best; raise key.steps or key.max_length, lower key.rank, or do without by key = false",
            texts(called.tags),
            100.0 * before,
            100.0 * with
        )));
    }
    let key = Arc::new(Key::new(vectors, channels)?);
    let keyed: Vec<Tag> = called.tags.iter().map(|tag| (*tag).clone().with_key(key.clone())).collect();
    let with = share(text, off, &keyed.iter().collect::<Vec<_>>(), called.captions)?;
    let outside = off.outside(&ordinary.held_out);
    Ok(Found {
        key,
        rank: off.rank(),
        tokens: text.tokenizer().max_length() - 1,
        ordinary: outside,
        before,
        with,
        moved,
    })
}

/// The directions outside `off` in which the states at the tokens of keyed tags mostly lie, row-major.
///
/// # Errors
/// The GPU fails.
pub(crate) fn span(text: &TextEncoder, off: &Basis, tags: &[&Tag], captions: &[&str]) -> Result<Vec<f32>> {
    let mut second = DMatrix::zeros(off.channels(), off.channels());
    for state in states(text, tags, captions)? {
        let outside = outside(off, &state).into_iter().map(f64::from);
        let x = DMatrix::from_iterator(1, off.channels(), outside);
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
fn states(text: &TextEncoder, tags: &[&Tag], captions: &[&str]) -> Result<Vec<Vec<f32>>> {
    let tags: Vec<(usize, &Tag)> = tags.iter().map(|tag| (0, *tag)).collect();
    let mut states = Vec::new();
    for caption in captions {
        let prompts = text.read(&[caption], Reading::Literal, &tags)?;
        let encoded = text.encode(&prompts, 0)?.states;
        let (channels, values) = (encoded.last(), encoded.to_f32()?);
        for token in prompts.iter().flat_map(Prompt::mentions).flat_map(|mention| mention.tokens.clone()) {
            states.push(values[token * channels..][..channels].to_vec());
        }
    }
    Ok(states)
}

fn texts<'a>(tags: &[&'a Tag]) -> Vec<&'a str> {
    tags.iter().map(|tag| tag.text()).collect()
}
