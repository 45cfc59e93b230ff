//! All chance in a run, as pure functions of counters.
//!
//! What sample b of step s draws is a function of (seed, stream, s, b) alone: not of the batch size, of
//! what was drawn before, or of the platform. So a run resumes exactly, and four samples in one batch
//! draw what they would draw in four batches. Count the samples of a step across all of its batches.
//!
//! The bits are those of ChaCha8 with the four counters as its key: a published cipher, whose output
//! never changes with a new version of a library, and whose keys need no care to be far apart.

use std::f64::consts::TAU;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// What chance decides. Each stream is independent of the others; the numbers are part of what a seed means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Stream {
    /// The noise ε that is added to a latent.
    Noise = 1,
    /// The timestep t.
    Timestep = 2,
    /// The order of the dataset in an epoch.
    Order = 3,
    /// Whether a caption is dropped.
    Caption = 4,
    /// The noise of the VAE's latent distribution.
    Latent = 5,
    /// The first values of `down`.
    Init = 6,
    /// Whether a picture is mirrored.
    Flip = 7,
    /// The constant that `noise_offset` adds to each channel.
    Offset = 8,
    /// The noise that a generated picture starts from.
    Picture = 9,
    /// What the probe draws.
    Probe = 10,
    /// Which prompt a sample is preserved on.
    Preserve = 11,
    /// The seed of a feature.
    Feature = 12,
}

/// Independent bits for each (seed, stream, step, sample).
pub(crate) struct Bits(ChaCha8Rng);

impl Bits {
    pub(crate) fn new(seed: u64, stream: Stream, step: u64, sample: u64) -> Self {
        let mut key = [0; 32];
        for (bytes, counter) in key.chunks_exact_mut(8).zip([seed, stream as u64, step, sample]) {
            bytes.copy_from_slice(&counter.to_le_bytes());
        }
        Self(ChaCha8Rng::from_seed(key))
    }

    /// Uniform in [0, 1), a multiple of 2⁻⁵³.
    pub(crate) fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in 0..n, or 0 where n is 0. No number is favoured by more than n / 2⁶⁴.
    fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.0.next_u64()) * u128::from(n)) >> 64) as u64
    }
}

/// Fills `out` with standard normal numbers. A longer `out` begins with the same numbers.
///
/// Box–Muller, two at a time: √(−2 ln u) · (cos 2πv, sin 2πv) with u in (0, 1], v in [0, 1), in f64.
/// Unlike a ziggurat it has no table and no rejection, so the k-th number is always made of the same
/// bits; with libm's logarithm, sine and cosine it is equal on every platform.
pub fn normal(seed: u64, stream: Stream, step: u64, sample: u64, out: &mut [f32]) {
    let mut bits = Bits::new(seed, stream, step, sample);
    for pair in out.chunks_mut(2) {
        let radius = (-2.0 * libm::log(1.0 - bits.uniform())).sqrt();
        let (sin, cos) = libm::sincos(TAU * bits.uniform());
        for (x, part) in pair.iter_mut().zip([cos, sin]) {
            *x = (radius * part) as f32;
        }
    }
}

/// A timestep in lo..hi, all equally likely; `lo` where the range is empty.
pub fn uniform_timestep(seed: u64, step: u64, sample: u64, lo: u32, hi: u32) -> u32 {
    let n = u64::from(hi.saturating_sub(lo));
    lo + Bits::new(seed, Stream::Timestep, step, sample).below(n) as u32
}

/// `true` with probability `p`: never for 0, always for 1.
pub fn chance(seed: u64, stream: Stream, step: u64, sample: u64, p: f64) -> bool {
    Bits::new(seed, stream, step, sample).uniform() < p
}

/// A number in 0..n, and then one in 0..`second`(first); each equally likely, and 0 where the range is empty.
pub(crate) fn below_twice(
    seed: u64,
    stream: Stream,
    step: u64,
    sample: u64,
    n: usize,
    second: impl Fn(usize) -> usize,
) -> [usize; 2] {
    let mut bits = Bits::new(seed, stream, step, sample);
    let first = bits.below(n as u64) as usize;
    [first, bits.below(second(first) as u64) as usize]
}

/// The seed of a feature, from that of its run: a feature draws the same alone and beside others. The run's own for a
/// feature without a name.
pub fn feature_seed(seed: u64, name: &str) -> u64 {
    if name.is_empty() {
        seed
    } else {
        Bits::new(seed, Stream::Feature, crate::init::fnv1a(name), 0).0.next_u64()
    }
}

/// The numbers 0..n in the shuffled order of an epoch; all n! orders are equally likely (Fisher–Yates).
pub fn order(seed: u64, epoch: u64, n: usize) -> Vec<usize> {
    let mut bits = Bits::new(seed, Stream::Order, epoch, 0);
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        order.swap(i, bits.below(i as u64 + 1) as usize);
    }
    order
}

/// Which of `n` pictures the run shows at `position` = step · samples per step + sample.
///
/// The run walks through epochs of n positions, each in its own [`order`], so every picture is shown
/// once before any is shown again, and batches may straddle two epochs. The epoch is `position / n`.
/// Costs O(n), which is nothing beside a step. `n` must not be 0; no dataset is empty.
pub fn sample_index(seed: u64, position: u64, n: usize) -> usize {
    order(seed, position / n as u64, n)[(position % n as u64) as usize]
}
