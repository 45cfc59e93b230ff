//! First values of a LoRA: `down` is random and `up` is 0, so that training starts from the base model.

use strata_model::noise::{Bits, Stream, fnv1a};

/// Fills the `down` of a layer: Kaiming-uniform with a = √5, that is U(−b, b) with b = 1 / √fan_in.
///
/// `fan_in` is the number of inputs to one output: channels, times the kernel's area for a convolution.
/// The numbers depend on the seed and the layer's path alone, so a layer begins the same way whichever
/// other layers are selected, and the values of a larger rank begin with those of a smaller one.
pub fn kaiming_uniform(seed: u64, path: &str, fan_in: usize, out: &mut [f32]) {
    let bound = 1.0 / (fan_in.max(1) as f64).sqrt();
    let mut bits = Bits::new(seed, Stream::Init, fnv1a(path), 0);
    out.fill_with(|| (bound * (2.0 * bits.uniform() - 1.0)) as f32);
}
