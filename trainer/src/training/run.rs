//! A run: from a config to LoRA files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use strata_engine::{DType, Gpu};
use strata_model::progress::{bar, note, saved, waiting};
use strata_model::{
    Checkpoint, Lock, LoraSet, LoraWeights, Match, NoiseSchedule, Tag, Unet, check_room, counted, lock,
    make_folder,
};

use crate::config::Order;
use crate::data::latents::Latents;
use crate::data::texts::Texts;
use crate::features::silence::{Basis, Silence, basis};
use crate::inspection::probe::Script;
use crate::training::keys::{find_keys, key_notes};
use crate::training::learner::Learner;
use crate::training::log::Logs;
use crate::training::plan::{Plan, is_done, plan};
use crate::training::pupil::{Outcome, Pupil};
use crate::training::replaced::replaced;
use crate::training::step::Lesson;
use crate::training::tensorboard::TensorBoard;
use crate::training::watch::{Watch, script};
use crate::{Config, Error, Result, StepLog, kaiming_uniform, noise};

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

/// A wish that the run may end: it then writes what was learned and stops after the step under way.
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
/// A file is whole or not there: a run may be stopped at any time, and goes on with the first feature that is not done.
/// Two runs of one config on one machine give equal files.
///
/// # Errors
/// What the config asks for is impossible, a file cannot be read or written, the training diverges, the GPU fails, or the
/// end was asked for. What was learned until then is written all the same, and [`Error::Unfinished`] says where.
pub fn run(gpu: &Gpu, config: &Config, only: Option<&str>, interrupt: &Interrupt) -> Result<Summary> {
    let mut run = Run::open(gpu, config, only)?;
    run.notes()?.iter().for_each(|text| note(text));
    let _locks = run.make_room()?;
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
        let board = config.tensorboard.as_deref().map(TensorBoard::create).transpose()?;
        let mut log = Logs::new(StepLog::append(&config.log_path())?, board);
        let materials = run.prepare()?;
        gpu.trim()?;
        run.long_captions(&materials.texts)?.iter().for_each(|text| note(text));
        let mut unet = run.unet()?;
        let started = Instant::now();
        for class in run.classes() {
            let mut pupils = run.attach(&class, &materials, &mut unet)?;
            teach(&mut pupils, &unet, &mut log, interrupt)?;
            for (i, pupil) in class.into_iter().zip(pupils) {
                summary.features[i] = pupil.outcome().clone();
            }
        }
        summary.seconds = started.elapsed().as_secs_f64();
    }
    summary.combined = run.combine()?;
    Ok(summary)
}

/// Takes all steps of pupils side by side and writes their files.
fn teach(pupils: &mut [Pupil<'_>], unet: &Unet, log: &mut Logs, interrupt: &Interrupt) -> Result<()> {
    let taught =
        steps(pupils, unet, log, interrupt).and_then(|()| pupils.iter_mut().try_for_each(Pupil::finish));
    taught.map_err(|error| {
        let saved: Vec<PathBuf> = pupils.iter().filter_map(Pupil::rescue).collect();
        if saved.is_empty() { error } else { Error::Unfinished { cause: Box::new(error), saved } }
    })
}

fn steps(pupils: &mut [Pupil<'_>], unet: &Unet, log: &mut Logs, interrupt: &Interrupt) -> Result<()> {
    let name = if pupils.len() > 1 { "joint" } else { pupils.first().map_or("", |pupil| pupil.name()) };
    let progress = bar(pupils.iter().map(Pupil::steps).max().unwrap_or(0), name);
    let mut taken = 0;
    while pupils.iter().any(Pupil::is_due) {
        if interrupt.asked() {
            return Err(Error::Interrupted { steps: taken });
        }
        for pupil in pupils.iter_mut().filter(|pupil| pupil.is_due()) {
            let files = pupil.step(unet, log)?;
            saved(&progress, &files);
        }
        taken += 1;
        let losses: Vec<String> = pupils.iter().map(|pupil| format!("{:.4}", pupil.loss())).collect();
        progress.set_message(format!("loss {}", losses.join(" ")));
        progress.inc(1);
    }
    progress.finish_and_clear();
    Ok(())
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

/// What features are taught with, computed before the U-Net is there.
pub(crate) struct Materials {
    pub texts: Texts,
    /// Of each feature that is due.
    pub features: BTreeMap<usize, Material>,
    /// They stand for others of their size, to see what memory a run takes. Frozen features are then such as well, and on
    /// whatever a text says.
    pub blank: bool,
}

/// Of one feature.
pub(crate) struct Material {
    pub latents: Latents,
    pub basis: Option<Basis>,
    /// Where features are probed.
    pub script: Option<Script>,
}

impl<'a> Run<'a> {
    /// Everything that can be wrong without the GPU comes first: the model, its noise, and what is to be done.
    pub fn open(gpu: &'a Gpu, config: &'a Config, only: Option<&str>) -> Result<Self> {
        config.validate()?;
        let checkpoint = config.checkpoint()?;
        let schedule = checkpoint.schedule()?;
        check_timesteps(config, &schedule)?;
        let plans = plan(config, &checkpoint, only)?;
        let dtype = storage_dtype(gpu, config.train.dtype);
        Ok(Self { gpu, config, checkpoint, schedule, dtype, plans })
    }

    /// What is worth knowing before the first step: what was taken of the folders and what was not, and what of the model's
    /// configuration and of the rules will have no effect.
    fn notes(&self) -> Result<Vec<String>> {
        let mut notes = self.checkpoint.notes()?;
        for plan in self.plans.iter().filter(|plan| plan.due) {
            notes.push(plan.dataset.summary());
            notes.extend(replaced(self.config, plan));
            notes.extend(too_wide(&plan.matches));
            notes.extend(key_notes(plan));
        }
        Ok(notes)
    }

    /// Captions that the text encoder reads in several pieces.
    fn long_captions(&self, texts: &Texts) -> Result<Option<String>> {
        let (mut long, mut all) = (0, 0);
        for picture in self.plans.iter().filter(|plan| plan.due).flat_map(|plan| plan.dataset.pictures()) {
            long += usize::from(texts.chunks([picture.caption.as_str()])? > 1);
            all += 1;
        }
        let how = "longer than the text encoder's window of 75 tokens, and read in several windows, as at generation";
        let are = if long == 1 { "is" } else { "are" };
        Ok((long > 0).then(|| format!("{long} of {} {are} {how}", counted(all, "caption"))))
    }

    /// Features that are trained side by side, one such class after the other.
    pub fn classes(&self) -> Vec<Vec<usize>> {
        let due = (0..self.plans.len()).filter(|i| self.plans[*i].due);
        match self.config.order {
            Order::Staged => due.map(|i| vec![i]).collect(),
            Order::Joint => vec![due.collect()],
        }
    }

    /// The features that are there, frozen, while a class learns.
    fn earlier(&self, class: &[usize]) -> &[Plan] {
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

    /// Runs text encoder and VAE once over all that is due.
    fn prepare(&mut self) -> Result<Materials> {
        let reading = waiting("reading text encoder and VAE");
        // in f32 whatever the run's number format is: they run once, and some VAEs overflow f16
        let text = self.checkpoint.text_encoder(self.gpu, DType::F32)?;
        let vae = self.checkpoint.vae(self.gpu, DType::F32)?;
        drop(reading);
        let mut keyed = find_keys(self, &text)?;
        let tags = self.tags();
        let (mut wanted, mut features) = (BTreeSet::new(), BTreeMap::new());
        for class in self.classes() {
            let attached: Vec<&Plan> =
                self.earlier(&class).iter().chain(class.iter().map(|i| &self.plans[*i])).collect();
            for i in class {
                let plan = &self.plans[i];
                wanted.extend(plan.texts());
                let latents = Latents::encode(self.gpu, &vae, &plan.dataset, plan.feature.dataset.flip)?;
                let silence = plan.feature.silence.as_ref();
                let basis = match keyed.remove(&i) {
                    Some(basis) => Some(basis),
                    None => {
                        silence.map(|silence| basis(&text, &plan.silent, &tags, silence.rank)).transpose()?
                    }
                };
                let probed = self.config.train.probe_every > 0;
                let script = probed.then(|| script(&text, &attached)).transpose()?;
                features.insert(i, Material { latents, basis, script });
            }
        }
        Ok(Materials { texts: Texts::encode(&text, &wanted, &tags)?, features, blank: false })
    }

    /// Claims the files that will be written, makes their folders, and tries whether there is room.
    fn make_room(&self) -> Result<Vec<Lock>> {
        let due: Vec<&Plan> = self.plans.iter().filter(|plan| plan.due).collect();
        // in f32, and once more for all together
        let bytes = |plan: &Plan| 8 * Outcome::before(plan, 0).parameters as u64;
        let all: u64 = due.iter().map(|plan| bytes(plan)).sum();
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

    pub fn unet(&self) -> Result<Unet> {
        let _reading = waiting("reading the U-Net");
        let mut unet = self.checkpoint.unet(self.gpu, self.dtype)?;
        unet.set_gradient_checkpointing(self.config.train.gradient_checkpointing);
        Ok(unet)
    }

    /// Puts the LoRAs of a class on the U-Net, beside those of earlier features. Side by side each has batches, gradients
    /// and moments of its own, and the others are off in its samples; so its file is the one that it would have alone.
    pub fn attach<'r>(
        &'r self,
        class: &[usize],
        materials: &'r Materials,
        unet: &mut Unet,
    ) -> Result<Vec<Pupil<'r>>> {
        unet.detach_all();
        let earlier = self.earlier(class);
        let frozen = earlier
            .iter()
            .map(|before| match materials.blank {
                true => self.fresh(before),
                false => self.frozen(before, &self.plans[class[0]], unet),
            })
            .collect::<Result<Vec<_>>>()?;
        let own = class.iter().map(|i| self.fresh(&self.plans[*i])).collect::<Result<Vec<_>>>()?;
        for set in frozen.iter().chain(&own) {
            unet.attach(set)?;
        }
        let pupil = |(place, lora): (usize, LoraSet)| {
            let (i, number) = (class[place], frozen.len() + place);
            let (plan, material) = (&self.plans[i], &materials.features[&i]);
            let learner = Learner::new(&lora, number, self.dtype, &self.config.train)?;
            let disjoint = plan.feature.silence.as_ref().is_some_and(|silence| silence.disjoint);
            let disjoint: Vec<&LoraSet> = frozen.iter().filter(|_| disjoint).collect();
            let silence =
                material.basis.as_ref().map(|basis| Silence::new(basis, &lora, &disjoint)).transpose()?;
            let watch = match &material.script {
                Some(script) => Some(self.watch(script, number, &material.latents, unet)?),
                None => None,
            };
            let sets = unet.features();
            let lesson = self.lesson(plan, materials, &material.latents, earlier, [number, sets])?;
            Ok(Pupil::new(self, plan, lora, lesson, learner, silence, watch))
        };
        own.into_iter().enumerate().map(pupil).collect()
    }

    /// `[number, sets]`: the feature's LoRA is that number of so many sets.
    fn lesson<'r>(
        &'r self,
        plan: &'r Plan,
        materials: &'r Materials,
        latents: &'r Latents,
        earlier: &[Plan],
        [number, sets]: [usize; 2],
    ) -> Result<Lesson<'r>> {
        // which sets are on in a text: the feature's own always, earlier ones where their tags are, and no other
        let gates = |text: String| -> Result<(String, Vec<f32>)> {
            let mut gates = vec![0.0; sets];
            gates[number] = 1.0;
            for (gate, before) in gates.iter_mut().zip(earlier) {
                if materials.blank || before.tags.are_in(&text)? {
                    *gate = 1.0;
                }
            }
            Ok((text, gates))
        };
        Ok(Lesson {
            config: self.config,
            feature: &plan.feature,
            seed: noise::feature_seed(self.config.seed, &plan.feature.name),
            captions: plan.dataset.pictures().iter().map(|p| p.caption.as_str()).collect(),
            latents,
            texts: &materials.texts,
            preservation: &plan.preservation,
            schedule: &self.schedule,
            gates: plan.texts().into_iter().map(gates).collect::<Result<_>>()?,
        })
    }

    fn watch(&self, script: &Script, own: usize, latents: &Latents, unet: &Unet) -> Result<Watch> {
        Watch::new(self.gpu, self.config, unet, script.clone(), own, &self.schedule, latents, self.dtype)
    }

    fn fresh(&self, plan: &Plan) -> Result<LoraSet> {
        let seed = noise::feature_seed(self.config.seed, &plan.feature.name);
        Ok(LoraSet::init(self.gpu, self.dtype, &plan.matches, |path, fan_in, down| {
            kaiming_uniform(seed, path, fan_in, down);
        })?)
    }

    /// A feature that was trained before, from its file.
    fn frozen(&self, before: &Plan, stage: &Plan, unet: &Unet) -> Result<LoraSet> {
        let file = before.feature.file();
        if !file.is_file() {
            return Err(Error::Dataset(format!(
                "{} learns beside {}, whose file {} is not there; train that first, or set with_frozen = false",
                stage.feature.name,
                before.feature.name,
                file.display()
            )));
        }
        Ok(LoraSet::from_weights(self.gpu, self.dtype, &LoraWeights::read(file)?, unet)?)
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
