//! What chance decides about the samples of a run; see [`strata_model::noise`] for where its bits come from.

pub use strata_model::noise::{Stream, chance, normal};

use strata_model::noise::{Bits, fnv1a};

/// A timestep in lo..hi, all equally likely; `lo` where the range is empty.
pub fn uniform_timestep(seed: u64, step: u64, sample: u64, lo: u32, hi: u32) -> u32 {
    let n = u64::from(hi.saturating_sub(lo));
    lo + Bits::new(seed, Stream::Timestep, step, sample).below(n) as u32
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
    if name.is_empty() { seed } else { Bits::new(seed, Stream::Feature, fnv1a(name), 0).word() }
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
