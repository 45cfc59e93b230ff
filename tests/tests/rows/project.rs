//! Rows freed of the directions of a basis.

use std::ops::Range;

use half::f16;
use strata_engine::{DType, Gpu, Tensor};
use strata_kernels::{RowSet, project, reference};
use strata_tests::{Random, Setup, compare, gpu, rms, tolerance};

/// Elements between matrices, which belong to none.
const GAP: usize = 5;

/// Matrices of rows in a flat buffer with gaps, an orthonormal basis, and what both should give.
struct Case {
    values: Vec<f32>,
    matrices: Vec<Range<usize>>,
    basis: Vec<f32>,
    channels: usize,
    want: Vec<f64>,
}

impl Case {
    fn new(rows: &[usize], k: usize, channels: usize) -> Self {
        let mut random = Random::new(&format!("project {rows:?} {k} {channels}"));
        let mut matrices = Vec::new();
        let mut length = GAP;
        for r in rows {
            matrices.push(length..length + r * channels);
            length += r * channels + GAP;
        }
        let values = random.normal(length);
        let basis = orthonormal(&random.normal(k * channels), channels);
        let mut want = wide(&values);
        matrices.iter().for_each(|m| reference::project(&mut want[m.clone()], &wide(&basis), channels));
        Self { values, matrices, basis, channels, want }
    }

    fn upload(&self, gpu: &Gpu, shadow: bool) -> Device {
        let length = [self.values.len()];
        Device {
            weights: Tensor::from_f32(gpu, &self.values, &length, DType::F32).unwrap(),
            shadow: shadow.then(|| Tensor::from_f32(gpu, &self.values, &length, DType::F16).unwrap()),
            rows: RowSet::new(gpu, &self.matrices, self.channels).unwrap(),
            basis: Tensor::from_f32(
                gpu,
                &self.basis,
                &[self.basis.len() / self.channels, self.channels],
                DType::F32,
            )
            .unwrap(),
        }
    }

    /// The rows of all matrices among values laid out as the buffer.
    fn rows<'a>(&'a self, values: &'a [f32]) -> impl Iterator<Item = &'a [f32]> {
        self.matrices.iter().flat_map(|m| values[m.clone()].chunks_exact(self.channels))
    }
}

struct Device {
    weights: Tensor,
    shadow: Option<Tensor>,
    rows: RowSet,
    basis: Tensor,
}

impl Device {
    fn project(&self) {
        project(&self.weights, &self.rows, &self.basis, self.shadow.as_ref()).unwrap();
    }
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    wide(a).iter().zip(wide(b)).map(|(a, b)| a * b).sum()
}

/// Gram-Schmidt in f64, rounded at the end.
fn orthonormal(vectors: &[f32], channels: usize) -> Vec<f32> {
    let mut basis: Vec<f64> = Vec::new();
    for vector in vectors.chunks_exact(channels) {
        let mut vector = wide(vector);
        (0..2).for_each(|_| reference::project(&mut vector, &basis, channels));
        let norm = vector.iter().map(|v| v * v).sum::<f64>().sqrt();
        basis.extend(vector.iter().map(|v| v / norm));
    }
    basis.iter().map(|v| *v as f32).collect()
}

/// Rows of each matrix, vectors in the basis, channels. The last two: more than a `lane` launch goes through at once.
const CASES: &[(&[usize], usize, usize)] = &[
    (&[1], 1, 2),
    (&[3], 2, 7),
    (&[4, 1, 9], 5, 33),
    (&[16, 16], 9, 130),
    (&[2, 7], 127, 257),
    (&[5], 129, 768),
    (&[3, 8], 65, 1024),
];

#[test]
fn rows_lose_what_they_have_along_the_basis() {
    for setup in [Setup::Lane, Setup::Tile, Setup::Arena] {
        let gpu = gpu(setup);
        for (rows, k, channels) in CASES {
            let case = Case::new(rows, *k, *channels);
            let device = case.upload(&gpu, true);
            device.project();
            let got = device.weights.to_f32().unwrap();
            let what = format!("{rows:?} rows of {channels}, {k} directions, {setup:?}");
            let tolerance = tolerance(DType::F32, *channels);
            compare(&what, &wide(&got), &case.want, rms(&case.want), tolerance).unwrap();

            let mut inside = vec![false; got.len()];
            case.matrices.iter().for_each(|m| inside[m.clone()].fill(true));
            let outside = |i: &usize| !inside[*i];
            assert!(
                (0..got.len()).filter(outside).all(|i| got[i] == case.values[i]),
                "{what}: an element of no row has changed"
            );
            for (row, before) in case.rows(&got).zip(case.rows(&case.values)) {
                let length = dot(before, before).sqrt();
                for u in case.basis.chunks_exact(*channels) {
                    let left = dot(row, u).abs() / length;
                    assert!(left <= 1e-6, "{what}: {left:e} of a row is left along the basis");
                }
            }
            let rounded: Vec<f32> = got.iter().map(|w| f16::from_f32(*w).to_f32()).collect();
            let shadow = device.shadow.as_ref().unwrap();
            assert_eq!(shadow.to_f32().unwrap(), rounded, "{what}: the f16 copy");
            assert!(device.weights.guards_intact().unwrap() && shadow.guards_intact().unwrap(), "{what}");
        }
    }
}

#[test]
fn a_second_projection_changes_next_to_nothing() {
    for setup in [Setup::Lane, Setup::Tile] {
        let gpu = gpu(setup);
        for (rows, k, channels) in CASES {
            let case = Case::new(rows, *k, *channels);
            let device = case.upload(&gpu, false);
            device.project();
            let once = wide(&device.weights.to_f32().unwrap());
            device.project();
            let twice = wide(&device.weights.to_f32().unwrap());
            let what = format!("{rows:?} rows of {channels}, {k} directions, {setup:?}");
            compare(&what, &twice, &once, rms(&wide(&case.values)), 1e-6).unwrap();
        }
    }
}

#[test]
fn equal_bits_in_every_run_and_without_a_shadow() {
    for setup in [Setup::Lane, Setup::Tile] {
        let gpu = gpu(setup);
        let case = Case::new(&[6, 3], 40, 321);
        let bytes = |shadow| {
            let device = case.upload(&gpu, shadow);
            device.project();
            device.weights.to_bytes().unwrap()
        };
        let first = bytes(true);
        assert!(first == bytes(true) && first == bytes(false), "{setup:?}");
    }
}

#[test]
fn a_row_within_the_span_becomes_nothing_and_one_outside_it_stays() {
    for setup in [Setup::Lane, Setup::Tile] {
        let gpu = gpu(setup);
        let mut case = Case::new(&[2], 3, 50);
        let rows = case.matrices[0].clone();
        // a mix of the basis; and a row that is orthogonal to it by f64's standards
        let (mixed, other) = case.values[rows.clone()].split_at_mut(50);
        mixed.fill(0.0);
        for (u, weight) in case.basis.chunks_exact(50).zip([3.0, -20.0, 100.0]) {
            mixed.iter_mut().zip(u).for_each(|(m, u)| *m += weight * u);
        }
        let mut orthogonal = wide(other);
        (0..3).for_each(|_| reference::project(&mut orthogonal, &wide(&case.basis), 50));
        other.iter_mut().zip(&orthogonal).for_each(|(o, v)| *o = *v as f32);
        let before = case.values[rows.clone()].to_vec();
        let device = case.upload(&gpu, false);
        device.project();
        let got = device.weights.to_f32().unwrap()[rows].to_vec();
        assert!(dot(&got[..50], &got[..50]).sqrt() <= 1e-6 * dot(&before[..50], &before[..50]).sqrt());
        compare("the other", &wide(&got[50..]), &wide(&before[50..]), rms(&orthogonal), 1e-6).unwrap();
        assert!(rms(&wide(&got[50..])) > 0.1, "there is another");
    }
}

#[test]
fn nan_stays_in_its_row() {
    for setup in [Setup::Lane, Setup::Tile] {
        let gpu = gpu(setup);
        let mut case = Case::new(&[3], 2, 19);
        let start = case.matrices[0].start;
        case.values[start + 19 + 4] = f32::NAN;
        let device = case.upload(&gpu, false);
        device.project();
        let got = device.weights.to_f32().unwrap();
        let nan: Vec<bool> = case.rows(&got).map(|row| row.iter().all(|v| v.is_nan())).collect();
        let finite: Vec<bool> = case.rows(&got).map(|row| row.iter().all(|v| v.is_finite())).collect();
        assert_eq!((nan, finite), (vec![false, true, false], vec![true, false, true]), "{setup:?}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let gpu = gpu(Setup::Lane);
    let one = |range: Range<usize>| vec![range];
    for (matrices, channels) in
        [(vec![], 4), (one(0..6), 4), (vec![0..8, 4..12], 4), (one(0..4), 0), (one(3..3), 4)]
    {
        assert!(RowSet::new(&gpu, &matrices, channels).is_err(), "{matrices:?} of {channels}");
    }
    let rows = RowSet::new(&gpu, &[8..16, 0..4], 4).unwrap();
    let zeros = |shape: &[usize], dtype| Tensor::zeros(&gpu, shape, dtype).unwrap();
    let (weights, basis) = (zeros(&[16], DType::F32), zeros(&[2, 4], DType::F32));
    project(&weights, &rows, &basis, Some(&zeros(&[16], DType::F16))).unwrap();
    assert!(project(&zeros(&[15], DType::F32), &rows, &basis, None).is_err(), "too short");
    assert!(project(&zeros(&[16], DType::F16), &rows, &basis, None).is_err(), "f16 parameters");
    assert!(project(&weights, &rows, &zeros(&[2, 3], DType::F32), None).is_err(), "other channels");
    assert!(project(&weights, &rows, &zeros(&[2, 4], DType::F16), None).is_err(), "a basis in f16");
    assert!(project(&weights, &rows, &basis, Some(&weights)).is_err(), "a copy in f32");
    assert!(project(&weights, &rows, &basis, Some(&zeros(&[15], DType::F16))).is_err(), "a short copy");
}
