//! The harness is only worth something if it fails: planted bugs, each of which it must find.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use strata_engine::{DType, Tape, Tensor};
use strata_tests::{Effort, Expected, Role, Row, Setup, check, compare, gpu, tolerance};

use crate::toy::{Knobs, launch};

/// Columns and rows: large enough that gradients are sampled, not probed in every element.
const N: usize = 9;

/// What can be wrong with the op.
#[derive(Clone, Default)]
struct Bugs {
    forward: Knobs,
    backward: Knobs,
    /// The factor of the pass with this name moves by an ulp or so in each run.
    drifts: Option<&'static str>,
    /// The backward pass takes the upstream gradient for ones, as if a sum followed.
    ignores_upstream: bool,
    /// A gradient for w, which is frozen.
    frozen_gradient: bool,
    /// Parameters' gradients replace what the sink held.
    overwrites_sink: bool,
    /// Every run keeps a tensor.
    leaks: bool,
    /// The gradient of x is handed over twice, by two shares that should have been halves.
    counted_twice: bool,
}

/// The toy op with bugs, as a row; `role` is x's.
fn row(name: &str, role: Role, bugs: Bugs) -> Row {
    let runs = Arc::new(AtomicU32::new(0));
    let leaked = Arc::new(Mutex::new(Vec::new()));
    let row = Row::new(format!("toy {name}"), &[N, N], 1);
    let row = if role == Role::Parameter { row.parameter("x", &[N, N]) } else { row.input("x", &[N, N]) };
    let run = move |tape: &Tape, t: &[Tensor]| {
        let drift = |pass: &str, mut knobs: Knobs| {
            if bugs.drifts == Some(pass) {
                knobs.factor += runs.fetch_add(1, Ordering::Relaxed) as f32 * 1e-7;
            }
            knobs
        };
        let (x, w) = (&t[0], &t[1]);
        let y = Tensor::empty(x.gpu(), x.shape(), x.dtype())?;
        launch(x, w, &y, drift("forward", bugs.forward))?;
        if bugs.leaks {
            leaked.lock().unwrap().push(Tensor::zeros(x.gpu(), &[N], DType::F32)?);
        }
        let (x, w, bugs, knobs) = (x.clone(), w.clone(), bugs.clone(), drift("backward", bugs.backward));
        tape.record(&[&x.clone()], &y, move |grad_out, grads| {
            let gpu = x.gpu();
            let ones = Tensor::from_f32(gpu, &vec![1.0; x.len()], x.shape(), x.dtype())?;
            let upstream = if bugs.ignores_upstream { &ones } else { grad_out };
            if role == Role::Parameter {
                return launch(upstream, &w, &grads.sink(&x)?, Knobs { add: !bugs.overwrites_sink, ..knobs });
            }
            let dx = Tensor::empty(gpu, x.shape(), x.dtype())?;
            launch(upstream, &w, &dx, knobs)?;
            if bugs.counted_twice {
                grads.add_id(x.id(), dx.clone())?;
            }
            if bugs.frozen_gradient {
                grads.add_id(w.id(), Tensor::zeros(gpu, w.shape(), w.dtype())?)?;
            }
            grads.add_id(x.id(), dx)
        });
        Ok(y)
    };
    let reference = |v: &[Vec<f64>]| v[0].iter().enumerate().map(|(i, x)| x * v[1][i % N]).collect();
    row.frozen("w", &[N]).run(run).reference(reference)
}

/// What the harness says in the first dtype in which it objects.
fn verdict(name: &str, role: Role, dtypes: &[DType], bugs: Bugs) -> Result<(), String> {
    let row = row(name, role, bugs);
    for dtype in dtypes {
        check(&row, &Expected::new(&row, *dtype), &gpu(Setup::Lane), Effort::Full)?;
    }
    Ok(())
}

const BOTH: &[DType] = &[DType::F32, DType::F16];

#[test]
fn the_correct_op_passes() {
    assert_eq!(verdict("correct", Role::Tracked, BOTH, Bugs::default()), Ok(()));
    assert_eq!(verdict("correct parameter", Role::Parameter, &[DType::F32], Bugs::default()), Ok(()));
}

#[test]
fn every_planted_bug_is_found() {
    let knobs = Knobs::default();
    let forward = |forward| Bugs { forward, ..Bugs::default() };
    let backward = |backward| Bugs { backward, ..Bugs::default() };
    // name, the bug, whether f16 can see it, what the error must say
    let table: &[(&str, Bugs, bool, &str)] = &[
        ("output × 1.001", forward(Knobs { factor: 1.001, ..knobs }), false, "the output"),
        ("output × 1.01", forward(Knobs { factor: 1.01, ..knobs }), true, "the output"),
        ("output × 0", forward(Knobs { factor: 0.0, ..knobs }), true, "the output"),
        ("output NaN", forward(Knobs { factor: f32::NAN, ..knobs }), true, "the output"),
        ("output transposed", forward(Knobs { transpose: true, ..knobs }), true, "the output"),
        ("one output element doubled", forward(Knobs { doubled: 40, ..knobs }), true, "index 40"),
        ("an element not written", forward(Knobs { excess: -1, ..knobs }), true, "index 80: got NaN"),
        ("output one word too long", forward(Knobs { excess: 2, ..knobs }), true, "guard"),
        ("NaN swallowed", forward(Knobs { swallow_nan: true, ..knobs }), true, "does not reach"),
        (
            "output drifts",
            Bugs { drifts: Some("forward"), ..Bugs::default() },
            false,
            "other bits in the output",
        ),
        ("gradient × 0", backward(Knobs { factor: 0.0, ..knobs }), true, "the gradient of x"),
        ("gradient × 7", backward(Knobs { factor: 7.0, ..knobs }), true, "the gradient of x"),
        ("gradient × 1.01", backward(Knobs { factor: 1.01, ..knobs }), true, "the gradient of x"),
        ("gradient NaN", backward(Knobs { factor: f32::NAN, ..knobs }), true, "got NaN"),
        ("gradient transposed", backward(Knobs { transpose: true, ..knobs }), true, "the gradient of x"),
        ("one gradient element doubled", backward(Knobs { doubled: 40, ..knobs }), true, "index 40"),
        ("gradient element not written", backward(Knobs { excess: -1, ..knobs }), true, "got NaN"),
        ("gradient one word too long", backward(Knobs { excess: 2, ..knobs }), true, "guard"),
        (
            "gradient drifts",
            Bugs { drifts: Some("backward"), ..Bugs::default() },
            false,
            "other bits in the gradient",
        ),
        ("upstream ignored", Bugs { ignores_upstream: true, ..Bugs::default() }, true, "the gradient of x"),
        ("counted twice", Bugs { counted_twice: true, ..Bugs::default() }, true, "the gradient of x"),
        ("frozen gradient", Bugs { frozen_gradient: true, ..Bugs::default() }, true, "of w is there"),
        ("leak", Bugs { leaks: true, ..Bugs::default() }, true, "bytes are alive"),
    ];
    for (name, bugs, in_f16, words) in table {
        for dtype in if *in_f16 { BOTH } else { &BOTH[..1] } {
            let error = verdict(name, Role::Tracked, &[*dtype], bugs.clone());
            let error = error.expect_err(&format!("{name} in {dtype:?} was not found"));
            assert!(error.contains(words), "{name}: found for another reason: {error}");
        }
    }
}

#[test]
fn a_sink_that_is_overwritten_is_found() {
    let bugs = Bugs { overwrites_sink: true, ..Bugs::default() };
    let error = verdict("sink", Role::Parameter, &[DType::F32], bugs).expect_err("was not found");
    assert!(error.contains("the sink of x"), "{error}");
}

#[test]
fn comparisons_fail_on_nan_and_infinity() {
    let close = |got: f64, want: f64| compare("v", &[1.0, got], &[1.0, want], 1.0, 1e-3);
    assert!(close(2.0, 2.0).is_ok() && close(2.0, 2.002).is_ok());
    for (got, want) in [
        (2.0, 2.01),
        (f64::NAN, 2.0),
        (2.0, f64::NAN),
        (f64::NAN, f64::NAN),
        (f64::INFINITY, 2.0),
        (0.0, 2.0),
    ] {
        let error = close(got, want).expect_err(&format!("{got} passed for {want}"));
        assert!(error.contains("index 1"), "{error}");
    }
    assert!(compare("v", &[1.0], &[1.0, 1.0], 1.0, 1.0).is_err(), "lengths differ");
    assert!(compare("v", &[1.0], &[1.0], f64::NAN, 1e-3).is_err(), "a scale of NaN allows nothing");
}

#[test]
fn tolerances_are_far_below_a_percent() {
    for k in [1, 100, 10_000] {
        assert!(tolerance(DType::F32, k) < 3e-5 && tolerance(DType::F16, k) < 2.1e-3, "{k}");
        assert!(tolerance(DType::F32, k) < tolerance(DType::F32, 2 * k));
    }
}
