//! The directions in which prompts without the tag lie.

use nalgebra::{DMatrix, DMatrixView, DVector, SymmetricEigen};

use super::States;
use crate::{Error, Result};

/// Ranks for which the share of energy is worth telling.
const RANKS: [usize; 7] = [0, 4, 8, 16, 32, 64, 128];

/// Directions with less than this share of the energy of the first are rounding errors.
const NOTHING: f64 = 1e-12;

/// What is left of a row after projection, relative to it, for the row to be a direction of its own.
const NEW_DIRECTION: f64 = 1e-5;

/// An orthonormal basis of what must stay silent: BOS first, then the directions with the most energy of all other
/// text states, BOS taken out of them.
#[derive(Debug, Clone)]
pub struct Basis {
    channels: usize,
    rows: Vec<f32>,
    energies: Vec<f64>,
}

impl Basis {
    /// BOS, and the first `rank` principal directions (uncentred) of the other states; fewer where the states do not
    /// span as many.
    ///
    /// # Errors
    /// `rank` + 1 directions are all that there are, so that nothing is left for the LoRA.
    pub fn new(states: &States, rank: usize) -> Result<Self> {
        let channels = states.channels();
        if rank + 1 >= channels {
            return Err(Error::Silence(format!(
                "rank = {rank} of silence and BOS take all {channels} channels of the text states, and leave nothing for the \
                 LoRA; choose at most {}",
                channels.saturating_sub(2)
            )));
        }
        let norm = states.bos.norm();
        let total = states.second.trace();
        if !(norm > 0.0 && total > 0.0) {
            return Err(Error::Silence(
                "the text encoder gives states of 0 only; its weights are damaged".into(),
            ));
        }
        let bos = &states.bos / norm;
        let along = (states.second.tr_mul(&bos)).dot(&bos);
        let (values, vectors) = principal(&without(&states.second, &bos))?;

        let told = |i: &usize| values[*i] > NOTHING * values[0];
        let chosen = (0..rank).take_while(told).map(|i| vectors.column(i).into_owned());
        let basis = orthonormal(std::iter::once(bos).chain(chosen));
        let energies = std::iter::once(along).chain(values).map(|energy| energy / total).collect();
        Ok(Self { channels, rows: rounded(&basis), energies })
    }

    /// C: the width of a text state.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Directions beside BOS.
    pub fn rank(&self) -> usize {
        self.rows.len() / self.channels - 1
    }

    /// The basis, row-major [rank + 1, C].
    pub fn rows(&self) -> &[f32] {
        &self.rows
    }

    /// Shares of the energy Σ ‖x‖² of the states beside BOS: along BOS, and along every principal direction, also
    /// those beyond the rank. Together they are 1.
    pub fn energies(&self) -> &[f64] {
        &self.energies
    }

    /// The share of that energy which BOS and the first `rank` directions hold.
    pub fn share(&self, rank: usize) -> f64 {
        self.energies.iter().take(rank + 1).sum()
    }

    /// A few ranks, each with its [`share`](Self::share).
    pub fn shares(&self) -> Vec<(usize, f64)> {
        let possible = RANKS.into_iter().filter(|rank| rank + 1 < self.channels);
        possible.map(|rank| (rank, self.share(rank))).collect()
    }

    /// The rows, and after them an orthonormal basis of what `directions` [n, C] add. Nothing where that is all there
    /// is.
    pub(super) fn widened(&self, directions: &[f32]) -> Option<Vec<f32>> {
        let rows = self.rows.chunks_exact(self.channels).chain(directions.chunks_exact(self.channels));
        let basis =
            orthonormal(rows.map(|row| DVector::from_iterator(row.len(), row.iter().map(|v| f64::from(*v)))));
        (basis.len() < self.channels).then(|| rounded(&basis))
    }

    /// The share of the energy of other states, BOS left out, that lies outside the basis.
    pub fn outside(&self, states: &States) -> f64 {
        let u = self.matrix();
        let within = (u.tr_mul(&(&u * &states.second))).trace();
        1.0 - within / states.second.trace()
    }

    /// BOS and the first `rank` directions alone.
    #[must_use]
    pub fn first(&self, rank: usize) -> Self {
        let rows = self.rows[..(rank.min(self.rank()) + 1) * self.channels].to_vec();
        Self { rows, ..self.clone() }
    }

    /// The basis and these directions, row-major.
    ///
    /// # Errors
    /// Together they are all that there is.
    pub fn off(&self, directions: &[f32]) -> Result<Self> {
        let rows = self.widened(directions).ok_or_else(|| {
            Error::Silence(format!(
                "the {} directions of ordinary text and the keys of other features leave none of {} channels; lower key.rank, or do without by \
                 key = false",
                self.rank(),
                self.channels
            ))
        })?;
        Ok(Self { rows, ..self.clone() })
    }

    /// [rank + 1, C].
    pub(super) fn matrix(&self) -> DMatrix<f64> {
        let rows = DMatrixView::from_slice(&self.rows, self.channels, self.rank() + 1);
        rows.transpose().map(f64::from)
    }
}

/// (I − u uᵀ) m (I − u uᵀ), for a symmetric m and a unit vector u.
fn without(m: &DMatrix<f64>, u: &DVector<f64>) -> DMatrix<f64> {
    let mu = m * u;
    let umu = u.dot(&mu);
    // symmetric to the bit: only one half is computed
    let element = |i: usize, j: usize| m[(i, j)] - u[i] * mu[j] - mu[i] * u[j] + umu * u[i] * u[j];
    DMatrix::from_fn(m.nrows(), m.ncols(), |i, j| element(i.max(j), i.min(j)))
}

/// Eigenvalues, none below 0, and eigenvectors of a symmetric matrix, the largest first.
pub(crate) fn principal(m: &DMatrix<f64>) -> Result<(Vec<f64>, DMatrix<f64>)> {
    // Most matrices need two or three sweeps per eigenvalue.
    let sweeps = 100 * m.nrows();
    let eigen = SymmetricEigen::try_new(m.clone(), f64::EPSILON, sweeps).ok_or_else(|| {
        Error::Silence(
            "the principal directions of the text states were not found; give other prompts".into(),
        )
    })?;
    let mut order: Vec<usize> = (0..m.nrows()).collect();
    order.sort_by(|a, b| eigen.eigenvalues[*b].total_cmp(&eigen.eigenvalues[*a]));
    let values = order.iter().map(|i| eigen.eigenvalues[*i].max(0.0)).collect();
    Ok((values, eigen.eigenvectors.select_columns(&order)))
}

/// Gram-Schmidt, each vector twice; those that add no direction are left out.
fn orthonormal(vectors: impl Iterator<Item = DVector<f64>>) -> Vec<DVector<f64>> {
    let mut basis: Vec<DVector<f64>> = Vec::new();
    for mut vector in vectors {
        let before = vector.norm();
        for u in basis.iter().chain(&basis) {
            vector.axpy(-vector.dot(u), u, 1.0);
        }
        let norm = vector.norm();
        if norm > NEW_DIRECTION * before {
            basis.push(vector / norm);
        }
    }
    basis
}

fn rounded(basis: &[DVector<f64>]) -> Vec<f32> {
    basis.iter().flat_map(|u| u.iter().map(|v| *v as f32)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten prompts of three states beside BOS, which lie in three of six dimensions.
    fn flat() -> States {
        let mut second = DMatrix::zeros(6, 6);
        for (axis, energy) in [(0, 50.0), (2, 8.0), (4, 2.0)] {
            second[(axis, axis)] = energy;
        }
        let bos = DVector::from_vec(vec![2.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        States { prompts: 10, others: 3, bos, second }
    }

    #[test]
    fn only_directions_that_states_have_are_taken() {
        let basis = Basis::new(&flat(), 4).unwrap();
        assert_eq!(basis.rank(), 2, "BOS takes one of the three");
        let axes: Vec<usize> =
            basis.rows().chunks_exact(6).map(|u| u.iter().position(|v| v.abs() == 1.0).unwrap()).collect();
        assert_eq!(axes, [0, 2, 4]);
        assert_eq!(basis.energies()[..3], [50.0 / 60.0, 8.0 / 60.0, 2.0 / 60.0]);
        assert_eq!(basis.shares(), [(0, 50.0 / 60.0), (4, 1.0)]);
    }

    #[test]
    fn a_basis_widens_by_what_is_new() {
        let basis = Basis::new(&flat(), 1).unwrap();
        let known = [1.0, 0.0, -3.0, 0.0, 0.0, 0.0];
        assert_eq!(basis.widened(&known).unwrap(), basis.rows());
        let nothing = [0.0; 6];
        let new = [5.0, 4.0, 0.0, 0.0, 0.0, 3.0];
        let wide = basis.widened(&[known, nothing, new, new].concat()).unwrap();
        assert_eq!(wide[..12], *basis.rows());
        assert_eq!(wide[12..], [0.0, 0.8, 0.0, 0.0, 0.0, 0.6]);
        let all: Vec<f32> = (0..36).map(|i| if i % 7 == 0 { 1.0 } else { 0.0 }).collect();
        assert!(basis.widened(&all).is_none(), "nothing would be left");
    }

    #[test]
    fn a_rank_that_leaves_nothing_is_refused() {
        let message = Basis::new(&flat(), 5).unwrap_err().to_string();
        assert!(message.contains("rank = 5") && message.contains("at most 4"), "{message}");
        let dead = States { second: DMatrix::zeros(6, 6), ..flat() };
        assert!(Basis::new(&dead, 1).unwrap_err().to_string().contains("damaged"));
        let damaged = States { bos: DVector::from_element(6, f64::NAN), ..flat() };
        assert!(Basis::new(&damaged, 1).is_err());
    }
}
