//! Features that learn side by side, from where they begin to their files.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use strata_model::Unet;
use strata_model::progress::{bar, note, saved};

use crate::training::log::Logs;
use crate::training::plan::Plan;
use crate::training::pupil::{Outcome, Pupil};
use crate::training::resume::Saves;
use crate::training::run::{Interrupt, Run};
use crate::training::save::Save;
use crate::{Error, Result};

/// Pupils whose LoRAs are attached together, and their saves.
pub(crate) struct Class<'r> {
    run: &'r Run<'r>,
    pupils: Vec<Pupil<'r>>,
    saves: Saves,
}

impl<'r> Class<'r> {
    /// Goes on from a save, or saves where it begins: keys that were found, and where the log stands.
    ///
    /// # Errors
    /// The save is not of these pupils.
    pub fn begin(
        run: &'r Run<'r>,
        pupils: Vec<Pupil<'r>>,
        (saves, save): (Saves, Option<Save>),
        log: &Logs,
    ) -> Result<Self> {
        let mut class = Self { run, pupils, saves };
        match save {
            Some(mut save) => class.pupils.iter_mut().try_for_each(|pupil| pupil.restore(&mut save))?,
            None => class.note_save(log),
        }
        Ok(class)
    }

    /// Takes all steps and writes the files.
    ///
    /// # Errors
    /// As [`run`](crate::run).
    pub fn teach(&mut self, unet: &Unet, log: &mut Logs, interrupt: &Interrupt) -> Result<()> {
        let taught = self.steps(unet, log, interrupt).and_then(|()| {
            if self.has_learned() {
                self.note_save(log);
            }
            self.pupils.iter_mut().try_for_each(Pupil::finish)
        });
        taught.map_err(|cause| self.end(cause, log))
    }

    /// What became of each.
    pub fn outcomes(&self) -> impl Iterator<Item = &Outcome> {
        self.pupils.iter().map(Pupil::outcome)
    }

    pub fn into_saves(self) -> Saves {
        self.saves
    }

    /// In rounds, in which every pupil that has not so many steps behind it takes one.
    fn steps(&mut self, unet: &Unet, log: &mut Logs, interrupt: &Interrupt) -> Result<()> {
        let name = if self.pupils.len() > 1 { "joint" } else { self.pupils.first().map_or("", Pupil::name) };
        let progress = bar(self.pupils.iter().map(Pupil::steps).max().unwrap_or(0), name);
        let seconds = 60.0 * self.run.config.train.state_minutes;
        let mut last = Instant::now();
        if let Some(round @ 1..) = self.due().map(Pupil::settled).min() {
            progress.set_position(round);
            progress.reset_eta();
        }
        while let Some(round) = self.due().map(Pupil::settled).min() {
            if interrupt.asked() {
                return Err(Error::Interrupted { steps: round });
            }
            for pupil in self.pupils.iter_mut().filter(|pupil| pupil.is_due() && pupil.settled() == round) {
                let files = pupil.step(unet, log)?;
                saved(&progress, &files);
            }
            let losses: Vec<String> =
                self.pupils.iter().map(|pupil| format!("{:.4}", pupil.loss())).collect();
            progress.set_message(format!("loss {}", losses.join(" ")));
            progress.inc(1);
            if seconds > 0.0 && last.elapsed().as_secs_f64() >= seconds {
                self.note_save(log);
                last = Instant::now();
            }
        }
        progress.finish_and_clear();
        Ok(())
    }

    fn due(&self) -> impl Iterator<Item = &Pupil<'r>> {
        self.pupils.iter().filter(|pupil| pupil.is_due())
    }

    fn has_learned(&self) -> bool {
        self.pupils.iter().any(Pupil::has_learned)
    }

    /// What is left where training ends before its time. A step that failed half-way is in no save: then the last one stays.
    fn end(&mut self, cause: Error, log: &Logs) -> Error {
        if self.has_learned() && self.pupils.iter().all(Pupil::is_whole) {
            self.note_save(log);
        }
        let saved: Vec<PathBuf> = self.pupils.iter().filter_map(Pupil::rescue).collect();
        let resume = self.saves.last().filter(|step| *step > 0);
        match (resume, &saved[..]) {
            (None, []) => cause,
            _ => Error::Unfinished { cause: Box::new(cause), resume, saved },
        }
    }

    /// Saves, or says why not: the training is worth more than its saves.
    fn note_save(&mut self, log: &Logs) {
        if let Err(error) = self.save(log) {
            note(&format!("the state of the run is not saved: {error}"));
        }
    }

    fn save(&mut self, log: &Logs) -> Result<()> {
        let mut tensors = BTreeMap::new();
        for pupil in &self.pupils {
            tensors.extend(pupil.tensors()?);
        }
        let pupils = self.pupils.iter().map(Pupil::state).collect();
        let keys = self.run.plans.iter().flat_map(Plan::keys).collect();
        let step = self.pupils.iter().map(Pupil::taken).max().unwrap_or(0);
        let save = Save { state: self.run.state(log.end()?, pupils), keys, tensors };
        self.saves.write(step, &save)
    }
}
