//! Attention.

use strata_engine::{DType, Tensor};
use strata_kernels::{AttentionArgs, attention, reference, tape};
use strata_tests::{Random, Role, Row, Setup, coop, gpu, skipped};

use super::hold;

fn row(batch: usize, [tq, tk]: [usize; 2], heads: usize, d: usize, causal: bool) -> Row {
    let c = heads * d;
    let name =
        format!("attention batch {batch}, {tq} queries, {tk} keys, {heads} heads of {d}, causal {causal}");
    Row::new(name, &[batch, tq, c], tq.max(tk).max(d))
        .input("q", &[batch, tq, c])
        .input("k", &[batch, tk, c])
        .input("v", &[batch, tk, c])
        .run(move |tape, t| attention(tape, &t[0], &t[1], &t[2], &AttentionArgs { heads, causal }))
        .reference(move |v| reference::attention(&v[0], &v[1], &v[2], [batch, tq, tk], heads, d, causal))
}

/// Whether a pass ran on cooperative matrices, with heads of d channels and zeros behind them.
fn on_matrices(pass: &str, d: usize) -> bool {
    let padded = [8, 16, 32].map(|side| format!("(\"DP\", Int({}))", d.next_multiple_of(side)));
    let parts =
        [format!("Word({pass:?})"), format!("(\"V\", Int({}))", if d.is_multiple_of(4) { 4 } else { 1 })];
    let matches = |name: &String| {
        name.starts_with("attention_coop")
            && parts.iter().all(|part| name.contains(part))
            && padded.iter().any(|part| name.contains(part))
    };
    gpu(Setup::Coop).pipelines().iter().any(matches)
}

/// Holds rows with heads of these widths, whose every pass must run on cooperative matrices in f16, where there are some.
fn hold_on_matrices(widths: &[usize], rows: impl IntoIterator<Item = Row>) {
    hold(rows);
    if coop().is_none() {
        return skipped("attention on cooperative matrices: the GPU adapter has none");
    }
    for pass in ["lse", "forward", "delta", "queries", "keys"] {
        for d in widths {
            assert!(on_matrices(pass, *d), "{pass} of heads of {d} did not run on cooperative matrices");
        }
    }
}

#[test]
fn attention_full() {
    let widths = [1, 5, 40, 15, 8, 80, 160, 10];
    let rows = [
        row(1, [1, 1], 1, 1, false),
        row(2, [5, 3], 2, 5, false),
        row(1, [13, 77], 2, 40, false),
        row(1, [7, 7], 1, 15, false),
        row(3, [33, 65], 1, 8, false),
        row(1, [5, 9], 2, 80, false),
        row(1, [3, 5], 1, 160, false),
        row(2, [17, 17], 3, 10, false),
        row(1, [70, 300], 1, 8, false),
    ];
    hold_on_matrices(&widths, rows);
}

#[test]
fn attention_causal() {
    let rows = [
        row(3, [17, 17], 3, 10, true),
        row(1, [77, 77], 2, 8, true),
        row(1, [65, 65], 1, 10, true),
        row(1, [1, 1], 2, 8, true),
        row(1, [41, 70], 1, 10, true),
        row(1, [70, 41], 1, 10, true),
    ];
    hold_on_matrices(&[10, 8], rows);
}

/// Heads whose matrices no adapter has the memory or the registers for.
#[test]
fn attention_of_wide_heads() {
    hold([row(1, [3, 5], 1, 512, false)]);
    assert!(coop().is_none() || !on_matrices("forward", 512));
}

/// One head with nothing tracked, as the VAE has it; the last has more scores than are in memory at once.
#[test]
fn attention_of_one_frozen_head() {
    hold([(2, [33, 9]), (1, [260, 16_500])].map(|(batch, tokens)| {
        let mut row = row(batch, tokens, 1, 128, false);
        row.name += ", frozen";
        row.inputs.iter_mut().for_each(|input| input.role = Role::Frozen);
        row
    }));
}

/// Scores of ±8, so that few keys take nearly all the weight.
#[test]
fn attention_sharp() {
    let mut row = row(1, [9, 13], 2, 10, false);
    row.name += ", sharp";
    row.inputs[0].values.iter_mut().for_each(|v| *v *= 2.0);
    hold_on_matrices(&[10], [row]);
}

/// One tensor as query, key and value: three shares of one gradient.
#[test]
fn attention_to_itself() {
    let (batch, t, heads, d) = (2, 13, 2, 8);
    let row = Row::new("attention of x with itself", &[batch, t, heads * d], t.max(d));
    let row = row
        .input("x", &[batch, t, heads * d])
        .run(move |tape, t| attention(tape, &t[0], &t[0], &t[0], &AttentionArgs { heads, causal: false }))
        .reference(move |v| reference::attention(&v[0], &v[0], &v[0], [batch, t, t], heads, d, false));
    hold_on_matrices(&[d], [row]);
}

/// Those that differ in f16, as far as the adapter has them.
fn setups() -> impl Iterator<Item = Setup> {
    let have = |setup: &Setup| *setup != Setup::Coop || coop().is_some();
    [Setup::Lane, Setup::Tile, Setup::Coop].into_iter().filter(have)
}

/// What a head and a sample give does not depend on NaN in those beside them, though tiles reach past their edges.
#[test]
fn attention_keeps_to_its_head_and_sample() {
    let (batch, [tq, tk], heads, d) = (2, [21, 13], 2, 10);
    let mut random = Random::new("attention beside NaN");
    let mut input = |tokens: usize| random.normal(batch * tokens * heads * d);
    let values = [(tq, input(tq)), (tk, input(tk)), (tk, input(tk)), (tq, input(tq))];
    // the first head of the first sample, and the rest
    let own = |i: usize, tokens: usize| i < tokens * heads * d && i % (heads * d) < d;
    for setup in setups() {
        let gpu = gpu(setup);
        let run = |poisoned: bool| -> Vec<Vec<f32>> {
            let tensors = values.each_ref().map(|(tokens, values)| {
                let beside = |(i, v): (usize, &f32)| if poisoned && !own(i, *tokens) { f32::NAN } else { *v };
                let values: Vec<f32> = values.iter().enumerate().map(beside).collect();
                Tensor::from_f32(&gpu, &values, &[batch, *tokens, heads * d], DType::F16).unwrap()
            });
            let [q, k, v, upstream] = &tensors;
            let tape = tape();
            [q, k, v].into_iter().for_each(|t| tape.track(t));
            let y = attention(&tape, q, k, v, &AttentionArgs { heads, causal: false }).unwrap();
            let grads = tape.backward(&y, upstream.clone()).unwrap();
            let gradients = [q, k, v].map(|t| grads.get(t).unwrap());
            let results = gradients.into_iter().zip([tq, tk, tk]).chain([(&y, tq)]);
            let kept = |(t, tokens): (&Tensor, usize)| {
                let values = t.to_f32().unwrap().into_iter().enumerate();
                values.filter(|(i, _)| own(*i, tokens)).map(|(_, v)| v).collect()
            };
            results.map(kept).collect()
        };
        let clean = run(false);
        assert!(clean.iter().flatten().all(|v| v.is_finite()), "{setup:?}");
        assert_eq!(run(true), clean, "{setup:?}");
    }
}

/// Where all keys are alike, a query changes nothing: the gradients of its scores sum to 0, also once they are rounded to f16.
#[test]
fn attention_gradients_of_scores_sum_to_zero() {
    const KEY: f32 = 30.0;
    let (tq, tk, d) = (16, 2000, 8);
    let mut random = Random::new("attention with one key");
    let [q, v, upstream] = [tq, tk, tq].map(|tokens| random.normal(tokens * d));
    let ds = |u: &[f32]| -> f64 {
        let dp: Vec<f64> =
            v.chunks(d).map(|v| u.iter().zip(v).map(|(a, b)| f64::from(a * b)).sum()).collect();
        let mean = dp.iter().sum::<f64>() / tk as f64;
        dp.iter().map(|dp| ((dp - mean) / tk as f64).powi(2)).sum()
    };
    let size = (upstream.chunks(d).map(ds).sum::<f64>() / (tq * tk) as f64).sqrt();
    // each rounding by up to half an ulp of f16, 2000 in a row: about 30 such; carried along, the last one's
    let bound = 8.0 * 2_f64.powi(-11) * size * f64::from(KEY) / (d as f64).sqrt();
    for setup in setups() {
        let gpu = gpu(setup);
        let tensor =
            |values: &[f32]| Tensor::from_f32(&gpu, values, &[1, values.len() / d, d], DType::F16).unwrap();
        let (q, k, v) = (tensor(&q), tensor(&vec![KEY; tk * d]), tensor(&v));
        let tape = tape();
        tape.track(&q);
        let y = attention(&tape, &q, &k, &v, &AttentionArgs { heads: 1, causal: false }).unwrap();
        let grads = tape.backward(&y, tensor(&upstream)).unwrap();
        let dq = grads.get(&q).unwrap().to_f32().unwrap();
        let worst = dq.iter().map(|v| f64::from(v.abs())).fold(0.0, f64::max);
        assert!(
            dq.iter().all(|v| v.is_finite()) && worst <= bound,
            "{setup:?}: {worst:e} is above {bound:e}"
        );
    }
}
