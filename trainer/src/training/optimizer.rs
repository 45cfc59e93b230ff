//! What turns gradients into a LoRA's updates.
//!
//! Each optimizer is a file here: its settings, which are keys of `[train]`, its state on the GPU, and its update. A new
//! one is such a file, its kernel, a variant of [`Optimizer`], and a line in each `match` below.

mod adamw;

use std::path::Path;

use strata_engine::Tensor;
use strata_model::LoraSet;

pub use adamw::AdamW;

use crate::Result;
use crate::config::check::Problem;
use crate::config::parse::Source;
use crate::config::section::{Entry, Known, Section};

/// An optimizer with its settings.
#[derive(Debug, Clone, PartialEq)]
pub enum Optimizer {
    /// Adam with decoupled weight decay.
    AdamW(AdamW),
}

impl Default for Optimizer {
    fn default() -> Self {
        Self::AdamW(AdamW::default())
    }
}

impl Optimizer {
    /// What other trainers call it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::AdamW(_) => "AdamW",
        }
    }

    /// Its state before the first update of a LoRA.
    pub(crate) fn start(&self, lora: &LoraSet) -> Result<Box<dyn State>> {
        match self {
            Self::AdamW(settings) => settings.start(lora),
        }
    }

    fn settings(&self) -> &dyn Section {
        match self {
            Self::AdamW(settings) => settings,
        }
    }

    fn settings_mut(&mut self) -> &mut dyn Section {
        match self {
            Self::AdamW(settings) => settings,
        }
    }
}

/// What an optimizer keeps between the updates of one LoRA.
pub(crate) trait State {
    /// Moves the LoRA, unless the gradients are not finite: that is found out on the GPU.
    fn update(&mut self, lora: &LoraSet, step: &Step<'_>) -> Result<()>;

    /// By name; f32, flat, in the order of the LoRA's parameters.
    fn tensors(&self) -> Vec<(&'static str, &Tensor)>;
}

/// What an update follows.
pub(crate) struct Step<'a> {
    /// f32, flat, in the order of the LoRA's parameters; times the loss scale and the number of batches.
    pub grads: &'a Tensor,
    /// Their norm, f32 \[1\]; infinite where they are not finite.
    pub norm: &'a Tensor,
    /// 1 / (loss scale · batches).
    pub grad_scale: f32,
    /// A longer gradient is scaled down to this norm; 0 = never.
    pub max_norm: f32,
    /// Which update this is, from 1.
    pub number: u32,
    /// Learning rate of layers that have none of their own.
    pub lr: f64,
    /// Share of all learning rates that holds in this step.
    pub share: f64,
}

impl Step<'_> {
    /// The learning rate of layers, which may have one of their own.
    fn lr(&self, own: Option<f32>) -> f32 {
        own.map_or((self.lr * self.share) as f32, |own| own * self.share as f32)
    }
}

/// The keys of the optimizer at hand.
impl Section for Optimizer {
    fn schema() -> Vec<Known> {
        AdamW::schema()
    }

    fn entries(&self) -> Vec<Entry<'_>> {
        self.settings().entries()
    }

    fn read(&mut self, from: &Source<'_>) -> Result<(), Problem> {
        self.settings_mut().read(from)
    }

    fn relocate(&mut self, folder: &Path) {
        self.settings_mut().relocate(folder);
    }

    fn together(&self) -> Result<(), Problem> {
        self.settings().together()
    }

    fn heading(&self) -> &'static str {
        self.settings().heading()
    }
}
