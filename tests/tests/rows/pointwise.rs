//! Element by element.

use half::f16;
use strata_engine::{DType, Tensor};
use strata_kernels::{Act, activation, add, cast, copy, geglu, reference};
use strata_tests::{Row, Setup, gpu};

use super::hold;

fn act(shape: &[usize], act: Act) -> Row {
    let row = Row::new(format!("{act:?} {shape:?}"), shape, 1).input("x", shape).scale(3.0);
    row.run(move |tape, t| activation(tape, &t[0], act))
        .reference(move |v| v[0].iter().map(|x| act.of(*x)).collect())
}

#[test]
fn activations() {
    for kind in [Act::Silu, Act::Gelu, Act::QuickGelu] {
        hold([act(&[1], kind), act(&[3, 5], kind), act(&[2, 33, 4], kind), act(&[130], kind)]);
    }
}

/// Where exponentials overflow and error functions saturate.
#[test]
fn activations_in_the_tails() {
    for kind in [Act::Silu, Act::Gelu, Act::QuickGelu] {
        let mut row = act(&[41], kind);
        row.name += ", tails";
        let spread = |i: usize| (i as f32 - 20.0) * if i.is_multiple_of(2) { 0.5 } else { 5.0 };
        row.inputs[0].values.iter_mut().enumerate().for_each(|(i, v)| *v = spread(i));
        hold([row]);
    }
}

#[test]
fn geglus() {
    let row = |lead: &[usize], c: usize| {
        let (shape, out) = ([lead, &[2 * c]].concat(), [lead, &[c]].concat());
        Row::new(format!("geglu {shape:?}"), &out, 1)
            .input("x", &shape)
            .run(|tape, t| geglu(tape, &t[0]))
            .reference(move |v| reference::geglu(&v[0], c))
    };
    hold([row(&[13], 1), row(&[3], 5), row(&[2, 7], 20), row(&[33], 32), row(&[2], 65)]);
}

#[test]
fn sums() {
    let row = |shape: &[usize]| {
        let row = Row::new(format!("add {shape:?}"), shape, 1).input("a", shape).input("b", shape);
        row.run(|tape, t| add(tape, &t[0], &t[1]))
            .reference(|v| v[0].iter().zip(&v[1]).map(|(a, b)| a + b).collect())
    };
    let twice = Row::new("x + x", &[3, 5], 1).input("x", &[3, 5]);
    let twice =
        twice.run(|tape, t| add(tape, &t[0], &t[0])).reference(|v| v[0].iter().map(|x| 2.0 * x).collect());
    hold([row(&[1]), row(&[3, 5]), row(&[2, 3, 4]), row(&[1030]), twice]);
}

/// Rounding to nearest even, and every half comes back as itself.
#[test]
fn casts() {
    for setup in [Setup::Lane, Setup::Tile] {
        let gpu = gpu(setup);
        let ties = [
            1.0 + 2_f32.powi(-11),
            1.0 + 3.0 * 2_f32.powi(-11),
            -2049.0,
            2051.0,
            65519.0,
            65520.0,
            1e6,
            -1e6,
            0.1,
            -0.0,
        ];
        let below = [f32::INFINITY, f32::NEG_INFINITY, 6.1e-5, 1.0 / 3.0, 1000.1];
        for count in [1, 3, ties.len(), ties.len() + below.len()] {
            let values = &[&ties[..], &below[..]].concat()[..count];
            let exact = Tensor::from_f32(&gpu, values, &[count], DType::F32).unwrap();
            let half = cast(&exact, DType::F16).unwrap();
            let want: Vec<f32> = values.iter().map(|v| f16::from_f32(*v).to_f32()).collect();
            assert_eq!(half.to_f32().unwrap(), want, "{setup:?}");
            assert!(half.guards_intact().unwrap());
            let back = cast(&half, DType::F32).unwrap();
            assert_eq!(back.to_f32().unwrap(), want, "{setup:?}");
            assert!(back.guards_intact().unwrap());
        }
        let nan = cast(&Tensor::from_f32(&gpu, &[f32::NAN], &[1], DType::F32).unwrap(), DType::F16).unwrap();
        assert!(nan.to_f32().unwrap()[0].is_nan());
        assert_eq!(cast(&nan, DType::F16).unwrap().id(), nan.id(), "nothing to do");
        // as many as vectors hold, and one more
        for (count, dtype) in [(8, DType::F16), (9, DType::F16), (8, DType::F32), (9, DType::F32)] {
            let tensor = Tensor::from_f32(&gpu, &ties[..count], &[count], dtype).unwrap();
            let copied = copy(&tensor).unwrap();
            assert_ne!(copied.id(), tensor.id());
            assert_eq!(copied.to_bytes().unwrap(), tensor.to_bytes().unwrap(), "{setup:?}");
            assert!(copied.guards_intact().unwrap());
        }
    }
}
