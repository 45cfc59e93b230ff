//! The probe during training: how far the feature that learns moves the model with its tag and without, every so often.

use serde::{Deserialize, Serialize};
use strata_engine::{DType, Gpu};
use strata_model::{GateMode, NoiseSchedule, Prompt, TextEncoder, Unet};

use crate::data::latents::Latents;
use crate::inspection::probe::{Draws, Probe, ProbeFeature, Script};
use crate::training::plan::Plan;
use crate::{Config, Result};

/// Draws in each band of timesteps: few, since the probe stops the training while it looks.
const SAMPLES: usize = 1;
/// Draws that go through the model at once.
const BATCH: usize = 4;

/// What a probe during training found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbeRecord {
    /// The feature that learns.
    pub feature: String,
    /// Steps taken.
    pub step: u64,
    /// Drift with the tag, always on.
    pub drift: f64,
    /// Mean leak over the groups of prompts without the tag, always on; `None` where the drift is 0.
    pub leak: Option<f64>,
}

/// Prompts in text states, before the U-Net is there.
pub(crate) fn script(text: &TextEncoder, plans: &[&Plan]) -> Result<Script> {
    let tokenizer = text.tokenizer();
    let feature = |plan: &&Plan| {
        let tags = plan.tags.iter().cloned().collect();
        let class = Some(plan.feature.class.clone()).filter(|class| !class.is_empty());
        ProbeFeature { name: plan.feature.name.clone(), tags, class, weight: 1.0 }
    };
    let features = plans.iter().map(feature).collect();
    let states = |prompt: &Prompt| Ok(text.encode(std::slice::from_ref(prompt), 0)?.states);
    Script::new(tokenizer, features, &[], states)
}

/// Looks at a feature every `probe_every` steps.
pub(crate) struct Watch {
    probe: Probe,
    name: String,
    own: usize,
    every: u64,
}

impl Watch {
    /// Of the attached set number `own`; the features of `script` are those attached. The latents are those of its
    /// first pictures.
    pub fn new(
        gpu: &Gpu,
        config: &Config,
        unet: &Unet,
        script: Script,
        own: usize,
        schedule: &NoiseSchedule,
        latents: &Latents,
        dtype: DType,
    ) -> Result<Self> {
        let shape = latents.shape();
        let calm = vec![0.0; shape.iter().product()];
        let clean: Vec<Vec<f32>> =
            (0..latents.len().min(4 * SAMPLES)).map(|i| latents.sample(i, false, &calm)).collect();
        let draws = Draws::new(schedule, shape, config.seed, SAMPLES, &clean)?;
        let name = script.features().get(own).map_or(String::new(), |feature| feature.name.clone());
        let probe = Probe::new(gpu, unet, dtype, script, draws, BATCH, &mut || ())?;
        Ok(Self { probe, name, own, every: config.train.probe_every })
    }

    /// What there is to say after `done` steps, if it is time.
    pub fn look(&self, unet: &Unet, done: u64) -> Result<Option<ProbeRecord>> {
        if !done.is_multiple_of(self.every) {
            return Ok(None);
        }
        let matrix = self.probe.run(unet, self.own, GateMode::Always, &mut || ())?;
        let (feature, drift, leak) = (self.name.clone(), matrix.drift(), matrix.leak);
        Ok(Some(ProbeRecord { feature, step: done, drift, leak }))
    }
}
