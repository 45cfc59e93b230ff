//! One feature being trained.

mod state;

use std::path::{Path, PathBuf};

use strata_engine::DType;
use strata_model::noise::fnv1a;
use strata_model::{LoraSet, Unet, note_keys};

use crate::data::dataset::names;
use crate::features::silence::Silence;
use crate::training::learner::Learner;
use crate::training::log::Logs;
use crate::training::metadata::metadata;
use crate::training::plan::Plan;
use crate::training::run::Run;
use crate::training::step::Lesson;
use crate::training::watch::{ProbeRecord, Watch};
use crate::{Error, Result, StepRecord};

pub(crate) use state::PupilState;

/// Weight of the newest loss in the running mean that the progress bar shows.
const SMOOTHING: f64 = 0.05;

/// Drift with the tag from which a leak says something: a thousandth of the prediction's energy. A LoRA that has hardly
/// moved answers to everything alike, and its leak is near 1.
const HEARD: f64 = 1e-3;

/// What became of a feature.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Its name; empty in a run without features.
    pub name: String,
    /// The files that were written: LoRAs, and the embeddings of keys; the LoRA that the run is for last. None where it had been trained before.
    pub files: Vec<PathBuf>,
    /// Updates asked for; where it ended early, those taken.
    pub steps: u64,
    /// Those of them that an earlier run took, from whose save this one went on.
    pub resumed_from: u64,
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

impl Outcome {
    /// Before anything is done.
    pub(crate) fn before(plan: &Plan, steps: u64) -> Self {
        Self {
            name: plan.feature.name.clone(),
            files: Vec::new(),
            steps,
            resumed_from: 0,
            skipped: 0,
            layers: plan.matches.len(),
            parameters: plan.matches.iter().map(|m| m.layer.parameters(m.rank)).sum(),
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

/// A feature, the LoRA that learns it, and all that takes part.
pub(crate) struct Pupil<'a> {
    run: &'a Run<'a>,
    plan: &'a Plan,
    lora: LoraSet,
    lesson: Lesson<'a>,
    learner: Learner,
    silence: Option<Silence>,
    watch: Option<Watch>,
    /// Updates asked for, and taken.
    steps: u64,
    taken: u64,
    /// The last of these, until it is noted, and saved and probed where it is time.
    open: Option<StepRecord>,
    /// What it keeps on the GPU is from between two steps.
    whole: bool,
    outcome: Outcome,
}

impl<'a> Pupil<'a> {
    /// A pupil before its first step, whose LoRA is attached.
    pub fn new(
        run: &'a Run<'a>,
        plan: &'a Plan,
        lora: LoraSet,
        lesson: Lesson<'a>,
        learner: Learner,
        silence: Option<Silence>,
        watch: Option<Watch>,
    ) -> Self {
        let steps = run.config.steps_of(&plan.feature);
        let outcome = Outcome::before(plan, steps);
        Self {
            run,
            plan,
            lora,
            lesson,
            learner,
            silence,
            watch,
            steps,
            taken: 0,
            open: None,
            whole: true,
            outcome,
        }
    }

    /// Its name.
    pub fn name(&self) -> &'a str {
        &self.plan.feature.name
    }

    /// Updates asked for.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Updates taken.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Steps that are wholly behind it.
    pub fn settled(&self) -> u64 {
        self.taken - u64::from(self.open.is_some())
    }

    /// Whether there is a step to take, or one to be settled.
    pub fn is_due(&self) -> bool {
        self.open.is_some() || (self.taken < self.steps && !self.outcome.stopped)
    }

    /// Whether a step has changed its LoRA.
    pub fn has_learned(&self) -> bool {
        self.taken > self.outcome.skipped
    }

    /// Whether it can be saved: no step has failed half-way.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Running mean of the loss.
    pub fn loss(&self) -> f64 {
        self.outcome.loss
    }

    /// What became of it so far.
    pub fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    /// Takes a step and settles it. Returns the file that was saved, if any.
    pub fn step(&mut self, unet: &Unet, log: &mut Logs) -> Result<Option<PathBuf>> {
        if self.open.is_none() {
            self.whole = false;
            let record = self.lesson.step(unet, &mut self.learner, self.silence.as_ref(), self.taken);
            let record = record.map_err(|error| self.with_pictures(error))?;
            self.whole = true;
            self.taken += 1;
            self.outcome.note(&record);
            self.open = Some(record);
        }
        let saved = self.settle(unet, log)?;
        log.settle();
        self.open = None;
        Ok(saved)
    }

    /// Says of a step that went wrong what it learned from.
    fn with_pictures(&self, error: Error) -> Error {
        let Error::Diverged { step, message } = error else { return error };
        let all = self.plan.dataset.pictures();
        let pictures: Vec<&Path> =
            self.lesson.pictures(step).iter().map(|i| all[*i].path.as_path()).collect();
        Error::Diverged { step, message: format!("{message}; this step had {}", names(&pictures)) }
    }

    /// Notes the step that was taken, saves and probes where it is time. Where this fails, it is done again by the run that goes
    /// on.
    fn settle(&mut self, unet: &Unet, log: &mut Logs) -> Result<Option<PathBuf>> {
        self.open.iter().try_for_each(|record| log.step(record))?;
        let config = self.run.config;
        let every = config.train.save_every;
        let mut saved = None;
        if every > 0 && self.taken.is_multiple_of(every) && self.taken < self.steps {
            let path = self.numbered();
            self.write(&path, config.save_dtype, false)?;
            self.outcome.files.push(path.clone());
            saved = Some(path);
        }
        let found = self.watch.as_ref().map(|watch| watch.look(unet, self.taken)).transpose()?.flatten();
        if let Some(record) = found {
            log.probe(&record)?;
            let limit = self.run.config.train.stop_leak;
            let leaks = record.leak.is_some_and(|leak| leak > limit) && record.drift >= HEARD;
            self.outcome.stopped = limit > 0.0 && leaks;
            self.outcome.probe = Some(record);
        }
        Ok(saved)
    }

    /// One step that leaves nothing behind but what it takes of memory.
    pub fn try_step(&mut self, unet: &Unet) -> Result<()> {
        self.lesson.step(unet, &mut self.learner, self.silence.as_ref(), 0).map(drop)
    }

    /// Writes the file that the run is for.
    ///
    /// # Errors
    /// Nothing was learned, or the file cannot be written.
    pub fn finish(&mut self) -> Result<()> {
        if !self.has_learned() {
            let message = "every step was left out, since no gradient was finite: nothing was learned and nothing is \
                           written; lower lr, train in f32, and look for damaged pictures";
            return Err(Error::Diverged { step: self.taken.saturating_sub(1), message: message.to_owned() });
        }
        self.outcome.steps = self.taken;
        let path = self.plan.feature.file().to_owned();
        for (tag, key) in self.plan.keys() {
            let embedding = embedding(&path, &tag)?;
            key.write(&tag, &embedding)?;
            self.outcome.files.push(embedding);
        }
        self.write(&path, self.run.config.save_dtype, true)?;
        self.outcome.files.push(path);
        Ok(())
    }

    /// Writes what was learned so far, where training ends before its time: beside the file that was asked for, or where
    /// that cannot be, in the folder for temporary files. Nothing if nothing was learned, or nothing since an earlier run wrote
    /// the same.
    pub fn rescue(&self) -> Option<PathBuf> {
        if !self.has_learned()
            || self.taken == self.outcome.resumed_from
            || self.outcome.files.last().is_some_and(|f| f == self.plan.feature.file())
        {
            return None;
        }
        let beside = self.numbered();
        let elsewhere = std::env::temp_dir().join(beside.file_name()?);
        let places = [beside, elsewhere].map(|path| self.free(&path));
        // f32 holds what may be too large for f16
        let saved = |path: &PathBuf| {
            [self.run.config.save_dtype, DType::F32]
                .iter()
                .any(|dtype| self.write(path, *dtype, false).is_ok())
        };
        places.into_iter().find(saved)
    }

    /// A path where there is no file of another run: this one, or with a number behind it.
    fn free(&self, path: &Path) -> PathBuf {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let others = (2..).map(|n| path.with_file_name(format!("{name}-{n}.safetensors")));
        let mut candidates = std::iter::once(path.to_owned()).chain(others);
        let free = |path: &PathBuf| !path.exists() || self.outcome.files.contains(path);
        candidates.find(free).unwrap_or_else(|| path.to_owned())
    }

    /// `done`: it is the file that the run is for, by which a later run knows it.
    fn write(&self, path: &Path, dtype: DType, done: bool) -> Result<()> {
        let Run { config, checkpoint, schedule, .. } = self.run;
        let (feature, pictures) = (&self.plan.feature, self.plan.dataset.len());
        let prediction = schedule.prediction_type();
        let mut strings =
            metadata(config, feature, checkpoint.family(), prediction, &self.lora, pictures, self.taken);
        note_keys(&mut strings, &self.plan.keys());
        if done && !feature.name.is_empty() {
            strings.insert("strata_run".into(), self.plan.fingerprint.clone());
        }
        Ok(self.lora.to_weights(dtype, strings)?.write(path)?)
    }

    /// `NAME-000100.safetensors` beside `NAME.safetensors`, after 100 steps.
    fn numbered(&self) -> PathBuf {
        numbered(self.plan.feature.file(), self.taken)
    }
}

/// `embeddings/TAG.safetensors` beside a LoRA, a folder named as that of A1111 and ComfyUI, where the name of the file is the
/// word that prompts use. A tag that cannot be the name of a file has a number behind what is left of it, for there may be others
/// like it.
fn embedding(lora: &Path, tag: &str) -> Result<PathBuf> {
    let folder = lora.with_file_name("embeddings");
    std::fs::create_dir_all(&folder).map_err(Error::io("make folder", &folder))?;
    let allowed = |c: char| if c.is_control() || r#"/\:*?"<>|"#.contains(c) { '_' } else { c };
    let mut name: String = tag.chars().map(allowed).collect();
    if name != tag {
        name = format!("{name}-{:08x}", fnv1a(tag) as u32);
    }
    Ok(folder.join(format!("{name}.safetensors")))
}

fn numbered(output: &Path, step: u64) -> PathBuf {
    let name = output.file_stem().unwrap_or_default().to_string_lossy();
    output.with_file_name(format!("{name}-{step:06}.safetensors"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tag_has_an_embedding_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let lora = folder.path().join("a.safetensors");
        let name = |tag| embedding(&lora, tag).unwrap();
        assert_eq!(name("hat_(a)"), folder.path().join("embeddings/hat_(a).safetensors"));
        let names = ["a/b", "a\\b", "a_b", "../b"].map(name);
        assert!(
            names.iter().all(|name| name.parent() == Some(&folder.path().join("embeddings"))),
            "{names:?}"
        );
        assert!((0..4).all(|i| !names[..i].contains(&names[i])), "{names:?}");
    }

    #[test]
    fn intermediate_files_are_named_after_the_output() {
        let path = numbered(Path::new("out/cat.v2.safetensors"), 100);
        assert_eq!(path, Path::new("out/cat.v2-000100.safetensors"));
    }
}
