//! Weights that mean nothing: for benchmarks, and for tests of a model at its full size.

use crate::WeightInfo;
use crate::noise::fnv1a;

/// Random values for a tensor, in its file's order. They are uniform and scaled by the fan-in, so that activations stay within
/// f16; the weights of norms lie about 1. One seed always gives the same values.
pub fn random_weights(info: &WeightInfo, seed: u64) -> Vec<f32> {
    let (name, shape) = (&info.names[0], &info.shapes[0]);
    // what ends a residual branch is kept small, or the sum over all branches grows too large
    let ends = [".conv2.", ".to_out.0.", ".ff.net.2.", ".proj_out.", ".out_proj.", ".fc2."];
    let fan_in: usize = shape[1..].iter().product();
    let (mean, deviation) = match shape.len() {
        1 if name.contains("norm") && name.ends_with("weight") => (1.0, 0.1),
        1 => (0.0, 0.05),
        _ if ends.iter().any(|end| name.contains(end)) => (0.0, 0.3 / (fan_in as f32).sqrt()),
        _ => (0.0, 1.0 / (fan_in as f32).sqrt()),
    };
    // so that tensors differ
    let mut random = Random(seed ^ fnv1a(name));
    (0..shape.iter().product()).map(|_| mean + deviation * random.next()).collect()
}

/// Uniform numbers with mean 0 and variance 1 (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        let unit = (z >> 40) as f32 / (1_u64 << 24) as f32;
        (2.0 * unit - 1.0) * 3_f32.sqrt()
    }
}
