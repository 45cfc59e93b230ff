//! What a save has of a pupil: the one list of what must outlive a run that ends early.

use serde::{Deserialize, Serialize};

use super::{Outcome, Pupil};
use crate::training::fingerprint::Makings;
use crate::training::learner::Counters;
use crate::training::save::Save;
use crate::training::watch::ProbeRecord;
use crate::{Error, Result, StepRecord};

/// What a save has of a pupil beside tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PupilState {
    /// Its feature's name.
    pub feature: String,
    /// Updates taken.
    pub taken: u64,
    skipped: u64,
    loss: f64,
    stopped: bool,
    open: Option<StepRecord>,
    probe: Option<ProbeRecord>,
    learner: Counters,
    /// What its feature is made of.
    pub makings: Makings,
}

impl PupilState {
    /// Whether there would be something to lose.
    pub fn has_learned(&self) -> bool {
        self.taken > self.skipped
    }
}

impl Pupil<'_> {
    /// All that a save has of it, but for [`tensors`](Self::tensors).
    pub fn state(&self) -> PupilState {
        PupilState {
            feature: self.name().to_owned(),
            taken: self.taken,
            skipped: self.outcome.skipped,
            loss: self.outcome.loss,
            stopped: self.outcome.stopped,
            open: self.open.clone(),
            probe: self.outcome.probe.clone(),
            learner: self.learner.counters().clone(),
            makings: self.plan.makings.clone(),
        }
    }

    /// What it keeps on the GPU, by name. Waits for the GPU.
    pub fn tensors(&self) -> Result<Vec<(String, Vec<f32>)>> {
        let tensors = self.learner.tensors().into_iter();
        tensors.map(|(name, tensor)| Ok((self.named(name), tensor.to_f32()?))).collect()
    }

    fn named(&self, tensor: &str) -> String {
        format!("{}/{tensor}", self.name())
    }

    /// Becomes what was saved of it, if it is in the save, and takes that out of there.
    ///
    /// # Errors
    /// A tensor is missing, or of another size.
    pub fn restore(&mut self, save: &mut Save) -> Result<()> {
        let Some(at) = save.state.pupils.iter().position(|state| state.feature == self.name()) else {
            return Ok(());
        };
        for (name, tensor) in self.learner.tensors() {
            let name = self.named(name);
            let values = save.tensors.remove(&name).unwrap_or_default();
            if values.len() != tensor.len() {
                let (has, wanted) = (values.len(), tensor.len());
                let message = format!("the save has {has} values of `{name}`, not {wanted}; begin anew");
                return Err(Error::Resume(message));
            }
            tensor.write(&values)?;
        }
        let PupilState { taken, skipped, loss, stopped, open, probe, learner, .. } =
            save.state.pupils.swap_remove(at);
        self.learner.restore(learner);
        (self.taken, self.open) = (taken, open);
        self.outcome = Outcome { resumed_from: taken, skipped, loss, stopped, probe, ..self.outcome.clone() };
        Ok(())
    }
}
