//! Moving channels and pixels.

use strata_engine::{Result, Tape, Tensor};
use strata_kernels::{concat, reference, split, upsample_nearest};
use strata_tests::Row;

use super::hold;

#[test]
fn concats() {
    let row = |lead: &[usize], ca: usize, cb: usize| {
        let with = |last: usize| [lead, &[last]].concat();
        Row::new(format!("concat {lead:?} × {ca} + {cb}"), &with(ca + cb), 1)
            .input("a", &with(ca))
            .input("b", &with(cb))
            .run(|tape, t| concat(tape, &t[0], &t[1]))
            .reference(move |v| reference::concat(&v[0], &v[1], ca, cb))
    };
    hold([row(&[1], 1, 1), row(&[3], 5, 7), row(&[2, 3, 5], 10, 20), row(&[7], 4, 8), row(&[33], 8, 3)]);
}

#[test]
fn splits() {
    type Use = fn(&Tape, &Tensor, usize) -> Result<Tensor>;
    // the first part alone, the second alone, and both, swapped
    let uses: [(&str, Use); 3] = [
        ("first", |tape, x, at| Ok(split(tape, x, at)?.0)),
        ("second", |tape, x, at| Ok(split(tape, x, at)?.1)),
        ("both", |tape, x, at| split(tape, x, at).and_then(|(a, b)| concat(tape, &b, &a))),
    ];
    for (lead, c, at) in [(&[1][..], 2, 1), (&[3], 12, 5), (&[2, 7], 20, 8), (&[5], 13, 12)] {
        for (which, take) in uses {
            let keep = match which {
                "first" => 0..at,
                "second" => at..c,
                _ => 0..c,
            };
            let out = [lead, &[keep.len()]].concat();
            let shape = [lead, &[c]].concat();
            let reference = move |v: &[Vec<f64>]| {
                let order = |row: &[f64]| {
                    if which == "both" {
                        [&row[at..], &row[..at]].concat()
                    } else {
                        row[keep.clone()].to_vec()
                    }
                };
                v[0].chunks_exact(c).flat_map(order).collect()
            };
            let row = Row::new(format!("split {shape:?} at {at}, {which}"), &out, 1).input("x", &shape);
            hold([row.run(move |tape, t| take(tape, &t[0], at)).reference(reference)]);
        }
    }
}

#[test]
fn upsamplings() {
    let row = |x: [usize; 4], [out_h, out_w]: [usize; 2]| {
        Row::new(format!("upsample {x:?} to {out_h}×{out_w}"), &[x[0], out_h, out_w, x[3]], 4)
            .input("x", &x)
            .run(move |tape, t| upsample_nearest(tape, &t[0], out_h, out_w))
            .reference(move |v| reference::upsample_nearest(&v[0], x, out_h, out_w))
    };
    hold([
        row([1, 1, 1, 1], [1, 1]),
        row([1, 1, 1, 3], [2, 2]),
        row([2, 3, 5, 10], [6, 10]),
        row([2, 3, 5, 10], [5, 9]),
        row([1, 3, 5, 4], [6, 9]),
        row([1, 7, 11, 4], [13, 22]),
    ]);
}
