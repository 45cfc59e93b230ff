//! Strata against PyTorch: every number of a folder of goldens that Strata can compute too.
//!
//! The folder is a pipeline in diffusers layout with PyTorch's results beside it. [`run`] computes them again and
//! reports the distance of each. PyTorch computed in f64, so the distance is Strata's own error.

mod check;
mod clip;
mod goldens;
mod lora;
mod pipe;
mod sched;
mod unet;
mod vae;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Result;
use serde::Serialize;
use strata_engine::{DType, Gpu};
use strata_model::{Checkpoint, ModelOptions};

use check::Checker;
use goldens::Goldens;

/// One comparison.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The golden, or several goldens together.
    pub name: String,
    /// Relative L2 error, unless `note` says otherwise; not finite in JSON is `null`.
    pub error: f64,
    /// The same error of PyTorch's own f32, where it is known.
    pub torch_f32: Option<f64>,
    /// The largest error that passes.
    pub tolerance: f64,
    /// Whether the error is at most the tolerance.
    pub pass: bool,
    /// What `error` is, where it is no relative L2 error.
    pub note: &'static str,
}

/// Goldens that Strata has nothing to compare with.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Uncovered {
    /// Beginning of their names.
    pub group: String,
    /// How many they are.
    pub goldens: usize,
    /// What Strata does not have.
    pub missing: &'static str,
}

/// What came of a comparison.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Name of the GPU adapter.
    pub adapter: String,
    /// `f32` or `f16`.
    pub dtype: &'static str,
    /// Every comparison, in the order of computing.
    pub rows: Vec<Row>,
    /// What could not even be compared: a golden that is absent, a shape that does not fit, an error on the way.
    pub problems: Vec<String>,
    /// Goldens that were compared.
    pub covered: usize,
    /// Goldens that there are: tensors that PyTorch computed, and prompts.
    pub total: usize,
    /// The rest.
    pub uncovered: Vec<Uncovered>,
}

impl Report {
    /// Whether every golden that Strata covers was there and within its tolerance.
    pub fn pass(&self) -> bool {
        self.problems.is_empty() && !self.rows.is_empty() && self.rows.iter().all(|row| row.pass)
    }
}

impl Row {
    fn new(name: &str, error: f64, torch_f32: Option<f64>, tolerance: f64, note: &'static str) -> Self {
        // NaN is not at most anything
        Self { name: name.to_owned(), error, torch_f32, tolerance, pass: error <= tolerance, note }
    }
}

/// Compares one group of goldens.
type Check = fn(&mut Checker) -> Result<()>;

/// The largest relative L2 errors that pass.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tolerances {
    /// Outputs and activations.
    pub forward: f64,
    /// What the host computes, in f32 and f64 whatever the run's number format is.
    pub host: f64,
    /// Ten steps of a sampler, on the host.
    pub sampler: f64,
    /// Latents after five steps of sampling with guidance.
    pub pipeline: f64,
    /// Share of a picture's bytes that may be more than one level off.
    pub pixels: f64,
    /// Gradients: of activations, of all LoRA matrices together, and their norms.
    pub gradient: f64,
    /// The gradient of one LoRA matrix.
    pub matrix: f64,
    /// Running means of gradients after five steps.
    pub mean: f64,
    /// Running means of squared gradients after five steps.
    pub square: f64,
    /// Losses.
    pub loss: f64,
    /// What five AdamW steps changed, all matrices together.
    pub update: f64,
    /// The same, of the worst matrix.
    pub worst_update: f64,
}

impl Tolerances {
    const F32: Self = Self {
        forward: 1e-5,
        host: 1e-5,
        sampler: 1e-6,
        pipeline: 1e-5,
        pixels: 1e-3,
        gradient: 5e-5,
        matrix: 5e-5,
        mean: 5e-5,
        square: 1e-4,
        loss: 1e-6,
        update: 2e-3,
        worst_update: 2e-2,
    };

    /// f16 rounds every activation to 11 bits. Guidance 3 adds up 3 + 2 times the error of a prediction. AdamW's first
    /// steps are as large as the learning rate whatever the gradient is, so that where a gradient is within its error
    /// of 0 a step may go either way: what the steps changed is off by more than the gradients are.
    const F16: Self = Self {
        forward: 5e-3,
        host: 1e-5,
        sampler: 1e-6,
        pipeline: 2.5e-2,
        pixels: 2e-2,
        gradient: 3e-2,
        matrix: 3e-2,
        mean: 6e-2,
        square: 1e-1,
        loss: 5e-3,
        update: 6e-2,
        worst_update: 0.4,
    };
}

/// Compares everything in `folder` that Strata covers. With `weights`, a single file, these are the model's, and the folder has
/// what the file lacks; where the file holds halves, what follows from them is as far off as an f16 run.
///
/// # Errors
/// The model, the goldens or `meta.json`, `tokens.json` or `tolerances.json` cannot be read. What goes wrong later is in
/// [`Report::problems`].
pub fn run(folder: &Path, weights: Option<&Path>, dtype: DType, gpu: &Gpu) -> Result<Report> {
    let goldens = Goldens::open(folder)?;
    let checkpoint = match weights {
        None => Checkpoint::open(folder)?,
        Some(file) => {
            let options = ModelOptions { config: Some(folder.to_owned()), ..ModelOptions::default() };
            Checkpoint::open_with(file, &options)?
        }
    };
    let halves = dtype == DType::F16 || weights.is_some() && checkpoint.unet_weights()?.is_half();
    let mut checker = Checker {
        gpu,
        dtype,
        folder: folder.to_owned(),
        checkpoint,
        goldens: &goldens,
        tolerances: if halves { Tolerances::F16 } else { Tolerances::F32 },
        rows: Vec::new(),
        seen: BTreeSet::new(),
        problems: Vec::new(),
    };
    let groups: [(&str, Check); 8] = [
        ("tokens", clip::tokens),
        ("clip", clip::text_encoder),
        ("vae", vae::autoencoder),
        ("unet", unet::forward),
        ("bwd", unet::backward),
        ("lora and train", lora::loras),
        ("sched", sched::schedulers),
        ("pipe", pipe::pipelines),
    ];
    for (name, check) in groups {
        // one group that cannot run leaves the others to be seen
        if let Err(e) = check(&mut checker) {
            checker.problem(format!("{name}: {}", crate::message(&e)));
        }
    }
    let Checker { rows, seen, mut problems, .. } = checker;
    let outputs: Vec<&str> = goldens.outputs().collect();
    let left: Vec<&str> = outputs.iter().copied().filter(|name| !seen.contains(*name)).collect();
    let prompts = goldens.prompts.len();
    Ok(Report {
        adapter: gpu.caps().name.clone(),
        dtype: dtype.wgsl(),
        covered: outputs.len() - left.len() + prompts,
        total: outputs.len() + prompts,
        uncovered: uncovered(&left, &mut problems),
        rows,
        problems,
    })
}

/// Groups what was not compared by what it would need. What Strata has and was still not compared is a problem.
fn uncovered(left: &[&str], problems: &mut Vec<String>) -> Vec<Uncovered> {
    const KNOWN: [(&str, &str); 1] = [("train.kohya_full.", "training LoRA in the text encoder")];
    let mut groups: BTreeMap<(&str, &'static str), usize> = BTreeMap::new();
    let mut forgotten: BTreeMap<&str, usize> = BTreeMap::new();
    for name in left {
        let group = &name[..name.match_indices('.').nth(1).map_or(name.len(), |(at, _)| at)];
        match KNOWN.iter().find(|(mark, _)| name.contains(mark)) {
            Some((_, missing)) => *groups.entry((group, missing)).or_default() += 1,
            None => *forgotten.entry(group).or_default() += 1,
        }
    }
    problems
        .extend(forgotten.into_iter().map(|(group, n)| format!("{group}: {n} goldens were not compared")));
    let row = |((group, missing), goldens): ((&str, &'static str), usize)| Uncovered {
        group: group.to_owned(),
        goldens,
        missing,
    };
    groups.into_iter().map(row).collect()
}
