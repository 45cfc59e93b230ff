//! Weighted sums row by row.

use strata_engine::{DType, Tensor};
use strata_kernels::{blend, reference, tape};
use strata_tests::{Random, Row, Setup, gpu};

use super::hold;

#[test]
fn blends() {
    let row = |lead: &[usize], n: usize| {
        let (shape, rows) = ([lead, &[n]].concat(), lead.iter().product());
        Row::new(format!("blend {shape:?}"), &shape, 2)
            .input("x", &shape)
            .input("y", &shape)
            .frozen_f32("wx", &[rows])
            .frozen_f32("wy", &[rows])
            .run(|tape, t| blend(tape, [&t[0], &t[1]], [&t[2], &t[3]]))
            .reference(move |v| reference::blend([&v[0], &v[1]], [&v[2], &v[3]], n))
    };
    hold([row(&[1], 1), row(&[3], 5), row(&[2, 13], 20), row(&[33], 8), row(&[5, 7], 3)]);
}

/// Weights of 1 and 0 choose a row whole.
#[test]
fn a_blend_of_all_or_nothing_keeps_the_bits() {
    for (setup, dtype) in [(Setup::Lane, DType::F16), (Setup::Tile, DType::F32)] {
        let gpu = gpu(setup);
        let tensor = |seed: &str| {
            Tensor::from_f32(&gpu, &Random::new(seed).normal(13 * 20), &[13, 20], dtype).unwrap()
        };
        let weights = |f: fn(usize) -> f32| {
            let values: Vec<f32> = (0..13).map(f).collect();
            Tensor::from_f32(&gpu, &values, &[13], DType::F32).unwrap()
        };
        let (x, y) = (tensor("x"), tensor("y"));
        let (wx, wy) = (weights(|m| ((m + 1) % 2) as f32), weights(|m| (m % 2) as f32));
        let out = blend(&tape(), [&x, &y], [&wx, &wy]).unwrap().to_f32().unwrap();
        let (x, y) = (x.to_f32().unwrap(), y.to_f32().unwrap());
        for (m, row) in out.chunks_exact(20).enumerate() {
            let from = if m % 2 == 0 { &x } else { &y };
            assert!(row == &from[20 * m..][..20], "row {m}, {setup:?}");
        }
    }
}
