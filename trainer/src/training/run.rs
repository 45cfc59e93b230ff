//! A run: from a config to LoRA files.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use strata_engine::{DType, Gpu};
use strata_model::progress::{note, waiting};
use strata_model::{
    Checkpoint, Lock, LoraWeights, Match, NoiseSchedule, Tag, Unet, check_room, lock, make_folder,
};

use crate::config::Order;
use crate::training::class::Class;
use crate::training::keys::key_notes;
use crate::training::log::Logs;
use crate::training::plan::{Plan, is_done, plan};
use crate::training::pupil::Outcome;
use crate::training::replaced::replaced;
use crate::training::resume::{Left, ROOM, Start};
use crate::{Config, Error, Result};

/// What a run did.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// What became of each feature, in the order of the config.
    pub features: Vec<Outcome>,
    /// The file of all features together, where there are several and all have been trained.
    pub combined: Option<PathBuf>,
    /// The log of the steps.
    pub log: PathBuf,
    /// Seconds of all steps together.
    pub seconds: f64,
    /// Number format of weights and activations.
    pub dtype: DType,
}

/// A wish that the run may end: it then saves its state, writes what was learned and stops after the step under way.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Asks for it; from any thread.
    pub fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked for.
    pub fn asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Trains what a config describes and writes its files: features that are not there yet, or `only` that one, again if
/// need be. Shows progress on stderr where that is a terminal.
///
/// A file is whole or not there: a run may be stopped at any time, in whatever way, and then goes on from its last save, in the
/// feature that it was at. Two runs of one config on one machine give equal files, also where one of them was stopped.
///
/// # Errors
/// What the config asks for is impossible, a file cannot be read or written, the training diverges, the GPU fails, the
/// end was asked for, or there are saves of another config. What was learned until then is written all the same, and
/// [`Error::Unfinished`] says where.
pub fn run(gpu: &Gpu, config: &Config, only: Option<&str>, interrupt: &Interrupt) -> Result<Summary> {
    run_from(gpu, config, only, Start::GoOn, interrupt)
}

/// As [`run`], where saves are to be used as `start` says.
///
/// # Errors
/// As [`run`]; also [`Error::NoSave`], where there must be one.
pub fn run_from(
    gpu: &Gpu,
    config: &Config,
    only: Option<&str>,
    start: Start,
    interrupt: &Interrupt,
) -> Result<Summary> {
    let mut run = Run::open(gpu, config, only)?;
    let _locks = run.make_room()?;
    let mut left = Left::find(&mut run, start)?;
    run.notes(&left)?.iter().for_each(|text| note(text));
    let before = |plan: &Plan| Outcome::before(plan, config.steps_of(&plan.feature));
    let mut summary = Summary {
        features: run.plans.iter().map(before).collect(),
        combined: None,
        log: config.log_path(),
        seconds: 0.0,
        dtype: run.dtype,
    };
    if run.plans.iter().any(|plan| plan.due) {
        run.plans.iter().filter(|plan| plan.due).try_for_each(|plan| plan.dataset.check())?;
        Logs::check(config)?;
        let materials = run.prepare()?;
        gpu.trim()?;
        run.long_captions(&materials.texts)?.iter().for_each(|text| note(text));
        let mut unet = run.unet()?;
        let (started, mut logs) = (Instant::now(), None);
        for (members, begun) in run.classes().into_iter().zip(left.take()) {
            let pupils = run.attach(&members, &materials, &mut unet)?;
            // at the last moment, when nothing is left to wait for: who dies between a new log and its first save begins another
            gpu.wait()?;
            let mut log = logs.take().map_or_else(|| Logs::open(config, left.log()), Ok)?;
            let mut class = Class::begin(&run, pupils, begun, &log)?;
            // where a feature begins is saved: now nobody asks any more where the one before it ended
            left.remove_done();
            class.teach(&unet, &mut log, interrupt)?;
            for (i, outcome) in members.into_iter().zip(class.outcomes()) {
                summary.features[i] = outcome.clone();
            }
            left.done(class.into_saves());
            logs = Some(log);
        }
        summary.seconds = started.elapsed().as_secs_f64();
    }
    summary.combined = run.combine()?;
    left.remove_done();
    Ok(summary)
}

/// Layers whose LoRA has more directions than the layer: the rest cost memory and time, and can learn nothing more.
fn too_wide(matches: &[Match]) -> Option<String> {
    let width = |m: &Match| m.layer.outputs.min(m.layer.inputs * m.layer.side() * m.layer.side());
    let wide: Vec<&Match> = matches.iter().filter(|m| m.rank > width(m)).collect();
    let first = wide.first()?;
    let more = if wide.len() > 1 { format!(", and in {} more", wide.len() - 1) } else { String::new() };
    Some(format!(
        "rank {} is more than the {} directions that {} has{more}: a rank above a layer's width learns nothing more",
        first.rank,
        width(first),
        first.layer.path
    ))
}

/// What all pupils of a run share.
pub(crate) struct Run<'a> {
    pub gpu: &'a Gpu,
    pub config: &'a Config,
    pub checkpoint: Checkpoint,
    pub schedule: NoiseSchedule,
    /// Number format of weights and activations.
    pub dtype: DType,
    pub plans: Vec<Plan>,
}

impl<'a> Run<'a> {
    /// Everything that can be wrong without the GPU comes first: the model, its noise, and what is to be done.
    pub fn open(gpu: &'a Gpu, config: &'a Config, only: Option<&str>) -> Result<Self> {
        config.validate()?;
        let checkpoint = config.checkpoint()?;
        let schedule = checkpoint.schedule()?;
        check_timesteps(config, &schedule)?;
        let mut plans = plan(config, &checkpoint, only)?;
        let dtype = storage_dtype(gpu, config.train.dtype);
        plans.iter_mut().for_each(|plan| {
            plan.makings.insert("number format".to_owned(), dtype.wgsl().to_owned());
        });
        Ok(Self { gpu, config, checkpoint, schedule, dtype, plans })
    }

    /// What is worth knowing before the first step: what was taken of the folders and what was not, and what of the model's
    /// configuration and of the rules will have no effect.
    fn notes(&self, left: &Left) -> Result<Vec<String>> {
        let mut notes = self.checkpoint.notes()?;
        for plan in self.plans.iter().filter(|plan| plan.due) {
            notes.push(plan.dataset.summary());
            notes.extend(replaced(self.config, plan, left.taken(plan)));
            notes.extend(too_wide(&plan.matches));
            notes.extend(key_notes(plan));
        }
        Ok(notes)
    }

    /// Features that belong side by side, one such class after the other, whether due or not.
    pub fn all_classes(&self) -> Vec<Vec<usize>> {
        let all = 0..self.plans.len();
        match self.config.order {
            Order::Staged => all.map(|i| vec![i]).collect(),
            Order::Joint => vec![all.collect()],
        }
    }

    /// Features that are trained side by side, one such class after the other.
    pub fn classes(&self) -> Vec<Vec<usize>> {
        let mut classes = self.all_classes();
        classes.iter_mut().for_each(|class| class.retain(|i| self.plans[*i].due));
        classes.retain(|class| !class.is_empty());
        classes
    }

    /// The features that are there, frozen, while a class learns.
    pub fn earlier(&self, class: &[usize]) -> &[Plan] {
        match (self.config.order, class) {
            (Order::Staged, &[i]) if self.plans[i].feature.with_frozen => &self.plans[..i],
            _ => &[],
        }
    }

    /// The tags of all features, by number.
    pub fn tags(&self) -> Vec<(usize, &Tag)> {
        self.plans
            .iter()
            .enumerate()
            .flat_map(|(i, plan)| plan.tags.iter().map(move |tag| (i, tag)))
            .collect()
    }

    /// Claims the files that will be written, makes their folders, and tries whether there is room.
    fn make_room(&self) -> Result<Vec<Lock>> {
        let due: Vec<&Plan> = self.plans.iter().filter(|plan| plan.due).collect();
        // in f32, and once more for all together
        let bytes = |plan: &Plan| 8 * Outcome::before(plan, 0).parameters as u64;
        let all: u64 = due.iter().map(|plan| bytes(plan)).sum::<u64>() + self.most_saved();
        let mut files: Vec<&Path> = due.iter().map(|plan| plan.feature.file()).collect();
        if !files.contains(&self.config.output.as_path()) {
            files.push(&self.config.output);
        }
        let claim = |file: &&Path| -> Result<Lock> {
            if let Some(folder) = file.parent() {
                make_folder(folder)?;
            }
            check_room(file, all)?;
            Ok(lock(file)?)
        };
        files.iter().map(claim).collect()
    }

    /// Bytes of the saves of a class at most.
    fn most_saved(&self) -> u64 {
        let parameters = |i: &usize| Outcome::before(&self.plans[*i], 0).parameters as u64;
        let all = self.classes().into_iter().map(|class| class.iter().map(parameters).sum::<u64>());
        ROOM * all.max().unwrap_or(0)
    }

    pub fn unet(&self) -> Result<Unet> {
        let _reading = waiting("reading the U-Net");
        let mut unet = self.checkpoint.unet(self.gpu, self.dtype)?;
        unet.set_gradient_checkpointing(self.config.train.gradient_checkpointing);
        Ok(unet)
    }

    /// Puts all features into one file, where there are several and all are done.
    fn combine(&self) -> Result<Option<PathBuf>> {
        let done = |plan: &Plan| is_done(plan.feature.file(), &plan.fingerprint);
        if self.plans.len() < 2 || !self.plans.iter().all(done) {
            return Ok(None);
        }
        let read = |plan: &Plan| LoraWeights::read(plan.feature.file());
        let all = self.plans.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        LoraWeights::combine(&all)?.write(&self.config.output)?;
        Ok(Some(self.config.output.clone()))
    }
}

/// The number format a run uses: what the config asks for, but f32 on a GPU adapter that has no f16.
fn storage_dtype(gpu: &Gpu, wanted: DType) -> DType {
    if wanted == DType::F16 && gpu.caps().f16 { DType::F16 } else { DType::F32 }
}

/// The model's schedule must have the timesteps that the config draws.
fn check_timesteps(config: &Config, schedule: &NoiseSchedule) -> Result<()> {
    let (max, has) = (config.train.timestep_max, schedule.timesteps());
    if max as usize <= has {
        return Ok(());
    }
    let message = format!("train.timestep_max = {max}: the model has only {has} timesteps");
    Err(Error::Config { file: None, line: None, message })
}
