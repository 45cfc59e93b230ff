//! A run: from a config to LoRA files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use strata_engine::{DType, Gpu};
use strata_model::{LoraFile, LoraSet, Match, ModelIndex, NoiseSchedule, SchedulerConfig, Unet, Vae};

use crate::config::Order;
use crate::data::cache::{Latents, Texts};
use crate::features::preserve::texts;
use crate::features::silence::{Basis, Silence, basis};
use crate::inspection::probe::Script;
use crate::training::learner::Learner;
use crate::training::log::Logs;
use crate::training::plan::{Plan, plan};
use crate::training::save::{combine, save, save_between};
use crate::training::step::{Lesson, Trainer};
use crate::training::tensorboard::TensorBoard;
use crate::training::watch::{ProbeRecord, Watch, script};
use crate::{Config, Error, Precision, Result, StepLog, StepRecord, Tags, kaiming_uniform, noise};
use strata_model::progress::{self, bar, waiting};

/// Weight of the newest loss in the running mean that the progress bar shows.
const SMOOTHING: f64 = 0.05;

/// What a run did.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// What became of each feature, in the order of the config.
    pub features: Vec<Outcome>,
    /// The file of all features together, where there are several and all have been trained.
    pub combined: Option<PathBuf>,
    /// The log of the steps.
    pub log: PathBuf,
    /// Captions and prompts that are longer than CLIP can read; what is over was left out.
    pub cut_captions: usize,
    /// Seconds of all steps together.
    pub seconds: f64,
    /// Number format of weights and activations.
    pub dtype: DType,
}

/// What became of a feature.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Its name; empty in a run without features.
    pub name: String,
    /// The LoRA files that were written, the last one last. None where it had been trained before.
    pub files: Vec<PathBuf>,
    /// Updates asked for.
    pub steps: u64,
    /// Those of them that were left out because a gradient was not finite.
    pub skipped: u64,
    /// Layers that have a LoRA.
    pub layers: usize,
    /// Numbers in the LoRA.
    pub parameters: usize,
    /// Running mean of the loss at the end.
    pub loss: f64,
    /// What the last probe found, if there was one.
    pub probe: Option<ProbeRecord>,
    /// The training ended early, since that probe found a leak above the limit.
    pub stopped: bool,
}

/// Trains what a config describes and writes its files: features that are not there yet, or `only` that one, again if
/// need be. Shows progress on stderr where that is a terminal.
///
/// A file is whole or not there: a run may be stopped at any time, and goes on with the first feature that is not done.
/// Two runs of one config on one machine give equal files.
///
/// # Errors
/// What the config asks for is impossible, a file cannot be read or written, the training diverges, or the GPU fails.
pub fn run(gpu: &Gpu, config: &Config, only: Option<&str>) -> Result<Summary> {
    let model = &config.model;
    let (schedule, plans) = begin(config, only)?;
    for plan in &plans {
        make_folder_of(plan.feature.file())?;
    }
    make_folder_of(&config.output)?;
    let due: Vec<&Plan> = plans.iter().filter(|plan| plan.due).collect();
    let dtype = storage_dtype(gpu, config.train.dtype);
    let mut summary = Summary {
        features: plans.iter().map(|plan| Outcome::before(config, plan)).collect(),
        combined: None,
        log: config.log_path(),
        cut_captions: 0,
        seconds: 0.0,
        dtype,
    };
    if !due.is_empty() {
        let board = config.tensorboard.as_deref().map(TensorBoard::create).transpose()?;
        let mut log = Logs::new(StepLog::create(&config.log_path())?, board);
        let run = Run::prepare(gpu, config, &schedule, &plans, dtype)?;
        let reading = waiting("reading the U-Net");
        let mut unet = Unet::open(gpu, &model.join("unet"), dtype)?;
        drop(reading);
        unet.set_gradient_checkpointing(config.train.gradient_checkpointing);
        summary.cut_captions = run.texts.cut();
        let started = Instant::now();
        match config.order {
            Order::Staged => run.staged(&plans, &mut unet, &mut log, &mut summary.features)?,
            Order::Joint => run.joint(&plans, &mut unet, &mut log, &mut summary.features)?,
        }
        summary.seconds = started.elapsed().as_secs_f64();
    }
    summary.combined = combine(config, &plans)?;
    Ok(summary)
}

/// Everything that can be wrong without the GPU comes first: the model's noise, and what is to be done.
pub(crate) fn begin(config: &Config, only: Option<&str>) -> Result<(NoiseSchedule, Vec<Plan>)> {
    config.validate()?;
    ModelIndex::open(&config.model)?;
    let schedule = config.model.join("scheduler").join("scheduler_config.json");
    let schedule = NoiseSchedule::new(&SchedulerConfig::open(&schedule)?)?;
    check_timesteps(config, &schedule)?;
    Ok((schedule, plan(config, only)?))
}

/// What is in GPU and host memory during a run.
struct Run<'a> {
    gpu: &'a Gpu,
    config: &'a Config,
    schedule: &'a NoiseSchedule,
    dtype: DType,
    texts: Texts,
    /// Of each feature that is due.
    latents: Vec<Option<Latents>>,
    bases: Vec<Option<Basis>>,
    /// Of each feature that is due, where features are probed.
    scripts: Vec<Option<Script>>,
}

impl<'a> Run<'a> {
    fn prepare(
        gpu: &'a Gpu,
        config: &'a Config,
        schedule: &'a NoiseSchedule,
        plans: &[Plan],
        dtype: DType,
    ) -> Result<Self> {
        let model = &config.model;
        let mut wanted = BTreeSet::new();
        let (mut latents, mut bases, mut scripts) = (Vec::new(), Vec::new(), Vec::new());
        let reading = waiting("reading the VAE");
        let vae = Vae::open(gpu, &model.join("vae"), DType::F32)?;
        drop(reading);
        for (i, plan) in plans.iter().enumerate() {
            let (mut own, mut span) = (None, None);
            if plan.due {
                let captions = plan.dataset.pictures().iter().map(|p| p.caption.as_str());
                wanted.extend(texts(captions, &plan.preservation));
                own = Some(Latents::encode(gpu, &vae, &plan.dataset, plan.feature.dataset.flip)?);
                if let Some(silence) = &plan.feature.silence {
                    span = Some(basis(gpu, model, &plan.silent, silence.rank)?);
                }
            }
            latents.push(own);
            bases.push(span);
            let probed = plan.due && config.train.probe_every > 0;
            // as they are attached
            let attached: Vec<&Plan> = match config.order {
                Order::Staged if plan.feature.with_frozen => plans[..=i].iter().collect(),
                Order::Staged => vec![plan],
                Order::Joint => plans.iter().filter(|p| p.due).collect(),
            };
            scripts.push(probed.then(|| script(gpu, config, &attached)).transpose()?);
        }
        drop(vae);
        let texts = Texts::encode(gpu, model, &wanted)?;
        Ok(Self { gpu, config, schedule, dtype, texts, latents, bases, scripts })
    }

    /// One feature after the other.
    fn staged(
        &self,
        plans: &[Plan],
        unet: &mut Unet,
        log: &mut Logs,
        outcomes: &mut [Outcome],
    ) -> Result<()> {
        for (i, plan) in plans.iter().enumerate().filter(|(_, plan)| plan.due) {
            unet.detach_all();
            let (mut company, mut earlier) = (Vec::new(), Vec::new());
            for before in plans[..i].iter().filter(|_| plan.feature.with_frozen) {
                let set = self.frozen(plan, before, unet)?;
                unet.attach(&set)?;
                company.push(Some(&before.tags));
                earlier.push(set);
            }
            let lora = self.fresh(plan)?;
            let own = unet.attach(&lora)?;
            company.push(None);
            let silence = self.silence(i, plan, &lora, &earlier)?;
            let learner = Learner::new(self.gpu, unet, &lora, own, self.dtype)?;
            let watch = self.watch(i, own, unet)?;
            let mut trainer = Trainer::new(self.lesson(i, plan, company)?, learner, silence);

            let progress = bar(self.config.steps_of(&plan.feature), &plan.feature.name);
            for step in 0..self.config.steps_of(&plan.feature) {
                let record = trainer.step(step)?;
                log.step(&record)?;
                outcomes[i].note(&record);
                progress.set_message(format!("loss {:.4}", outcomes[i].loss));
                progress.inc(1);
                let saved = outcomes[i].files.len();
                save_between(self.config, plan, unet, self.schedule, &lora, step + 1, &mut outcomes[i])?;
                progress::saved(&progress, &outcomes[i].files[saved..]);
                if self.look(watch.as_ref(), unet, step + 1, log, &mut outcomes[i])? {
                    break;
                }
            }
            progress.finish_and_clear();
            let taken = outcomes[i].steps;
            outcomes[i].files.push(save(self.config, plan, unet, self.schedule, &lora, None, taken)?);
        }
        Ok(())
    }

    /// All features side by side. Each has batches, gradients and moments of its own, and the others are off in its
    /// samples; so its file is the one that it would have alone.
    fn joint(&self, plans: &[Plan], unet: &mut Unet, log: &mut Logs, outcomes: &mut [Outcome]) -> Result<()> {
        let due: Vec<(usize, &Plan)> = plans.iter().enumerate().filter(|(_, plan)| plan.due).collect();
        let sets = due.iter().map(|(_, plan)| self.fresh(plan)).collect::<Result<Vec<_>>>()?;
        for set in &sets {
            unet.attach(set)?;
        }
        let (mut trainers, mut watches) = (Vec::new(), Vec::new());
        for (own, ((i, plan), lora)) in due.iter().zip(&sets).enumerate() {
            let silence = self.silence(*i, plan, lora, &[])?;
            let learner = Learner::new(self.gpu, unet, lora, own, self.dtype)?;
            watches.push(self.watch(*i, own, unet)?);
            trainers.push(Trainer::new(self.lesson(*i, plan, vec![None; sets.len()])?, learner, silence));
        }
        let steps = due.iter().map(|(_, plan)| self.config.steps_of(&plan.feature)).max().unwrap_or(0);
        let progress = bar(steps, "joint");
        for step in 0..steps {
            let each = due.iter().zip(&sets).zip(&mut trainers).zip(&watches);
            for ((((i, plan), lora), trainer), watch) in each {
                let outcome = &mut outcomes[*i];
                if step < self.config.steps_of(&plan.feature) && !outcome.stopped {
                    let record = trainer.step(step)?;
                    log.step(&record)?;
                    outcome.note(&record);
                    let saved = outcome.files.len();
                    save_between(self.config, plan, unet, self.schedule, lora, step + 1, outcome)?;
                    progress::saved(&progress, &outcome.files[saved..]);
                    self.look(watch.as_ref(), unet, step + 1, log, outcome)?;
                }
            }
            let losses: Vec<String> = due.iter().map(|(i, _)| format!("{:.4}", outcomes[*i].loss)).collect();
            progress.set_message(format!("loss {}", losses.join(" ")));
            progress.inc(1);
        }
        progress.finish_and_clear();
        for ((i, plan), lora) in due.iter().zip(&sets) {
            let taken = outcomes[*i].steps;
            outcomes[*i].files.push(save(self.config, plan, unet, self.schedule, lora, None, taken)?);
        }
        Ok(())
    }

    fn lesson<'b>(&'b self, i: usize, plan: &'b Plan, company: Vec<Option<&'b Tags>>) -> Result<Lesson<'b>> {
        let missing = || Error::Dataset(format!("the pictures of {} were not read", plan.feature.name));
        Ok(Lesson {
            config: self.config,
            feature: &plan.feature,
            seed: noise::feature_seed(self.config.seed, &plan.feature.name),
            captions: plan.dataset.pictures().iter().map(|p| p.caption.as_str()).collect(),
            latents: self.latents[i].as_ref().ok_or_else(missing)?,
            texts: &self.texts,
            preservation: plan.preservation.clone(),
            schedule: self.schedule,
            company,
        })
    }

    /// What probes feature `i`, whose set was attached as number `own`.
    fn watch(&self, i: usize, own: usize, unet: &Unet) -> Result<Option<Watch>> {
        let (Some(script), Some(latents)) = (&self.scripts[i], &self.latents[i]) else { return Ok(None) };
        let (gpu, config, schedule) = (self.gpu, self.config, self.schedule);
        Watch::new(gpu, config, unet, script.clone(), own, schedule, latents, self.dtype).map(Some)
    }

    /// Probes after `done` steps, if it is time. Returns whether the feature leaks too much to go on.
    fn look(
        &self,
        watch: Option<&Watch>,
        unet: &Unet,
        done: u64,
        log: &mut Logs,
        outcome: &mut Outcome,
    ) -> Result<bool> {
        let Some(record) = watch.map(|watch| watch.look(unet, done)).transpose()?.flatten() else {
            return Ok(false);
        };
        log.probe(&record)?;
        let limit = self.config.train.stop_leak;
        outcome.stopped = limit > 0.0 && record.leak.is_some_and(|leak| leak > limit);
        if outcome.stopped {
            outcome.steps = done;
        }
        outcome.probe = Some(record);
        Ok(outcome.stopped)
    }

    fn fresh(&self, plan: &Plan) -> Result<LoraSet> {
        let seed = noise::feature_seed(self.config.seed, &plan.feature.name);
        Ok(LoraSet::init(self.gpu, self.dtype, &plan.matches, |path, fan_in, down| {
            kaiming_uniform(seed, path, fan_in, down);
        })?)
    }

    /// A feature that was trained before, from its file.
    fn frozen(&self, stage: &Plan, before: &Plan, unet: &Unet) -> Result<LoraSet> {
        let file = before.feature.file();
        if !file.is_file() {
            return Err(Error::Dataset(format!(
                "{} learns beside {}, whose file {} is not there; train that first, or set with_frozen = false",
                stage.feature.name,
                before.feature.name,
                file.display()
            )));
        }
        Ok(LoraSet::from_file(self.gpu, self.dtype, &LoraFile::read(file)?, unet)?)
    }

    fn silence(&self, i: usize, plan: &Plan, lora: &LoraSet, earlier: &[LoraSet]) -> Result<Option<Silence>> {
        let (Some(config), Some(basis)) = (&plan.feature.silence, &self.bases[i]) else { return Ok(None) };
        let earlier: Vec<&LoraSet> = earlier.iter().filter(|_| config.disjoint).collect();
        Ok(Some(Silence::new(basis, lora, &earlier)?))
    }
}

impl Outcome {
    fn before(config: &Config, plan: &Plan) -> Self {
        let numbers = |m: &Match| m.layer.parameters(m.rank);
        Self {
            name: plan.feature.name.clone(),
            files: Vec::new(),
            steps: config.steps_of(&plan.feature),
            skipped: 0,
            layers: plan.matches.len(),
            parameters: plan.matches.iter().map(numbers).sum(),
            loss: f64::NAN,
            probe: None,
            stopped: false,
        }
    }

    fn note(&mut self, record: &StepRecord) {
        self.skipped += u64::from(record.skipped);
        if record.loss.is_finite() {
            let new = f64::from(record.loss);
            self.loss = if self.loss.is_nan() { new } else { self.loss + SMOOTHING * (new - self.loss) };
        }
    }
}

/// The number format a run uses: what the config asks for, but f32 on a GPU adapter that has no f16.
pub fn storage_dtype(gpu: &Gpu, wanted: Precision) -> DType {
    if wanted == Precision::F16 && gpu.caps().f16 { DType::F16 } else { DType::F32 }
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

/// Makes the folder of a file, so that a run does not fail at its very end for want of it.
fn make_folder_of(file: &Path) -> Result<()> {
    if file.is_dir() {
        let message = format!("output = {}: is a folder; name a file", file.display());
        return Err(Error::Config { file: None, line: None, message });
    }
    match file.parent() {
        Some(folder) => std::fs::create_dir_all(folder).map_err(Error::io("make folder", folder)),
        None => Ok(()),
    }
}
