//! The kernels of Stable Diffusion 1.5's U-Net, and their shapes.

use serde::Serialize;

/// Channels of the U-Net's levels; each level has half the height and width of the one before.
const CHANNELS: [usize; 4] = [320, 640, 1280, 1280];
const HEADS: usize = 8;
/// Tokens of a text, and channels of their states.
pub(crate) const TEXT: [usize; 2] = [77, 768];
/// Rank of LoRAs.
pub(crate) const RANK: usize = 8;

/// A kernel with its sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(crate) enum Op {
    /// x `[m, k]` times w `[n, k]` transposed.
    Linear { m: usize, n: usize, k: usize },
    /// 3×3, stride 1, padding 1, of a square picture.
    Conv {
        batch: usize,
        side: usize,
        #[serde(rename = "in")]
        inputs: usize,
        #[serde(rename = "out")]
        outputs: usize,
    },
    /// softmax(q kᵀ / √dim) v of each head.
    Attention { batch: usize, queries: usize, keys: usize, heads: usize, dim: usize },
    /// Followed by SiLU.
    GroupNorm { batch: usize, side: usize, channels: usize, groups: usize },
    /// Over the channels.
    LayerNorm { rows: usize, channels: usize },
    /// `[rows, 2 channels]` to `[rows, channels]`: first half times gelu of the second.
    Geglu { rows: usize, channels: usize },
}

/// What of an op is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Pass {
    /// The op alone.
    Forward,
    /// The op with a LoRA of rank 8 beside its weights.
    Lora,
    /// Forward, and back to the gradient of x.
    Backward,
    /// Forward with such a LoRA, and back to the gradients of x and of the LoRA.
    LoraBackward,
}

/// One row of the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Case {
    /// What the table calls it; no two are alike.
    pub name: String,
    /// The kernel.
    #[serde(flatten)]
    pub(crate) op: Op,
    /// What of it; left out where it is the op alone.
    #[serde(skip_serializing_if = "is_forward")]
    pub(crate) pass: Pass,
    /// Operations of the forward pass without a LoRA: products only, a multiply-add counts two.
    flops: u64,
}

fn is_forward(pass: &Pass) -> bool {
    *pass == Pass::Forward
}

impl Op {
    fn name(self) -> String {
        match self {
            Self::Linear { m, n, k } => format!("linear {m}×{n}×{k}"),
            Self::Conv { batch, side, inputs, outputs } => {
                format!("conv 3×3 {batch}×{side}×{side} {inputs} to {outputs}")
            }
            Self::Attention { batch, queries, keys, heads, dim } => {
                format!("attention {batch}×{queries}×{keys}, {heads} heads of {dim}")
            }
            Self::GroupNorm { batch, side, channels, .. } => {
                format!("group norm + SiLU {batch}×{side}×{side}×{channels}")
            }
            Self::LayerNorm { rows, channels } => format!("layer norm {rows}×{channels}"),
            Self::Geglu { rows, channels } => format!("GEGLU {rows}×{channels}"),
        }
    }

    fn flops(self) -> u64 {
        let flops = match self {
            Self::Linear { m, n, k } => 2 * m * n * k,
            Self::Conv { batch, side, inputs, outputs } => 18 * batch * side * side * inputs * outputs,
            Self::Attention { batch, queries, keys, heads, dim } => 4 * batch * queries * keys * heads * dim,
            Self::GroupNorm { .. } | Self::LayerNorm { .. } | Self::Geglu { .. } => 0,
        };
        flops as u64
    }

    fn case(self, pass: Pass) -> Case {
        let suffix = match pass {
            Pass::Forward => "",
            Pass::Lora => " + LoRA 8",
            Pass::Backward => ", there and back",
            Pass::LoraBackward => " + LoRA 8, there and back",
        };
        Case { name: self.name() + suffix, op: self, pass, flops: self.flops() }
    }
}

/// A square product of matrices.
pub(crate) fn square(side: usize) -> Case {
    Op::Linear { m: side, n: side, k: side }.case(Pass::Forward)
}

/// The kernels of the U-Net at latents of `latent` × `latent` (64 for pictures of 512 × 512), for each batch.
pub(crate) fn cases(latent: usize, batches: &[usize]) -> Vec<Case> {
    use Pass::{Backward, Forward, Lora, LoraBackward};
    let mut cases: Vec<Case> = Vec::new();
    let mut add = |op: Op, passes: &[Pass]| {
        for case in passes.iter().map(|pass| op.case(*pass)) {
            // a level of one batch can have the sizes of another level of another
            if !cases.contains(&case) {
                cases.push(case);
            }
        }
    };
    for &batch in batches {
        for (level, &c) in CHANNELS.iter().enumerate() {
            let side = (latent >> level).max(1);
            let (tokens, dim) = (side * side, c / HEADS);
            let m = batch * tokens;
            add(Op::Conv { batch, side, inputs: c, outputs: c }, &[Forward, Lora, Backward]);
            add(Op::Linear { m, n: c, k: c }, &[Forward, Lora, Backward, LoraBackward]);
            add(Op::Linear { m, n: 8 * c, k: c }, &[Forward]);
            add(Op::Linear { m, n: c, k: 4 * c }, &[Forward]);
            add(Op::Linear { m: batch * TEXT[0], n: c, k: TEXT[1] }, &[Forward]);
            for keys in [tokens, TEXT[0]] {
                add(Op::Attention { batch, queries: tokens, keys, heads: HEADS, dim }, &[Forward, Backward]);
            }
            add(Op::GroupNorm { batch, side, channels: c, groups: 32 }, &[Forward, Backward]);
            add(Op::LayerNorm { rows: m, channels: c }, &[Forward, Backward]);
            add(Op::Geglu { rows: m, channels: 4 * c }, &[Forward, Backward]);
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let cases = cases(64, &[1, 4]);
        let names: std::collections::BTreeSet<_> = cases.iter().map(|case| &case.name).collect();
        assert_eq!(names.len(), cases.len());
        assert!(names.contains(&"conv 3×3 4×16×16 1280 to 1280".to_string()));
        assert!(names.contains(&"attention 1×4096×4096, 8 heads of 40, there and back".to_string()));
    }

    #[test]
    fn a_case_as_json() {
        let case = Op::Conv { batch: 1, side: 32, inputs: 320, outputs: 640 }.case(Pass::Forward);
        let json = serde_json::to_string(&case).expect("plain data");
        let expected = r#"{"name":"conv 3×3 1×32×32 320 to 640","op":"conv","batch":1,"side":32,"in":320,"out":640,"flops":3774873600}"#;
        assert_eq!(json, expected);
    }
}
