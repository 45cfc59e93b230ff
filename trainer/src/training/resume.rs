//! How a run goes on from the saves of one that ended early.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use strata_model::progress::note;

use crate::config::Order;
use crate::data::dataset::files;
use crate::training::fingerprint::{DIGEST, Makings, STEPS};
use crate::training::log::LogEnd;
use crate::training::plan::{Plan, is_done};
use crate::training::pupil::PupilState;
use crate::training::run::Run;
use crate::training::save::{Save, State};
use crate::{Config, Error, Result};

/// Saves that are kept while a run is under way: the newest, and one in case that is damaged.
const KEPT: usize = 2;

/// Bytes of these, and of one that is being written, for each parameter: itself, its copy in f16 runs, and two moments, in f32.
pub(crate) const ROOM: u64 = 16 * (KEPT as u64 + 1);

/// How a run begins where one like it ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    /// Goes on from the newest save; without one, begins anew.
    #[default]
    GoOn,
    /// Goes on from the newest save, and is refused where there is none.
    MustGoOn,
    /// Begins anew. Saves that are there are removed once there is a new one.
    Anew,
}

/// The saves of features that are trained side by side: `NAME-000120.save` beside `NAME.safetensors`.
#[derive(Debug)]
pub(crate) struct Saves {
    output: PathBuf,
    /// Those that are good, the newest last.
    kept: Vec<(u64, PathBuf)>,
}

impl Saves {
    pub fn beside(output: &Path) -> Self {
        Self { output: output.to_owned(), kept: Vec::new() }
    }

    /// All that are there, by step, the last first.
    fn all(&self) -> Vec<(u64, PathBuf)> {
        let stem = self.output.file_stem().unwrap_or_default().to_string_lossy();
        let folder = self.output.parent().filter(|folder| *folder != Path::new(""));
        let save = |file: PathBuf| {
            let name = file.file_name()?.to_str()?;
            let digits = name.strip_prefix(&*stem)?.strip_prefix('-')?.strip_suffix(".save")?;
            let step = digits.parse().ok().filter(|_| digits.len() >= 6)?;
            Some((step, self.output.with_file_name(name)))
        };
        let files = files(folder.unwrap_or(Path::new("."))).unwrap_or_default();
        let mut all: Vec<(u64, PathBuf)> = files.into_iter().filter_map(save).collect();
        all.sort_unstable_by(|a, b| b.cmp(a));
        all
    }

    /// The newest that can be read. Those that cannot are named.
    ///
    /// # Errors
    /// There are some, and none can be read.
    pub fn newest(&mut self) -> Result<Option<Save>> {
        let all = self.all();
        for (step, path) in &all {
            match Save::read(path) {
                Ok(save) => {
                    self.kept = vec![(*step, path.clone())];
                    return Ok(Some(save));
                }
                Err(error) => note(&format!("{error}; the save before it is used, if there is one")),
            }
        }
        match all.first() {
            None => Ok(None),
            Some((_, path)) => Err(Error::Resume(format!(
                "{}: neither this save of an earlier run nor one before it can be read; bring it back, or begin anew",
                path.display()
            ))),
        }
    }

    /// The newest, of this run. That of a run which had not learned anything stops nobody.
    ///
    /// # Errors
    /// As [`newest`](Self::newest); or the run that made it was another one, and had learned something.
    fn newest_of(&mut self, run: &Run<'_>) -> Result<Option<Save>> {
        let Some(save) = self.newest()? else { return Ok(None) };
        let faults: Vec<String> = save.state.pupils.iter().flat_map(|state| faults(run, state)).collect();
        if faults.is_empty() {
            return Ok(Some(save));
        }
        let (step, path) = self.kept.pop().unwrap_or_default();
        if !save.state.pupils.iter().any(PupilState::has_learned) {
            return Ok(None);
        }
        Err(Error::Resume(format!(
            "{}: a run that ended early has saved its state here, and this one differs from it:\n  {}\nundo that to go on from step \
             {step}, or begin anew",
            path.display(),
            faults.join("\n  ")
        )))
    }

    /// The step of the newest that is good.
    pub fn last(&self) -> Option<u64> {
        self.kept.last().map(|(step, _)| *step)
    }

    /// Writes one, made after `step` steps, and removes all but the last that are good.
    ///
    /// # Errors
    /// [`Save::write`]'s.
    pub fn write(&mut self, step: u64, save: &Save) -> Result<()> {
        let stem = self.output.file_stem().unwrap_or_default().to_string_lossy();
        let path = self.output.with_file_name(format!("{stem}-{step:06}.save"));
        save.write(&path)?;
        self.kept.retain(|(_, kept)| *kept != path);
        self.kept.push((step, path));
        self.kept.drain(..self.kept.len().saturating_sub(KEPT));
        self.remove_but(&self.kept);
        Ok(())
    }

    /// Removes all.
    pub fn remove(&self) {
        self.remove_but(&[]);
    }

    /// One that stays costs space, and is removed by the next run that gets so far.
    fn remove_but(&self, kept: &[(u64, PathBuf)]) {
        for save in self.all() {
            if !kept.contains(&save) {
                let _ = fs::remove_file(save.1);
            }
        }
    }
}

/// What an earlier run left, for one that goes on.
#[derive(Default)]
pub(crate) struct Left {
    /// Of each class that is to be trained, in order: its saves, and the one to go on from.
    classes: Vec<(Saves, Option<Save>)>,
    /// Of features that are done.
    done: Vec<Saves>,
    /// Where the log stood in the last of all.
    log: Option<LogEnd>,
}

impl Left {
    /// Looks for the saves of a run before the GPU works, says what it goes on from, and takes over the keys found there.
    ///
    /// # Errors
    /// [`Error::Resume`] where saves cannot be read, or were made with another config; [`Error::NoSave`] where there is none
    /// and must be one.
    pub fn find(run: &mut Run<'_>, start: Start) -> Result<Self> {
        let mut left = Self::default();
        for class in run.all_classes() {
            let mut saves = Saves::beside(run.place(&class));
            let due = class.iter().any(|i| run.plans[*i].due);
            let save = match (start, due) {
                (Start::Anew, _) => None,
                (_, true) => saves.newest_of(run)?,
                (_, false) => saves.newest().ok().flatten().filter(|save| is_over(run, save)),
            };
            if let Some(save) = &save {
                left.log = Some(save.state.log.clone());
                take_over_keys(run, save);
            }
            match due {
                true => left.classes.push((saves, save)),
                false => left.done.extend(save.map(|_| saves)),
            }
        }
        if start == Start::MustGoOn && left.log.is_none() {
            return Err(Error::NoSave { output: run.config.output.clone() });
        }
        left.classes
            .iter()
            .filter_map(|(saves, save)| Some((saves, save.as_ref()?)))
            .for_each(|(saves, save)| announce(run, saves, save));
        Ok(left)
    }

    /// Where the log stood.
    pub fn log(&self) -> Option<&LogEnd> {
        self.log.as_ref()
    }

    /// Steps that a feature has behind it.
    pub fn taken(&self, plan: &Plan) -> u64 {
        let saves = self.classes.iter().filter_map(|(_, save)| save.as_ref());
        let states = saves.flat_map(|save| &save.state.pupils);
        states.filter(|state| state.feature == plan.feature.name).map(|state| state.taken).sum()
    }

    /// Hands over what there is for the classes that are to be trained, in their order.
    pub fn take(&mut self) -> Vec<(Saves, Option<Save>)> {
        std::mem::take(&mut self.classes)
    }

    /// These are the saves of a class that is done. They stay until it is saved elsewhere how far the run has come.
    pub fn done(&mut self, saves: Saves) {
        self.done.push(saves);
    }

    /// Removes the saves of features that are done.
    pub fn remove_done(&mut self) {
        self.done.drain(..).for_each(|saves| saves.remove());
    }
}

/// Why a run cannot go on with a feature.
fn faults(run: &Run<'_>, state: &PupilState) -> Vec<String> {
    let name = &state.feature;
    match run.plans.iter().find(|plan| plan.feature.name == *name) {
        None => vec![format!("{name} is not in the config")],
        Some(plan) if plan.due => {
            let title = if name.is_empty() { String::new() } else { format!("{name}: ") };
            let all = differences(run.config, state, &plan.makings);
            all.into_iter().map(|difference| format!("{title}{difference}")).collect()
        }
        Some(plan) if is_done(plan.feature.file(), &plan.fingerprint) => Vec::new(),
        Some(_) => vec![format!("{name} is not trained")],
    }
}

/// What differs of that which decides about what was learned until then.
fn differences(config: &Config, state: &PupilState, now: &Makings) -> Vec<String> {
    let was = &state.makings;
    let differs = |name: &&String| {
        let (was, now) = (was.get(*name), now.get(*name));
        was != now && !(*name == STEPS && as_many_do(config, state.taken, was, now))
    };
    let names: BTreeSet<&String> = was.keys().chain(now.keys()).collect();
    let said = |makings: &Makings, name: &String| makings.get(name).cloned().unwrap_or("not set".to_owned());
    let line = |name: &String| match said(now, name) {
        digest if digest.starts_with(DIGEST) => format!("other {name}"),
        value => format!("{name} = {value}, and was {}", said(was, name)),
    };
    names.into_iter().filter(differs).map(line).collect()
}

/// Whether the steps taken were the same in a run of another number of steps.
fn as_many_do(config: &Config, taken: u64, was: Option<&String>, now: Option<&String>) -> bool {
    let number = |steps: Option<&String>| steps.and_then(|steps| steps.parse::<u64>().ok());
    let (Some(was), Some(now)) = (number(was), number(now)) else { return false };
    let share = |step, steps| config.train.schedule.share(step, steps);
    taken <= now && (0..taken).all(|step| share(step, was) == share(step, now))
}

/// Whether all features of a save are done.
fn is_over(run: &Run<'_>, save: &Save) -> bool {
    let over = |state: &PupilState| {
        let plan = run.plans.iter().find(|plan| plan.feature.name == state.feature);
        plan.is_some_and(|plan| {
            plan.makings == state.makings && is_done(plan.feature.file(), &plan.fingerprint)
        })
    };
    save.state.pupils.iter().all(over)
}

/// Keys do not have to be looked for again.
fn take_over_keys(run: &mut Run<'_>, save: &Save) {
    for plan in run.plans.iter_mut().filter(|plan| plan.feature.key.on().is_some()) {
        if save.state.keyed.get(&plan.feature.name) == Some(&plan.fingerprint) {
            plan.key = plan.tags.iter().find_map(|tag| save.keys.get(tag.text())).cloned();
        }
    }
}

fn announce(run: &Run<'_>, saves: &Saves, save: &Save) {
    let path = saves.kept.last().map(|(_, path)| path.display().to_string()).unwrap_or_default();
    for state in save.state.pupils.iter().filter(|state| state.taken > 0) {
        let Some(plan) = run.plans.iter().find(|plan| plan.due && plan.feature.name == state.feature) else {
            continue;
        };
        let (taken, steps) = (state.taken, run.config.steps_of(&plan.feature));
        let name = if state.feature.is_empty() { "the run" } else { &state.feature };
        note(&format!("{name} goes on from step {taken} of {steps}, saved in {path}"));
    }
    let (was, now) = (&save.state.maker, run.maker());
    if *was != now {
        note(&format!(
            "{path} was made with {was}, and this is {now}: the files may differ in their last bits from those of a run that never stopped"
        ));
    }
}

impl Run<'_> {
    /// The file that the saves of a class lie beside.
    fn place(&self, class: &[usize]) -> &Path {
        match (self.config.order, class) {
            (Order::Staged, [i, ..]) => self.plans[*i].feature.file(),
            _ => &self.config.output,
        }
    }

    /// What rounds.
    fn maker(&self) -> String {
        format!("Strata {} on {}", env!("CARGO_PKG_VERSION"), self.gpu.caps().name)
    }

    /// A save's state, of these pupils and this log.
    pub fn state(&self, log: LogEnd, pupils: Vec<PupilState>) -> State {
        let keyed = self.plans.iter().filter(|plan| plan.feature.key.on().is_some());
        let keyed = keyed.map(|plan| (plan.feature.name.clone(), plan.fingerprint.clone())).collect();
        State { maker: self.maker(), keyed, log, pupils }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Schedule;

    /// A constant rate, and a warm-up, do not know how long they will last; a rate that falls does.
    #[test]
    fn the_number_of_steps_may_change_where_rates_so_far_do_not() {
        let [six, nine] = ["6", "9"].map(String::from);
        let same = |lr_schedule, warmup_steps, taken, was, now| {
            let mut config = Config::default();
            (config.train.schedule.lr_schedule, config.train.schedule.warmup_steps) =
                (lr_schedule, warmup_steps);
            as_many_do(&config, taken, Some(was), Some(now))
        };
        assert!(same(Schedule::Constant, 0, 6, &six, &nine) && same(Schedule::Constant, 2, 6, &nine, &six));
        assert!(!same(Schedule::Constant, 0, 7, &nine, &six), "seven are taken already");
        assert!(same(Schedule::Linear, 0, 1, &six, &nine) && !same(Schedule::Linear, 0, 2, &six, &nine));
        assert!(same(Schedule::Cosine, 3, 4, &six, &nine) && !same(Schedule::Cosine, 3, 5, &six, &nine));
    }
}
