//! Numbers that are the same in every run: the seed is a text, such as the name of a row.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// A stream of random numbers.
pub struct Random(ChaCha8Rng);

impl Random {
    /// The stream that belongs to `seed`.
    pub fn new(seed: &str) -> Self {
        let mut key = [0_u8; 32];
        for (i, byte) in seed.bytes().enumerate() {
            // rotates, so that texts longer than the key and permuted texts differ
            key[i % 32] = key[i % 32].rotate_left(3) ^ byte;
            key[(i + 7) % 32] = key[(i + 7) % 32].wrapping_add(byte).wrapping_mul(31);
        }
        Self(ChaCha8Rng::from_seed(key))
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }

    /// Uniform in 0..n.
    pub fn below(&mut self, n: usize) -> usize {
        (self.uniform() * n as f64) as usize
    }

    /// +1 or −1.
    pub fn sign(&mut self) -> f64 {
        if self.uniform() < 0.5 { -1.0 } else { 1.0 }
    }

    /// Standard normal numbers.
    pub fn normal(&mut self, count: usize) -> Vec<f32> {
        let mut one =
            || (-2.0 * (1.0 - self.uniform()).ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos();
        (0..count).map(|_| one() as f32).collect()
    }
}
