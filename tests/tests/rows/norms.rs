//! Group norm and layer norm.

use strata_kernels::{GroupNormArgs, group_norm, layer_norm, reference};
use strata_tests::Row;

use super::hold;

const EPS: f32 = 1e-5;

#[derive(Clone, Copy)]
struct Case<'a> {
    batch: usize,
    /// Shape between batch and channels.
    inner: &'a [usize],
    c: usize,
    groups: usize,
    silu: bool,
    add: bool,
    /// x is f32 and the output f16, in rows of f16.
    wide: bool,
}

fn group(case: Case<'_>) -> Row {
    let Case { batch, inner, c, groups, silu, add, wide } = case;
    let tokens: usize = inner.iter().product();
    let shape = [&[batch], inner, &[c]].concat();
    let name = format!("group_norm {shape:?}, {groups} groups, silu {silu}, add {add}, wide {wide}");
    let mut row = Row::new(name, &shape, tokens * c / groups).input("x", &shape).frozen_f32("gamma", &[c]);
    row = row.frozen_f32("beta", &[c]);
    if add {
        row = row.input("add", &[batch, c]);
    }
    if wide {
        row.inputs.iter_mut().for_each(|input| input.always_f32 = true);
    }
    row.run_as(move |tape, t, dtype| {
        let out = wide.then_some(dtype);
        group_norm(tape, &t[0], &t[1], &t[2], &GroupNormArgs { groups, eps: EPS, silu, add: t.get(3), out })
    })
    .reference(move |v| {
        let add = v.get(3).map(Vec::as_slice);
        reference::group_norm(&v[0], &v[1], &v[2], add, [batch, tokens, c], groups, f64::from(EPS), silu)
    })
}

#[test]
fn group_norms() {
    let case =
        |batch, inner, c, groups| Case { batch, inner, c, groups, silu: false, add: false, wide: false };
    hold([
        // one value per group: its own mean
        group(case(3, &[1, 1], 8, 8)),
        group(case(2, &[5, 7], 20, 2)),
        group(case(1, &[13, 22], 30, 3)),
        group(case(1, &[130], 64, 32)),
        group(case(2, &[33], 5, 1)),
        group(case(1, &[1], 12, 3)),
        // several slices per group
        group(case(2, &[57, 91], 12, 2)),
    ]);
}

#[test]
fn group_norms_with_silu_and_add() {
    let case = |batch, inner, c, groups, silu, add| Case { batch, inner, c, groups, silu, add, wide: false };
    hold([
        group(case(2, &[4, 4], 48, 4, true, true)),
        group(case(3, &[7, 3], 10, 5, true, false)),
        group(case(2, &[9], 32, 8, false, true)),
        group(case(1, &[65], 15, 3, true, true)),
        group(Case { wide: true, ..case(2, &[5, 3], 20, 4, true, true) }),
        group(Case { wide: true, ..case(1, &[33], 15, 3, false, false) }),
    ]);
}

/// A mean far above the spread, where E[x²] − E[x]² loses digits.
fn off_centre(row: Row) -> Row {
    let mut row = row;
    row.name += ", mean 8";
    row.inputs[0].values.iter_mut().for_each(|v| *v += 8.0);
    row
}

#[test]
fn norms_far_from_zero() {
    hold([
        off_centre(group(Case {
            batch: 2,
            inner: &[5, 5],
            c: 20,
            groups: 4,
            silu: false,
            add: false,
            wide: false,
        })),
        off_centre(layer(&[7], 40, false)),
    ]);
}

fn layer(lead: &[usize], c: usize, wide: bool) -> Row {
    let shape = [lead, &[c]].concat();
    let row = Row::new(format!("layer_norm {shape:?}, wide {wide}"), &shape, c).input("x", &shape);
    let row = if wide { row.wide() } else { row };
    row.frozen_f32("gamma", &[c])
        .frozen_f32("beta", &[c])
        .run_as(|tape, t, dtype| layer_norm(tape, &t[0], &t[1], &t[2], EPS, dtype))
        .reference(move |v| reference::layer_norm(&v[0], &v[1], &v[2], c, f64::from(EPS)))
}

#[test]
fn layer_norms() {
    hold([
        layer(&[3], 5, false),
        layer(&[2, 77], 40, false),
        layer(&[1, 1], 1, false),
        layer(&[130], 33, false),
        layer(&[7], 320, false),
        layer(&[2, 3, 5], 10, false),
        layer(&[13], 20, true),
    ]);
}
