//! LoRAs made smaller, and several made one.

use super::spectrum::Spectrum;
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
    fn resize(&self, target: Target) -> Result<Self, String> {
        if self.magnitude.is_some() {
            return Err("is DoRA, whose ΔW is not up · down; it cannot be resized".into());
        }
        let spectrum = Spectrum::of_module(self).ok_or("has no singular values")?;
        let all = spectrum.values.len();
        let squares = |count: usize| spectrum.values[..count].iter().map(|v| v.powi(2)).sum::<f64>();
        let kept = match target {
            Target::Rank(rank) => rank.min(all),
            Target::Energy(share) => {
                let enough = share * squares(all);
                (1..all).find(|count| squares(*count) >= enough).unwrap_or(all)
            }
        };
        Ok(spectrum.module(kept, self.down_shape.clone(), self.up_shape.clone()))
    }
}
