//! Frozen linear layers, without LoRA.

use strata_engine::DType;
use strata_kernels::{Act, LinearArgs, Weight, linear, reference};
use strata_tests::Row;

use super::hold;

#[derive(Clone, Copy, Default)]
struct Case {
    bias: bool,
    residual: bool,
    act: Act,
    /// What flows in and out is f32, beside weights in f16, in rows of f16.
    stream: bool,
}

const PLAIN: Case = Case { bias: false, residual: false, act: Act::None, stream: false };

/// x `[lead…, k]` to `[lead…, n]`.
fn row(lead: &[usize], k: usize, n: usize, case: Case) -> Row {
    let with = |last: usize| [lead, &[last]].concat();
    let m: usize = lead.iter().product();
    let Case { bias, residual, act, stream } = case;
    let name =
        format!("linear {:?} → {n}, bias {bias}, residual {residual}, {act:?}, stream {stream}", with(k));
    let mut row = Row::new(name, &with(n), k.max(n));
    row = row.input("x", &with(k)).frozen("w", &[n, k]).scale(1.0 / (k as f64).sqrt());
    if bias {
        row = row.frozen_f32("bias", &[n]);
    }
    if residual {
        row = row.input("residual", &with(n));
    }
    if stream {
        row = row.stream();
    }
    row.run(move |tape, t| {
        let mut rest = t[2..].iter();
        let (bias, residual) = (if bias { rest.next() } else { None }, rest.next());
        let out = stream.then_some(DType::F32);
        let w = Weight::new(t[1].clone())?;
        linear(tape, &t[0], &w, &LinearArgs { bias, residual, act, out, ..LinearArgs::default() })
    })
    .reference(move |v| {
        let mut rest = v[2..].iter().map(Vec::as_slice);
        let (bias, residual) = (if bias { rest.next() } else { None }, rest.next());
        reference::linear(&v[0], &v[1], bias, residual, act, &[], [m, n, k])
    })
}

#[test]
fn linear_plain() {
    hold([
        row(&[1], 1, 1, PLAIN),
        row(&[3], 5, 7, PLAIN),
        row(&[1], 130, 13, PLAIN),
        row(&[2, 13], 17, 33, PLAIN),
        row(&[65], 64, 64, PLAIN),
        row(&[128], 32, 64, PLAIN),
        row(&[3, 2, 5], 12, 20, PLAIN),
        row(&[5], 320, 4, PLAIN),
    ]);
}

#[test]
fn linear_epilogues() {
    let case = |bias, residual, act| Case { bias, residual, act, stream: false };
    hold([
        row(&[130], 33, 65, case(true, true, Act::None)),
        row(&[7], 20, 40, case(true, false, Act::None)),
        row(&[2, 5], 8, 12, case(false, true, Act::None)),
        row(&[77], 20, 40, case(true, false, Act::Gelu)),
        row(&[5], 130, 13, case(true, false, Act::Silu)),
        row(&[2, 7], 16, 10, case(true, true, Act::QuickGelu)),
        row(&[3], 1, 1, case(true, true, Act::Silu)),
        row(&[2, 7], 16, 12, Case { stream: true, ..case(true, true, Act::None) }),
        row(&[5], 9, 13, Case { stream: true, ..case(true, false, Act::Gelu) }),
    ]);
}

/// x is its own residual: two shares of one gradient.
#[test]
fn linear_onto_its_input() {
    let (m, k) = (13, 20);
    let row = Row::new("x + linear(x)", &[m, k], k).input("x", &[m, k]).frozen("w", &[k, k]).scale(0.2);
    hold([row
        .run(|tape, t| {
            let w = Weight::new(t[1].clone())?;
            linear(tape, &t[0], &w, &LinearArgs { residual: Some(&t[0]), ..LinearArgs::default() })
        })
        .reference(move |v| reference::linear(&v[0], &v[1], None, Some(&v[0]), Act::None, &[], [m, k, k]))]);
}
