//! What a forward pass carries along besides its data: the tape, the gates, and who looks on.

use std::cell::RefCell;
use std::collections::BTreeMap;

use strata_engine::{Tape, Tensor};

use crate::{Gates, Result};

/// Observes named activations: for comparisons with another implementation, and tests.
pub struct Taps {
    wanted: Box<dyn Fn(&str) -> bool>,
    retain: bool,
    seen: RefCell<BTreeMap<String, Tensor>>,
}

impl Taps {
    /// Observes the activations whose path `wanted` says yes to.
    pub fn new(wanted: impl Fn(&str) -> bool + 'static) -> Self {
        Self { wanted: Box::new(wanted), retain: false, seen: RefCell::default() }
    }

    /// Also asks the tape to keep the gradient of every observed tensor. Of values that the model never makes on its
    /// way (see [`Cx::tap_with`]) there is none.
    #[must_use]
    pub fn retain_gradients(mut self, retain: bool) -> Self {
        self.retain = retain;
        self
    }

    /// What was observed under `path`; the last pass counts.
    pub fn get(&self, path: &str) -> Option<Tensor> {
        self.seen.borrow().get(path).cloned()
    }

    /// Everything that was observed, by path. Starts anew.
    pub fn take(&self) -> BTreeMap<String, Tensor> {
        self.seen.take()
    }
}

/// The surroundings of a forward pass.
#[derive(Clone, Copy)]
pub struct Cx<'a> {
    /// Where ops push their way back; [`Tape::off`] for inference.
    pub tape: &'a Tape,
    /// What each attached [`LoraSet`](crate::LoraSet) is multiplied by, in the order of attaching.
    pub gates: &'a Gates,
    /// Who looks on, if anyone.
    pub taps: Option<&'a Taps>,
}

impl<'a> Cx<'a> {
    /// The model as it is: no observer, and no gates, so no LoRA may be attached.
    pub fn new(tape: &'a Tape) -> Self {
        Self { tape, gates: Gates::none(), taps: None }
    }

    /// Shows an activation to whoever wants it. `tensor` must be the one that flows on, or its gradient is lost.
    pub fn tap(&self, path: &str, tensor: &Tensor) {
        let Some(taps) = self.taps else { return };
        if (taps.wanted)(path) {
            if taps.retain {
                self.tape.retain(tensor);
            }
            taps.seen.borrow_mut().insert(path.to_string(), tensor.clone());
        }
    }

    /// As [`tap`](Self::tap) with `prefix.name`, which is put together only if someone looks on.
    pub fn tap_at(&self, prefix: &str, name: &str, tensor: &Tensor) {
        if self.taps.is_some() {
            self.tap(&format!("{prefix}.{name}"), tensor);
        }
    }

    /// Shows a value that the model itself never makes, since a kernel does two steps at once. `compute` runs only if
    /// it is wanted, on a tape that is off.
    ///
    /// # Errors
    /// Those of `compute`.
    pub fn tap_with(&self, path: &str, compute: impl FnOnce(&Cx<'_>) -> Result<Tensor>) -> Result<()> {
        let Some(taps) = self.taps.filter(|taps| (taps.wanted)(path)) else { return Ok(()) };
        let aside = Cx { tape: &Tape::off(), gates: self.gates, taps: None };
        taps.seen.borrow_mut().insert(path.to_string(), compute(&aside)?);
        Ok(())
    }
}
