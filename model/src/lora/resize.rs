//! LoRAs made smaller, and several made one.

use nalgebra::DMatrix;

use super::weights::{LoraModule, LoraWeights};
use crate::{Error, Result};

/// How small.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// At most this rank.
    Rank(usize),
    /// The smallest rank that keeps this share of each ‖ΔW‖², 0 to 1.
    Energy(f64),
}

impl LoraWeights {
    /// The closest LoRA of lower rank, layer by layer: the largest singular values of each ΔW are kept. alpha comes out as the rank.
    ///
    /// # Errors
    /// The target is 0 or no share; a module is DoRA, or its singular values are not found.
    pub fn resize(&self, target: Target) -> Result<Self> {
        match target {
            Target::Rank(0) => return Err(Error::Lora("rank 0; choose at least 1".into())),
            Target::Energy(share) if !(share > 0.0 && share <= 1.0) => {
                return Err(Error::Lora(format!("energy {share}; choose a share of more than 0, up to 1")));
            }
            _ => {}
        }
        let mut resized = self.clone();
        for ((_, path), module) in &mut resized.modules {
            *module = module.resize(target).map_err(|message| Error::Lora(format!("{path} {message}")))?;
        }
        // it is no more what a run has written, nor of the rank that it says
        for of_run in ["strata_run", "strata_rules", "ss_network_dim", "ss_network_alpha"] {
            resized.metadata.remove(of_run);
        }
        Ok(resized)
    }

    /// Multiplies what it does.
    #[must_use]
    pub fn scaled(mut self, ratio: f32) -> Self {
        self.modules.values_mut().for_each(|module| module.alpha *= ratio);
        self
    }
}

impl LoraModule {
    /// With up = Q₁R₁ and downᵀ = Q₂R₂, the singular values of up · down are those of R₁R₂ᵀ, which is small.
    fn resize(&self, target: Target) -> Result<Self, String> {
        if self.magnitude.is_some() {
            return Err("is DoRA, whose ΔW is not up · down; it cannot be resized".into());
        }
        let (rank, outputs) = (self.rank(), self.up_shape[0]);
        let columns = self.down.len() / rank;
        let matrix = |rows, columns, values: &[f32]| {
            DMatrix::from_row_iterator(rows, columns, values.iter().map(|v| f64::from(*v)))
        };
        let up = matrix(outputs, rank, &self.up).qr();
        let down = matrix(rank, columns, &self.down).transpose().qr();
        let core = up.r() * down.r().transpose() * (f64::from(self.alpha) / rank as f64);
        let svd = core.try_svd(true, true, f64::EPSILON, 0).ok_or("has no singular values")?;
        let (Some(u), Some(v)) = (svd.u, svd.v_t) else { return Err("has no singular vectors".into()) };
        // the largest first
        let mut order: Vec<usize> = (0..svd.singular_values.len()).collect();
        order.sort_by(|a, b| svd.singular_values[*b].total_cmp(&svd.singular_values[*a]));
        let squares =
            |count: usize| order[..count].iter().map(|i| svd.singular_values[*i].powi(2)).sum::<f64>();
        let kept = match target {
            Target::Rank(rank) => rank.min(order.len()),
            Target::Energy(share) => {
                let enough = share * squares(order.len());
                (1..order.len()).find(|count| squares(*count) >= enough).unwrap_or(order.len())
            }
        };
        let (left, right) = (up.q() * u, down.q() * v.transpose());
        // each half gets the root of a singular value
        let root = |i: usize| svd.singular_values[i].sqrt();
        let order = &order[..kept];
        let down = order
            .iter()
            .flat_map(|i| right.column(*i).iter().map(|v| (v * root(*i)) as f32).collect::<Vec<_>>());
        let rows = (0..outputs).flat_map(|row| order.iter().map(move |i| (row, *i)));
        let up = rows.map(|(row, i)| (left[(row, i)] * root(i)) as f32);
        let (mut down_shape, mut up_shape) = (self.down_shape.clone(), self.up_shape.clone());
        (down_shape[0], up_shape[1]) = (kept, kept);
        Ok(Self {
            down: down.collect(),
            down_shape,
            up: up.collect(),
            up_shape,
            alpha: kept as f32,
            magnitude: None,
        })
    }
}
