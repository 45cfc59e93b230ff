//! How the learning rate rises and falls during a run.

use crate::config::check::Problem;
use crate::config::section::section;
use crate::config::value::choice;

section! {
    /// How the learning rate rises and falls. Its keys stand in `[train]`.
    pub struct ScheduleConfig {
        /// How the learning rate falls after the warm-up. Default `constant`.
        lr_schedule: Schedule = Schedule::Constant,
            "\"constant\", \"cosine\" or \"linear\" (both down to 0)",
            also "lr_scheduler" "lr_scheduler_type";
        /// Steps over which the learning rate rises from 0. Default 0.
        warmup_steps: u64 = 0, "steps over which the learning rate rises", also "lr_warmup_steps";
    }
}

choice! {
    /// How the learning rate falls from its full value after the warm-up; p goes from 0 to 1.
    pub enum Schedule {
        /// 1
        Constant = "constant",
        /// (1 + cos πp) / 2
        Cosine = "cosine",
        /// 1 − p
        Linear = "linear",
    }
}

impl Schedule {
    fn at(self, p: f64) -> f64 {
        match self {
            Self::Constant => 1.0,
            // libm's cosine, since the standard library's differs between platforms in the last bit
            Self::Cosine => 0.5 * (1.0 + libm::cos(std::f64::consts::PI * p)),
            Self::Linear => 1.0 - p,
        }
    }
}

impl ScheduleConfig {
    /// Share of a rule's learning rate that holds in a step, counted from 0, of a feature that takes `steps`.
    ///
    /// With w warm-up steps out of n, the share is (step + 1) / w in the warm-up, so that no step is
    /// wasted on a rate of 0; then [`Schedule`] with p = (step − w) / (n − w), so that the last step
    /// still learns.
    pub fn share(&self, step: u64, steps: u64) -> f64 {
        let warmup = self.warmup_steps;
        if step < warmup {
            return (step + 1) as f64 / warmup as f64;
        }
        let p = ((step - warmup) as f64 / steps.saturating_sub(warmup).max(1) as f64).min(1.0);
        self.lr_schedule.at(p)
    }

    /// The warm-up must fit into `train.steps`.
    pub(crate) fn check_within(&self, steps: u64) -> Result<(), Problem> {
        if self.warmup_steps <= steps {
            return Ok(());
        }
        let must = format!("is more than train.steps = {steps}, so the full learning rate is never reached");
        Err(Problem::new("warmup_steps", self.warmup_steps, must))
    }

    /// What kohya's trainers call it, for a LoRA file.
    pub(crate) fn metadata(&self) -> [(&'static str, String); 2] {
        [
            ("ss_lr_scheduler", self.lr_schedule.name().to_owned()),
            ("ss_lr_warmup_steps", self.warmup_steps.to_string()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(lr_schedule: Schedule, warmup_steps: u64, steps: u64) -> Vec<f64> {
        let config = ScheduleConfig { lr_schedule, warmup_steps };
        (0..steps).map(|step| config.share(step, steps)).collect()
    }

    #[test]
    fn the_warm_up_ends_at_the_full_rate_and_wastes_no_step() {
        assert_eq!(shares(Schedule::Constant, 4, 6), [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]);
        assert_eq!(ScheduleConfig { warmup_steps: 4, ..Default::default() }.share(3, 2), 1.0);
    }

    #[test]
    fn linear_falls_in_equal_steps_and_still_learns_at_the_end() {
        let expected: Vec<f64> = (0..10).map(|i| 1.0 - f64::from(i) / 10.0).collect();
        assert_eq!(shares(Schedule::Linear, 0, 10), expected);
    }

    #[test]
    fn cosine_falls_from_1_through_a_half() {
        let shares = shares(Schedule::Cosine, 4, 14);
        assert!(shares[4] == 1.0 && (shares[9] - 0.5).abs() < 1e-15 && shares[13] > 0.0);
        assert!(shares[4..].windows(2).all(|pair| pair[0] > pair[1]));
    }
}
