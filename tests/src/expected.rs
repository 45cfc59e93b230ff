//! What a row's reference says: computed once, then held against every adapter setup.

use half::f16;
use strata_engine::DType;

use crate::{Random, Role, Row, rms};

/// Elements of an input whose derivative is taken one by one. Smaller inputs are probed in every element.
const ELEMENTS: usize = 24;
/// The same where one evaluation of the reference is more than [`LONG`] products: the directions see all elements anyway.
const ELEMENTS_OF_LONG: usize = 6;
const LONG: usize = 10_000_000;
/// Random directions along which a larger input is probed as a whole.
const DIRECTIONS: usize = 3;
/// Distance of central differences: errors are about its square, and rounding 1e-16 divided by it.
const STEP: f64 = 1e-5;

/// Derivatives of Σ upstream · output by one input.
pub struct Probes {
    /// (index, derivative by this element).
    pub elements: Vec<(usize, f64)>,
    /// (direction of ±1, derivative along it).
    pub directions: Vec<(Vec<f64>, f64)>,
    /// Size of a gradient element, as the tolerance needs it.
    pub scale: f64,
}

/// What an op should give for a row in one dtype.
pub struct Expected {
    /// The row's dtype.
    pub dtype: DType,
    /// Each input, rounded to its dtype.
    pub inputs: Vec<Vec<f32>>,
    /// The output.
    pub out: Vec<f64>,
    /// A random upstream gradient.
    pub upstream: Vec<f32>,
    /// Per input: its derivatives, unless it is frozen.
    pub gradients: Vec<Option<Probes>>,
    /// Per input: the element that is turned into NaN, and which outputs then are NaN.
    pub nan: Vec<(usize, Vec<bool>)>,
}

impl Expected {
    /// Evaluates the row's reference on inputs rounded to `dtype`.
    pub fn new(row: &Row, dtype: DType) -> Self {
        let mut random = Random::new(&format!("{} {dtype:?}", row.name));
        let inputs: Vec<Vec<f32>> = row.inputs.iter().map(|input| input.rounded(dtype)).collect();
        let exact: Vec<Vec<f64>> = inputs.iter().map(|v| v.iter().map(|x| f64::from(*x)).collect()).collect();
        let out = (row.reference)(&exact);
        let mut upstream = random.normal(out.len());
        if dtype == DType::F16 {
            upstream.iter_mut().for_each(|u| *u = f16::from_f32(*u).to_f32());
        }
        let mut expected = Self { dtype, inputs, out, upstream, gradients: Vec::new(), nan: Vec::new() };
        for (i, input) in row.inputs.iter().enumerate() {
            let probes = (input.role != Role::Frozen).then(|| expected.probes(row, &exact, i, &mut random));
            expected.gradients.push(probes);
            let at = random.below(input.values.len());
            let mut poisoned = exact.clone();
            poisoned[i][at] = f64::NAN;
            expected.nan.push((at, (row.reference)(&poisoned).iter().map(|v| v.is_nan()).collect()));
        }
        expected
    }

    fn probes(&self, row: &Row, exact: &[Vec<f64>], input: usize, random: &mut Random) -> Probes {
        let count = exact[input].len();
        let elements = if self.out.len() * row.k > LONG { ELEMENTS_OF_LONG } else { ELEMENTS };
        let whole = count <= elements * 2;
        let chosen: Vec<usize> = match whole {
            true => (0..count).collect(),
            // the ends are where tiles are ragged
            false => [0, count - 1].into_iter().chain((2..elements).map(|_| random.below(count))).collect(),
        };
        let elements: Vec<(usize, f64)> =
            chosen.iter().map(|&i| (i, self.derivative(row, exact, input, &[(i, 1.0)]))).collect();
        let directions = (0..if whole { 0 } else { DIRECTIONS })
            .map(|_| {
                let direction: Vec<f64> = (0..count).map(|_| random.sign()).collect();
                let dense: Vec<(usize, f64)> = direction.iter().copied().enumerate().collect();
                let along = self.derivative(row, exact, input, &dense);
                (direction, along)
            })
            .collect();
        // Gradients of softmax and norms are small differences of larger terms, whose rounding errors stay: the
        // scale is never less than a share of what the gradient of a linear map of this gain would be.
        let upstream: Vec<f64> = self.upstream.iter().map(|u| f64::from(*u)).collect();
        let gain =
            rms(&self.out) / rms(&exact[input]).max(1e-30) * (self.out.len() as f64 / count as f64).sqrt();
        let found = rms(&elements.iter().map(|e| e.1).collect::<Vec<_>>());
        Probes { elements, directions, scale: found.max(rms(&upstream) * gain / 16.0) }
    }

    /// The central difference of Σ upstream · output when `direction` (index, amount) is added to an input.
    pub(crate) fn derivative(
        &self,
        row: &Row,
        exact: &[Vec<f64>],
        input: usize,
        direction: &[(usize, f64)],
    ) -> f64 {
        let step = if direction.len() > 1 { STEP / 5.0 } else { STEP };
        let mut moved = exact.to_vec();
        let mut at = |distance: f64| {
            for (i, amount) in direction {
                moved[input][*i] = exact[input][*i] + distance * amount;
            }
            (row.reference)(&moved)
        };
        let (above, below) = (at(step), at(-step));
        // differences first: outputs that do not depend on the input then add exactly nothing
        let terms = above.iter().zip(&below).zip(&self.upstream);
        terms.map(|((a, b), u)| (a - b) * f64::from(*u)).sum::<f64>() / (2.0 * step)
    }

    pub(crate) fn exact(&self) -> Vec<Vec<f64>> {
        self.inputs.iter().map(|v| v.iter().map(|x| f64::from(*x)).collect()).collect()
    }
}
