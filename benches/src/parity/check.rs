//! Comparing, and keeping account of what was compared.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use strata_engine::{DType, Gpu, Tensor};
use strata_model::{Checkpoint, Conditioning};

use super::goldens::{Golden, Goldens, to_nchw};
use super::{Row, Tolerances};

/// What a comparison says beside its number.
const RELATIVE: &str = "";

/// The goldens, what to compare them with, and what came of it so far.
pub(crate) struct Checker<'a> {
    pub gpu: &'a Gpu,
    pub dtype: DType,
    pub folder: PathBuf,
    pub checkpoint: Checkpoint,
    pub goldens: &'a Goldens,
    pub tolerances: Tolerances,
    pub rows: Vec<Row>,
    /// Goldens that a row speaks of.
    pub seen: BTreeSet<String>,
    pub problems: Vec<String>,
}

impl Checker<'_> {
    /// Compares values in PyTorch's layout with a golden, by relative L2 error.
    pub fn close(&mut self, name: &str, got: &[f32], tolerance: f64) {
        self.measured(name, tolerance, RELATIVE, |golden| {
            let same = got.len() == golden.values.len();
            ensure!(same, "{name}: {} values for a golden of shape {:?}", got.len(), golden.shape);
            Ok(relative_l2(got, &golden.values))
        });
    }

    /// Compares a tensor with a golden: N H W C with N C H W where the golden has four axes, else as they are.
    /// Of a tensor with more samples than the golden, the first ones count.
    pub fn tensor(&mut self, name: &str, got: &Tensor, tolerance: f64) -> Result<()> {
        self.scaled_tensor(name, got, 1.0, tolerance)
    }

    /// As [`Checker::tensor`], of `factor` times the tensor.
    pub fn scaled_tensor(&mut self, name: &str, got: &Tensor, factor: f32, tolerance: f64) -> Result<()> {
        let mut values = got.to_f32()?;
        values.iter_mut().for_each(|v| *v *= factor);
        if let Ok(golden) = self.goldens.get(name) {
            values.truncate(golden.values.len());
            if let [n, c, h, w] = golden.shape[..] {
                let sizes = got.shape();
                let fits = sizes.len() == 4 && sizes[1..] == [h, w, c];
                if !fits {
                    self.problem(format!(
                        "{name}: a tensor of shape {sizes:?} for a golden of [{n}, {c}, {h}, {w}]"
                    ));
                    return Ok(());
                }
                values = to_nchw(&values, [n, h, w, c]);
            }
        }
        self.close(name, &values, tolerance);
        Ok(())
    }

    /// Measures a golden in another way than by relative L2 error; `note` says in which.
    pub fn measured(
        &mut self,
        name: &str,
        tolerance: f64,
        note: &'static str,
        measure: impl FnOnce(&Golden) -> Result<f64>,
    ) {
        self.seen.insert(name.to_owned());
        match self.goldens.get(name).and_then(measure) {
            Err(e) => self.problem(crate::message(&e)),
            Ok(error) => {
                let torch = self.goldens.noise(name);
                self.rows.push(Row::new(name, error, torch, tolerance, note));
            }
        }
    }

    /// A figure over several goldens, which counts as none of its own.
    pub fn summary(&mut self, name: &str, error: f64, tolerance: f64, note: &'static str) {
        self.rows.push(Row::new(name, error, None, tolerance, note));
    }

    /// Something that could not even be compared.
    pub fn problem(&mut self, message: String) {
        self.problems.push(message);
    }

    /// Uploads a golden in the run's number format, images as N H W C. Returns the tensor.
    pub fn upload(&self, golden: &Golden) -> Result<Tensor> {
        let (values, shape) = match golden.shape.len() {
            4 => golden.nhwc().map(|(values, shape)| (values, shape.to_vec()))?,
            _ => (golden.values.clone(), golden.shape.clone()),
        };
        Ok(Tensor::from_f32(self.gpu, &values, &shape, self.dtype)?)
    }

    /// [`Checker::upload`] of text states.
    pub fn conditioning(&self, golden: &Golden) -> Result<Conditioning> {
        Ok(Conditioning { states: self.upload(golden)? })
    }

    /// [`Checker::upload`] of the golden of this name.
    pub fn input(&self, name: &str) -> Result<Tensor> {
        self.upload(self.goldens.get(name)?)
    }
}

/// ‖a − b‖ / ‖b‖ in f64; ‖a‖ where b is all zeros. NaN where there is one.
pub(crate) fn relative_l2(a: &[f32], b: &[f32]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    let size = norm(&mut b.iter().map(|b| f64::from(*b)));
    if size == 0.0 { difference } else { difference / size }
}

#[cfg(test)]
mod tests {
    use super::relative_l2;

    #[test]
    fn errors_are_relative_and_nan_stays_nan() {
        assert_eq!(relative_l2(&[3.0, 5.0], &[3.0, 4.0]), 0.2);
        assert_eq!(relative_l2(&[0.0, 2.0], &[0.0, 0.0]), 2.0);
        assert!(relative_l2(&[f32::NAN, 1.0], &[1.0, 1.0]).is_nan());
    }
}
