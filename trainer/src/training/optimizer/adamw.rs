//! AdamW (arXiv 1711.05101).

use strata_engine::{DType, Tensor};
use strata_kernels::adamw;
use strata_model::LoraSet;

use super::{State, Step};
use crate::Result;
use crate::config::check::{not_negative, positive, require};
use crate::config::section::section;

section! {
    /// Settings of AdamW. Its keys stand in `[train]`.
    pub struct AdamW {
        /// Weights shrink by lr · weight_decay in each update, apart from the gradient. Default 0.01.
        weight_decay: f64 = 0.01, "AdamW", check not_negative, also "adam_weight_decay";
        /// β₁ and β₂: decay of the running means of gradients and of their squares. Default 0.9, 0.999.
        betas: [f64; 2] = [0.9, 0.999], "AdamW",
            check below_1, also "adam_beta1" "adam_beta2" "beta1" "beta2";
        /// ε, added to the root of the mean of squares. Default 1e-8.
        eps: f64 = 1e-8, "AdamW", check positive, also "adam_epsilon" "epsilon";
    }
}

fn below_1(betas: &[f64; 2]) -> Result<(), String> {
    let inside = betas.iter().all(|beta| (0.0..1.0).contains(beta));
    require(inside, "must both be at least 0 and less than 1")
}

impl AdamW {
    pub(super) fn start(&self, lora: &LoraSet) -> Result<Box<dyn State>> {
        let zeros = || Tensor::zeros(lora.params().gpu(), lora.params().shape(), DType::F32);
        Ok(Box::new(Moments { settings: self.clone(), exp_avg: zeros()?, exp_avg_sq: zeros()? }))
    }
}

/// Running means of gradients and of their squares.
struct Moments {
    settings: AdamW,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
}

impl State for Moments {
    fn update(&mut self, lora: &LoraSet, step: &Step<'_>) -> Result<()> {
        let [beta1, beta2] = self.settings.betas.map(|beta| beta as f32);
        for (own_lr, range) in lora.lr_groups() {
            let part = |flat: &Tensor| flat.view(range.start, &[range.len()]);
            let shadow = lora.shadow().map(part).transpose()?;
            let [params, exp_avg, exp_avg_sq, grads] =
                [part(lora.params())?, part(&self.exp_avg)?, part(&self.exp_avg_sq)?, part(step.grads)?];
            let args = strata_kernels::AdamW {
                lr: step.lr(*own_lr),
                beta1,
                beta2,
                eps: self.settings.eps as f32,
                weight_decay: self.settings.weight_decay as f32,
                step: step.number,
                grad_scale: step.grad_scale,
                max_norm: step.max_norm,
            };
            adamw(&params, &exp_avg, &exp_avg_sq, &grads, step.norm, shadow.as_ref(), &args)?;
        }
        Ok(())
    }

    fn tensors(&self) -> Vec<(&'static str, &Tensor)> {
        vec![("exp_avg", &self.exp_avg), ("exp_avg_sq", &self.exp_avg_sq)]
    }
}
