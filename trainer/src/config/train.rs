//! How to learn: `[train]`.

use strata_engine::DType;

use super::check::{Problem, not_negative, positive, require, within};
use super::section::section;
use crate::training::loss::LossConfig;
use crate::training::optimizer::Optimizer;
use crate::training::schedule::ScheduleConfig;

/// Timesteps of Stable Diffusion's noise schedule.
const TIMESTEPS: u32 = 1000;
/// Months on the fastest GPU.
pub(super) const MAX_STEPS: u64 = 100_000_000;
/// Pictures: more than any GPU holds, few enough to be counted.
const MAX_BATCH: u32 = 1024;

section! {
    /// How to learn.
    pub struct TrainConfig {
        /// Updates of the LoRA. Default 1000.
        steps: u64 = 1000, "updates of the LoRA",
            check within(1, MAX_STEPS), also "max_train_steps" "num_train_steps" "max_steps",
            // the number that holds for a feature does
            decides false;
        /// Pictures that go through the U-Net at once. Default 1.
        batch_size: u32 = 1, "pictures at once; costs memory",
            check within(1, MAX_BATCH), also "train_batch_size";
        /// Batches summed into one update. Default 1.
        gradient_accumulation: u32 = 1, "batches in one update; costs time",
            check within(1, MAX_BATCH), also "gradient_accumulation_steps";
        /// Learning rate, where a rule names no other. Default 1e-4.
        lr: f64 = 1e-4, "learning rate", check positive, also "learning_rate" "unet_lr";
        /// How the learning rate rises and falls.
        schedule: ScheduleConfig => flat;
        /// A longer gradient is scaled down to this norm; 0 = never. Default 1.
        max_grad_norm: f64 = 1.0, "a longer gradient is scaled down to this; 0 = off",
            check not_negative, also "clip_grad_norm";
        /// What turns gradients into updates. Default: AdamW.
        optimizer: Optimizer => flat;
        /// Number format of weights and activations; sums, and the LoRA itself, are always f32. Default `f16`.
        dtype: DType = DType::F16, "of weights and activations: \"f16\" or \"f32\"",
            also "mixed_precision" "train_dtype";
        /// Keep only what goes into each residual block of the U-Net for the way back, and run it again there: less
        /// memory, more time, the same result. Default `false`.
        gradient_checkpointing: bool = false, "less memory, the same result; costs a second forward pass",
            decides false;
        /// What is wrong with a prediction, and how much it counts.
        loss: LossConfig => flat;
        /// Share of samples trained with an empty caption. Default 0.
        caption_dropout: f64 = 0.0, "share of samples with an empty caption",
            check share, also "caption_dropout_rate";
        /// Save every so many steps; 0 = at the end alone. Default 0.
        save_every: u64 = 0, "steps between saves; 0 = at the end alone",
            also "save_every_n_steps" "checkpointing_steps", decides false;
        /// Save all that an interrupted run goes on from every so many minutes; it is saved as well when a run ends early.
        /// 0 = then alone. Default 10.
        state_minutes: f64 = 10.0, "minutes between saves that an interrupted run goes on from; 0 = when it ends early alone",
            check not_negative, also "save_state", decides false;
        /// Probe a feature every so many steps: drift with its tag, leak without; 0 = never. Default 0.
        probe_every: u64 = 0, "steps between probes of a feature for leaks; 0 = never";
        /// Stop training a feature once a probe finds a leak above this, at a drift of at least 0.001: a LoRA that has hardly
        /// moved answers to everything alike. 0 = never. Default 0.
        stop_leak: f64 = 0.0, "stop a feature that leaks more, counted from drift 0.001 on; 0 = never", check not_negative;
        /// First timestep to draw. Default 0.
        timestep_min: u32 = 0, "first timestep to draw: 0 is the clean picture", also "min_timestep";
        /// One past the last timestep to draw, at most 1000. Default 1000.
        timestep_max: u32 = TIMESTEPS, "one past the last: 1000 is all noise",
            check within(1, TIMESTEPS), also "max_timestep";
    }
    together TrainConfig::check_together;
}

fn share(x: &f64) -> Result<(), String> {
    require((0.0..=1.0).contains(x), "must be a share from 0 to 1")
}

impl TrainConfig {
    fn check_together(&self) -> Result<(), Problem> {
        self.schedule.check_within(self.steps)?;
        if self.stop_leak > 0.0 && self.probe_every == 0 {
            let must = "needs train.probe_every, since it is a probe that finds it";
            return Err(Problem::new("stop_leak", self.stop_leak, must));
        }
        let (min, max) = (self.timestep_min, self.timestep_max);
        if min >= max {
            let must =
                format!("must be less than train.timestep_max = {max}, which is one past the last timestep");
            return Err(Problem::new("timestep_min", min, must));
        }
        Ok(())
    }
}
