//! Singular values of what LoRAs add, and LoRAs of the largest of them.

use nalgebra::{DMatrix, SVD};

use super::weights::LoraModule;
use crate::noise::{self, Stream};

/// Directions that are sought beyond those that are kept, so that these are good.
const SPARE: usize = 8;
/// How often the directions are brought nearer to those of the largest singular values.
const ROUNDS: usize = 4;

/// Singular values, the largest first, with their vectors: columns of `left` [out, n] and of `right` [in, n].
pub(crate) struct Spectrum {
    left: DMatrix<f64>,
    pub values: Vec<f64>,
    right: DMatrix<f64>,
}

fn matrix(rows: usize, columns: usize, values: &[f32]) -> DMatrix<f64> {
    DMatrix::from_row_iterator(rows, columns, values.iter().map(|v| f64::from(*v)))
}

impl Spectrum {
    /// Of a module's ΔW. With up = Q₁R₁ and downᵀ = Q₂R₂, the singular values of up · down are those of R₁R₂ᵀ, which is small. `None`
    /// where they are not found.
    pub fn of_module(module: &LoraModule) -> Option<Self> {
        let rank = module.rank();
        let up = matrix(module.up_shape[0], rank, &module.up).qr();
        let down = matrix(rank, module.down.len() / rank, &module.down).transpose().qr();
        let core = up.r() * down.r().transpose() * (f64::from(module.alpha) / rank as f64);
        Self::between(&up.q(), core, &down.q())
    }

    /// The largest `count` of a matrix, row-major with so many rows, by iterating a subspace (Halko, Martinsson and Tropp, arXiv
    /// 0909.4061, algorithm 4.4): exact where its rank is at most `count`. `None` where they are not found.
    pub fn of_matrix(values: &[f32], rows: usize, count: usize) -> Option<Self> {
        let all = matrix(rows, values.len() / rows, values);
        let width = (count + SPARE).min(rows).min(all.ncols());
        let mut start = vec![0.0; all.ncols() * width];
        noise::normal(0, Stream::Init, 0, 0, &mut start);
        let mut left = (&all * matrix(all.ncols(), width, &start)).qr().q();
        for _ in 0..ROUNDS {
            let right = all.tr_mul(&left).qr().q();
            left = (&all * right).qr().q();
        }
        let right = all.tr_mul(&left).qr();
        Self::between(&left, right.r().transpose(), &right.q())
    }

    /// Of left · core · rightᵀ, where left and right have columns of length 1 at right angles.
    fn between(left: &DMatrix<f64>, core: DMatrix<f64>, right: &DMatrix<f64>) -> Option<Self> {
        let SVD { u, v_t, singular_values } = core.try_svd(true, true, f64::EPSILON, 0)?;
        let (left, right) = (left * u?, right * v_t?.transpose());
        let mut order: Vec<usize> = (0..singular_values.len()).collect();
        order.sort_by(|a, b| singular_values[*b].total_cmp(&singular_values[*a]));
        let values = order.iter().map(|i| singular_values[*i]).collect();
        Some(Self { left: left.select_columns(&order), values, right: right.select_columns(&order) })
    }

    /// A module of the `kept` largest, each half with the root of a singular value; its alpha is its rank. Shapes are those of a
    /// module of any rank at the layer.
    pub fn module(&self, kept: usize, mut down_shape: Vec<usize>, mut up_shape: Vec<usize>) -> LoraModule {
        let root = |i: usize| self.values[i].sqrt();
        let down = (0..kept)
            .flat_map(|i| self.right.column(i).iter().map(|v| (v * root(i)) as f32).collect::<Vec<_>>());
        let rows = (0..self.left.nrows()).flat_map(|row| (0..kept).map(move |i| (row, i)));
        let up = rows.map(|(row, i)| (self.left[(row, i)] * root(i)) as f32);
        let (down, up) = (down.collect(), up.collect());
        (down_shape[0], up_shape[1]) = (kept, kept);
        LoraModule { down, down_shape, up, up_shape, alpha: kept as f32, magnitude: None }
    }
}
