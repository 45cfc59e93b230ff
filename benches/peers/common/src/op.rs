//! The operations: shapes, inputs and what comes out.

use serde::Deserialize;

/// An operation as the list of shapes tells it. Layouts, of inputs and of the result:
/// - linear: x [m, k], w [k, n] as peers hold it, result [m, n]
/// - conv, 3×3, stride 1, padding 1: x [batch, in, side, side], w [out, in, 3, 3],
///   result [batch, out, side, side]
/// - attention: q [batch, heads, queries, dim], k and v [batch, heads, keys, dim], result as q
/// - group norm, then SiLU: x and result [batch, channels, side, side], scale and shift [channels]
/// - layer norm: x and result [rows, channels], scale and shift [channels]
/// - GEGLU: x [rows, 2 channels], result [rows, channels] = x[:, ..channels] gelu(x[:, channels..])
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Op {
    Linear {
        m: usize,
        n: usize,
        k: usize,
    },
    Conv {
        batch: usize,
        side: usize,
        #[serde(rename = "in")]
        c: usize,
        out: usize,
    },
    Attention {
        batch: usize,
        queries: usize,
        keys: usize,
        heads: usize,
        dim: usize,
    },
    GroupNorm {
        batch: usize,
        side: usize,
        channels: usize,
        groups: usize,
    },
    LayerNorm {
        rows: usize,
        channels: usize,
    },
    Geglu {
        rows: usize,
        channels: usize,
    },
}

/// What group and layer norms add to the variance.
pub const EPS: f64 = 1e-5;

impl Op {
    /// One of each kind, small.
    pub fn small() -> [Op; 6] {
        [
            Op::Linear { m: 9, n: 20, k: 12 },
            Op::Conv { batch: 2, side: 5, c: 8, out: 12 },
            Op::Attention { batch: 1, queries: 10, keys: 7, heads: 2, dim: 16 },
            Op::GroupNorm { batch: 2, side: 3, channels: 8, groups: 4 },
            Op::LayerNorm { rows: 5, channels: 12 },
            Op::Geglu { rows: 5, channels: 12 },
        ]
    }

    /// The inputs, in order.
    pub fn inputs(&self) -> Vec<Vec<f32>> {
        let sizes = match *self {
            Op::Linear { m, n, k } => vec![m * k, k * n],
            Op::Conv { batch, side, c, out } => vec![batch * c * side * side, out * c * 9],
            Op::Attention { batch, queries, keys, heads, dim } => {
                let width = batch * heads * dim;
                vec![queries * width, keys * width, keys * width]
            }
            Op::GroupNorm { channels, .. } => vec![self.outputs(), channels, channels],
            Op::LayerNorm { channels, .. } => vec![self.outputs(), channels, channels],
            Op::Geglu { .. } => vec![2 * self.outputs()],
        };
        sizes.iter().enumerate().map(|(seed, &count)| values(count, seed)).collect()
    }

    /// Values of the result.
    pub fn outputs(&self) -> usize {
        match *self {
            Op::Linear { m, n, .. } => m * n,
            Op::Conv { batch, side, out, .. } => batch * out * side * side,
            Op::Attention { batch, queries, heads, dim, .. } => batch * heads * queries * dim,
            Op::GroupNorm { batch, side, channels, .. } => batch * channels * side * side,
            Op::LayerNorm { rows, channels } | Op::Geglu { rows, channels } => rows * channels,
        }
    }

    /// Value `i` of the result, by plain arithmetic.
    pub fn expected(&self, inputs: &[Vec<f32>], i: usize) -> f64 {
        let x = |at: usize| f64::from(inputs[0][at]);
        let y = |at: usize| f64::from(inputs[1][at]);
        let z = |at: usize| f64::from(inputs[2][at]);
        match *self {
            Op::Linear { n, k, .. } => (0..k).map(|j| x(i / n * k + j) * y(j * n + i % n)).sum(),
            Op::Conv { side, c, out, .. } => {
                let (image, o) = (i / (side * side) / out, i / (side * side) % out);
                let (row, column) = (i / side % side, i % side);
                let mut sum = 0.0;
                for (j, dy, dx) in (0..c * 9).map(|t| (t / 9, t / 3 % 3, t % 3)) {
                    // padding: row + dy - 1 outside the image adds nothing
                    let (r, s) = (row + dy, column + dx);
                    if (1..=side).contains(&r) && (1..=side).contains(&s) {
                        sum += x(((image * c + j) * side + r - 1) * side + s - 1)
                            * y((o * c + j) * 9 + dy * 3 + dx);
                    }
                }
                sum
            }
            Op::Attention { queries, keys, dim, .. } => {
                let (head, q) = (i / dim / queries, i / dim * dim);
                let at = |key: usize| (head * keys + key) * dim;
                let score =
                    |key| (0..dim).map(|j| x(q + j) * y(at(key) + j)).sum::<f64>() / (dim as f64).sqrt();
                let weights: Vec<f64> = (0..keys).map(|key| score(key).exp()).collect();
                let total: f64 = weights.iter().sum();
                weights.iter().enumerate().map(|(key, w)| w / total * z(at(key) + i % dim)).sum()
            }
            Op::GroupNorm { side, channels, groups, .. } => {
                let size = channels / groups * side * side;
                let v = normed(&inputs[0][i / size * size..][..size], i % size);
                let v = v * y(i / (side * side) % channels) + z(i / (side * side) % channels);
                v / (1.0 + (-v).exp())
            }
            Op::LayerNorm { channels, .. } => {
                let v = normed(&inputs[0][i / channels * channels..][..channels], i % channels);
                v * y(i % channels) + z(i % channels)
            }
            Op::Geglu { channels, .. } => {
                let at = i / channels * 2 * channels + i % channels;
                x(at) * gelu(x(at + channels))
            }
        }
    }
}

/// Values in -1..1, neither equal nor in step with a row; another seed, other values.
fn values(count: usize, seed: usize) -> Vec<f32> {
    let mixed = |i: usize| (i + 1).wrapping_mul(0x9E37_79B9).wrapping_add(seed * 0x85EB_CA6B) as u32;
    (0..count)
        .map(|i| (mixed(i) ^ mixed(i) >> 15).wrapping_mul(0x2C1B_3C6D) as i32 as f32 / 2.0f32.powi(31))
        .collect()
}

/// [heads, tokens, dim] as [tokens, heads · dim].
pub fn heads_last(values: &[f32], heads: usize, dim: usize) -> Vec<f32> {
    let tokens = values.len() / heads / dim;
    let from = |i: usize| (i / dim % heads * tokens + i / dim / heads) * dim + i % dim;
    (0..values.len()).map(|i| values[from(i)]).collect()
}

/// Value `i` of a group, less the mean and over the deviation.
fn normed(group: &[f32], i: usize) -> f64 {
    let count = group.len() as f64;
    let mean = group.iter().map(|&v| f64::from(v)).sum::<f64>() / count;
    let variance = group.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / count;
    (f64::from(group[i]) - mean) / (variance + EPS).sqrt()
}

/// GELU with the tanh of its usual approximation, at most 5e-4 off the exact one.
fn gelu(v: f64) -> f64 {
    let inner =
        std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2 * (v + 0.044715 * v.powi(3));
    0.5 * v * (1.0 + inner.tanh())
}
