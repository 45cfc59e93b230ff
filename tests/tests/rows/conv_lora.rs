//! Convolutions with LoRA branches.

use strata_engine::DType;
use strata_kernels::{ConvArgs, ConvShape, Lora, Padding, Weight, conv2d, reference};
use strata_tests::Row;

use super::hold;
use super::lora::{Branch, GateKind};

#[derive(Clone, Copy)]
struct Case {
    /// B, H, W, C.
    x: [usize; 4],
    out: usize,
    stride: usize,
    padding: Padding,
    residual: bool,
    /// What flows in and out is f32, beside weights and factors in f16, in rows of f16.
    stream: bool,
}

fn same(x: [usize; 4], out: usize, stride: usize) -> Case {
    Case { x, out, stride, padding: Padding::Same, residual: false, stream: false }
}

fn row(case: Case, branches: &'static [Branch]) -> Row {
    let Case { x, out, stride, padding, residual, stream } = case;
    let w = [out, 3, 3, x[3]];
    let shape = ConvShape::new(&x, &w, stride, padding).expect("the table holds shapes that fit");
    let y = [x[0], shape.output[0], shape.output[1], out];
    let m: usize = y[..3].iter().product();
    let ranks: Vec<usize> = branches.iter().map(|b| b.rank).collect();
    let name = format!(
        "conv2d {x:?} to {out}, LoRA {ranks:?}, stride {stride}, {padding:?}, residual {residual}, stream {stream}"
    );
    let fan_in = 9 * x[3];
    let small = 1.0 / (fan_in as f64).sqrt();
    let longest = m.max(9 * out).max(fan_in) + 9 * ranks.iter().sum::<usize>();
    let mut row = Row::new(name, &y, longest).input("x", &x);
    row = row.frozen("w", &w).scale(small).frozen_f32("bias", &[out]);
    if residual {
        row = row.input("residual", &y);
    }
    for branch in branches {
        row = branch.inputs(row, &[branch.rank, 3, 3, x[3]], out, small);
    }
    if stream {
        row = row.stream();
    }
    row.run(move |tape, t| {
        let mut rest = t[3..].iter();
        let residual = if residual { rest.next() } else { None };
        let loras: Vec<Lora<'_>> = branches.iter().map(|branch| branch.lora(&mut rest)).collect();
        let (bias, out) = (Some(&t[2]), stream.then_some(DType::F32));
        let w = Weight::new(t[1].clone())?;
        conv2d(tape, &t[0], &w, &ConvArgs { stride, padding, bias, residual, out, loras: &loras })
    })
    .reference(move |v| {
        let mut rest = v[3..].iter().map(Vec::as_slice);
        let residual = if residual { rest.next() } else { None };
        let factors: Vec<_> = branches.iter().filter_map(|branch| branch.factors(&mut rest, m)).collect();
        let loras: Vec<reference::LoraFactors<'_>> =
            factors.iter().map(|(down, up, scale)| (*down, *up, scale.as_ref())).collect();
        reference::conv2d(&v[0], &v[1], Some(&v[2]), residual, &loras, &shape)
    })
}

#[test]
fn conv_lora_ranks() {
    const ON: GateKind = GateKind::Scalar(1.0);
    const RANKS: [[Branch; 1]; 4] = [
        [Branch { rank: 1, scale: 2.0, gate: ON }],
        [Branch { rank: 3, scale: 0.5, gate: ON }],
        [Branch { rank: 4, scale: 1.0, gate: ON }],
        [Branch { rank: 8, scale: 0.25, gate: ON }],
    ];
    hold([
        row(same([1, 1, 1, 1], 1, 1), &RANKS[0]),
        row(same([2, 5, 7, 3], 5, 1), &RANKS[1]),
        row(same([1, 6, 5, 8], 12, 1), &RANKS[2]),
        row(same([2, 3, 4, 20], 6, 1), &RANKS[3]),
        row(Case { residual: true, ..same([1, 9, 10, 4], 20, 1) }, &RANKS[3]),
        row(Case { residual: true, stream: true, ..same([2, 4, 3, 8], 8, 1) }, &RANKS[2]),
        row(Case { stream: true, ..same([1, 3, 4, 5], 7, 1) }, &RANKS[0]),
    ]);
}

/// Large enough for Winograd's algorithm, on adapters that run it.
#[test]
fn conv_lora_winograd() {
    use GateKind::{Rows, Scalar};
    static ONE: [Branch; 1] = [Branch { rank: 4, scale: 0.5, gate: Scalar(1.0) }];
    static TWO: [Branch; 2] =
        [Branch { rank: 3, scale: 1.0, gate: Rows(2) }, Branch { rank: 8, scale: 0.5, gate: Scalar(0.7) }];
    hold([
        row(same([1, 8, 8, 128], 128, 1), &ONE),
        row(Case { residual: true, ..same([2, 9, 8, 128], 132, 1) }, &TWO),
        row(Case { residual: true, stream: true, ..same([2, 8, 9, 132], 128, 1) }, &TWO),
    ]);
}

/// `down` has the stride and the padding of the convolution.
#[test]
fn conv_lora_strides() {
    const ON: GateKind = GateKind::Scalar(1.0);
    const RANKS: [[Branch; 1]; 2] =
        [[Branch { rank: 4, scale: 1.0, gate: ON }], [Branch { rank: 5, scale: 0.5, gate: ON }]];
    let bottom_right = |x, out| Case { padding: Padding::BottomRight, ..same(x, out, 2) };
    hold([
        row(same([2, 8, 6, 4], 8, 2), &RANKS[0]),
        row(same([1, 7, 5, 3], 10, 2), &RANKS[1]),
        row(Case { stream: true, ..same([1, 5, 8, 4], 4, 2) }, &RANKS[1]),
        row(bottom_right([1, 6, 7, 4], 5), &RANKS[0]),
    ]);
}

/// More pixels than one invocation sums for the gradients; splits begin within a row of pixels.
#[test]
fn conv_lora_over_many_pixels() {
    const RANKS: [[Branch; 1]; 2] = [
        [Branch { rank: 4, scale: 1.0, gate: GateKind::Scalar(1.0) }],
        [Branch { rank: 2, scale: 1.0, gate: GateKind::Scalar(1.0) }],
    ];
    hold([row(same([2, 23, 19, 4], 4, 1), &RANKS[0]), row(same([2, 37, 41, 3], 2, 2), &RANKS[1])]);
}

#[test]
fn conv_lora_gates() {
    use GateKind::{Rows, Scalar};
    static CASES: [[Branch; 1]; 4] = [
        [Branch { rank: 3, scale: 0.75, gate: Scalar(0.6) }],
        [Branch { rank: 3, scale: 0.75, gate: Scalar(0.0) }],
        [Branch { rank: 4, scale: 0.75, gate: Rows(3) }],
        [Branch { rank: 2, scale: 0.75, gate: Rows(18) }],
    ];
    static FOUR: [Branch; 4] = [
        Branch { rank: 1, scale: 1.0, gate: Rows(12) },
        Branch { rank: 8, scale: 1.0, gate: Scalar(0.0) },
        Branch { rank: 2, scale: -1.0, gate: Scalar(0.6) },
        Branch { rank: 4, scale: 1.0, gate: Scalar(1.0) },
    ];
    hold([
        row(same([1, 4, 5, 6], 5, 1), &CASES[0]),
        row(same([1, 4, 5, 6], 5, 1), &CASES[1]),
        row(same([3, 3, 4, 4], 8, 1), &CASES[2]),
        // a gate for each pixel of the output, which is smaller than the input
        row(same([2, 5, 6, 5], 3, 2), &CASES[3]),
        row(Case { residual: true, ..same([2, 3, 2, 8], 12, 1) }, &FOUR),
        row(Case { residual: true, stream: true, ..same([2, 3, 2, 5], 7, 1) }, &FOUR),
    ]);
}
