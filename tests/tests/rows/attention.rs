//! Attention.

use strata_kernels::{AttentionArgs, attention, reference};
use strata_tests::Row;

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

#[test]
fn attention_full() {
    hold([
        row(1, [1, 1], 1, 1, false),
        row(2, [5, 3], 2, 5, false),
        row(1, [13, 77], 2, 40, false),
        row(1, [7, 7], 1, 15, false),
        row(3, [33, 65], 1, 8, false),
        row(1, [5, 9], 2, 80, false),
        row(1, [3, 5], 1, 160, false),
        row(2, [17, 17], 3, 10, false),
    ]);
}

#[test]
fn attention_causal() {
    hold([
        row(3, [17, 17], 3, 10, true),
        row(1, [77, 77], 2, 8, true),
        row(1, [65, 65], 1, 10, true),
        row(1, [1, 1], 2, 8, true),
    ]);
}

/// Scores of ±8, so that few keys take nearly all the weight.
#[test]
fn attention_sharp() {
    let mut row = row(1, [9, 13], 2, 10, false);
    row.name += ", sharp";
    row.inputs[0].values.iter_mut().for_each(|v| *v *= 2.0);
    hold([row]);
}

/// One tensor as query, key and value: three shares of one gradient.
#[test]
fn attention_to_itself() {
    let (batch, t, heads, d) = (2, 13, 2, 8);
    let row = Row::new("attention of x with itself", &[batch, t, heads * d], t.max(d));
    hold([row
        .input("x", &[batch, t, heads * d])
        .run(move |tape, t| attention(tape, &t[0], &t[0], &t[0], &AttentionArgs { heads, causal: false }))
        .reference(move |v| reference::attention(&v[0], &v[0], &v[0], [batch, t, t], heads, d, false))]);
}
