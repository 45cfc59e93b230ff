//! The loss.

use strata_kernels::{mse, reference};
use strata_tests::Row;

use super::hold;

#[test]
fn mean_squared_errors() {
    let row = |shape: &[usize], weights: &'static [f32]| {
        Row::new(format!("mse {shape:?}, weights {weights:?}"), &[1], shape.iter().product())
            .out_f32()
            .input("pred", shape)
            .frozen("target", shape)
            .frozen_f32("weights", &[weights.len()])
            .map(|i, _| weights[i])
            .run(|tape, t| mse(tape, &t[0], &t[1], &t[2]))
            .reference(|v| reference::mse(&v[0], &v[1], &v[2]))
    };
    hold([
        row(&[1, 1], &[1.0]),
        row(&[2, 5], &[0.25, 3.0]),
        row(&[3, 5, 7, 4], &[1.0, 0.0, 0.1]),
        row(&[1, 13, 22, 4], &[1.0]),
        row(&[2, 33, 65], &[1.0, 1.0]),
        // several slices per sample
        row(&[2, 20000], &[1.0, 0.5]),
    ]);
}
