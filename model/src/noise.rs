//! All chance, as pure functions of counters.
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
    /// The first vectors of a key, and the captions of each step of its search.
    Key = 13,
    /// The noise that a sampler adds on its way.
    Sampling = 14,
}

/// Independent bits for each (seed, stream, step, sample).
pub struct Bits(ChaCha8Rng);

impl Bits {
    /// Those of four counters.
    pub fn new(seed: u64, stream: Stream, step: u64, sample: u64) -> Self {
        let mut key = [0; 32];
        for (bytes, counter) in key.chunks_exact_mut(8).zip([seed, stream as u64, step, sample]) {
            bytes.copy_from_slice(&counter.to_le_bytes());
        }
        Self(ChaCha8Rng::from_seed(key))
    }

    /// Uniform in [0, 1), a multiple of 2⁻⁵³.
    pub fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }

    /// Uniform in 0..n, or 0 where n is 0. No number is favoured by more than n / 2⁶⁴.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.0.next_u64()) * u128::from(n)) >> 64) as u64
    }

    /// 64 bits.
    pub fn word(&mut self) -> u64 {
        self.0.next_u64()
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

/// `true` with probability `p`: never for 0, always for 1.
pub fn chance(seed: u64, stream: Stream, step: u64, sample: u64, p: f64) -> bool {
    Bits::new(seed, stream, step, sample).uniform() < p
}

/// 64-bit FNV-1a: a hash that is the same in every version of Rust, as the standard library's need not be.
pub fn fnv1a(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
