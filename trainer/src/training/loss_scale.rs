//! The factor on the loss that keeps f16 gradients in range.
//!
//! Gradients of activations are stored in f16, whose smallest number is 6e-8: unscaled, most of them would be 0. The
//! loss is multiplied by a power of two, the gradients of the LoRA (f32) are divided by it again, and the factor
//! follows what the gradients allow.

use serde::{Deserialize, Serialize};

/// Factor of the first step.
const START: f32 = 65_536.0;
/// Good steps in a row after which twice the factor is tried.
const PATIENCE: u32 = 2000;
/// More would only shift where f16 ends; a run whose gradients are all 0 stops doubling here.
const MAX: f32 = 16_777_216.0;

/// A dynamic loss scale, or the constant 1 where gradients are f32.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    scale: f32,
    dynamic: bool,
    good: u32,
}

impl LossScale {
    /// For activations in f16: starts at 2¹⁶.
    pub fn dynamic() -> Self {
        Self { scale: START, dynamic: true, good: 0 }
    }

    /// For activations in f32: 1, always.
    pub fn off() -> Self {
        Self { scale: 1.0, dynamic: false, good: 0 }
    }

    /// What the loss is multiplied by now.
    pub fn value(&self) -> f32 {
        self.scale
    }

    /// Whether the factor follows the gradients.
    pub fn is_dynamic(&self) -> bool {
        self.dynamic
    }

    /// Takes note of a step: halves after one whose gradients were not finite, doubles after 2000 good ones in a row.
    ///
    /// Returns whether the run can go on: `false` where a smaller factor cannot help, that is below 1 or without one.
    #[must_use]
    pub fn observe(&mut self, finite: bool) -> bool {
        if !self.dynamic {
            return finite;
        }
        if !finite {
            self.good = 0;
            self.scale /= 2.0;
        } else {
            self.good += 1;
            if self.good == PATIENCE {
                self.good = 0;
                self.scale = (self.scale * 2.0).min(MAX);
            }
        }
        self.scale >= 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_doubles_and_gives_up() {
        let mut scale = LossScale::dynamic();
        assert!(scale.observe(false));
        assert_eq!(scale.value(), START / 2.0);
        assert!((1..PATIENCE).all(|_| scale.observe(true)));
        assert_eq!(scale.value(), START / 2.0);
        assert!(scale.observe(true));
        assert_eq!(scale.value(), START);
        assert!((0..16).all(|_| scale.observe(false)));
        assert_eq!(scale.value(), 1.0);
        assert!(!scale.observe(false));
    }

    #[test]
    fn f32_gives_up_at_once() {
        let mut scale = LossScale::off();
        assert!(scale.observe(true));
        assert!(!scale.observe(false));
        assert_eq!(scale.value(), 1.0);
    }
}
