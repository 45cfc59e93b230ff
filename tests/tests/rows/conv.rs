//! Frozen convolutions.

use strata_engine::{DType, Tape, Tensor};
use strata_kernels::{ConvArgs, ConvShape, Padding, Weight, conv2d, reference};
use strata_tests::{Row, Setup, gpu};

use super::hold;

#[derive(Clone, Copy)]
struct Case {
    /// B, H, W, C.
    x: [usize; 4],
    out: usize,
    kernel: usize,
    stride: usize,
    padding: Padding,
    bias: bool,
    residual: bool,
    /// What flows in and out is f32, beside weights in f16, in rows of f16.
    stream: bool,
}

fn same(x: [usize; 4], out: usize, stride: usize) -> Case {
    Case { x, out, kernel: 3, stride, padding: Padding::Same, bias: false, residual: false, stream: false }
}

fn row(case: Case) -> Row {
    let Case { x, out, kernel, stride, padding, bias, residual, stream } = case;
    let w = [out, kernel, kernel, x[3]];
    let shape = ConvShape::new(&x, &w, stride, padding).expect("the table holds shapes that fit");
    let y = [x[0], shape.output[0], shape.output[1], out];
    let k = kernel * kernel * x[3].max(out);
    let name = format!(
        "conv2d {x:?} * {w:?}, stride {stride}, {padding:?}, bias {bias}, residual {residual}, stream {stream}"
    );
    let mut row = Row::new(name, &y, k).input("x", &x);
    row = row.frozen("w", &w).scale(1.0 / ((kernel * kernel * x[3]) as f64).sqrt());
    if bias {
        row = row.frozen_f32("bias", &[out]);
    }
    if residual {
        row = row.input("residual", &y);
    }
    if stream {
        row = row.stream();
    }
    row.run(move |tape, t| {
        let mut rest = t[2..].iter();
        let (bias, residual) = (if bias { rest.next() } else { None }, rest.next());
        let out = stream.then_some(DType::F32);
        let w = Weight::new(t[1].clone())?;
        conv2d(tape, &t[0], &w, &ConvArgs { stride, padding, bias, residual, out, loras: &[] })
    })
    .reference(move |v| {
        let mut rest = v[2..].iter().map(Vec::as_slice);
        let (bias, residual) = (if bias { rest.next() } else { None }, rest.next());
        reference::conv2d(&v[0], &v[1], bias, residual, &[], &shape)
    })
}

#[test]
fn conv_3x3() {
    hold([
        row(same([1, 1, 1, 1], 1, 1)),
        row(same([2, 5, 7, 3], 5, 1)),
        row(same([1, 2, 1, 8], 4, 1)),
        row(same([1, 13, 22, 4], 30, 1)),
        row(same([1, 9, 10, 30], 4, 1)),
        row(Case { bias: true, residual: true, ..same([3, 8, 8, 4], 8, 1) }),
        row(Case { bias: true, ..same([1, 7, 5, 20], 10, 1) }),
        row(Case { bias: true, residual: true, stream: true, ..same([2, 5, 4, 8], 12, 1) }),
        row(Case { bias: true, stream: true, ..same([1, 5, 3, 5], 7, 2) }),
    ]);
}

/// Large enough for Winograd's algorithm, on adapters that run it.
#[test]
fn conv_winograd() {
    hold([
        row(same([1, 8, 8, 128], 128, 1)),
        row(Case { bias: true, residual: true, ..same([2, 9, 8, 132], 140, 1) }),
        row(Case { bias: true, stream: true, ..same([3, 7, 11, 128], 136, 1) }),
        row(Case { residual: true, stream: true, ..same([1, 1, 65, 144], 128, 1) }),
        // several chunks
        row(same([1, 1, 2061, 128], 128, 1)),
    ]);
}

#[test]
fn conv_stride_2() {
    hold([
        row(same([1, 13, 22, 10], 20, 2)),
        row(same([2, 8, 7, 4], 8, 2)),
        row(same([1, 1, 1, 3], 5, 2)),
        row(Case { bias: true, residual: true, ..same([3, 5, 4, 5], 3, 2) }),
    ]);
}

#[test]
fn conv_bottom_right() {
    let case = |x, out, stride| Case { padding: Padding::BottomRight, ..same(x, out, stride) };
    hold([
        row(case([1, 7, 9, 16], 12, 2)),
        row(Case { bias: true, ..case([2, 6, 8, 5], 3, 2) }),
        row(case([1, 2, 2, 4], 4, 2)),
        row(case([1, 13, 22, 10], 20, 2)),
        row(case([1, 5, 6, 4], 4, 1)),
    ]);
}

#[test]
fn conv_1x1() {
    let case = |x, out, stride| Case { kernel: 1, ..same(x, out, stride) };
    hold([
        row(case([2, 3, 5, 10], 20, 1)),
        row(Case { bias: true, residual: true, ..case([1, 5, 7, 8], 4, 2) }),
    ]);
}

/// A kernel that, transformed, no launch could bind is not transformed.
#[test]
fn what_is_prepared_fits() {
    let gpu = gpu(Setup::Minimal);
    let [out, c] = [1280, 1680];
    let kernel = Tensor::from_f32(&gpu, &vec![0.5; out * 9 * c], &[out, 3, 3, c], DType::F32).unwrap();
    assert!(Tensor::bindable(&gpu, kernel.shape(), DType::F32));
    assert!(!Tensor::bindable(&gpu, &[16, out, c], DType::F32));
    let x = Tensor::from_f32(&gpu, &vec![1.0; 64 * c], &[1, 8, 8, c], DType::F32).unwrap();
    let y = conv2d(&Tape::off(), &x, &Weight::new(kernel).unwrap(), &ConvArgs::default()).unwrap();
    let y = y.to_f32().unwrap();
    // corners see 4 places, the middle 9
    assert_eq!((y[0], y[9 * out]), (2.0 * c as f32, 4.5 * c as f32));
}
