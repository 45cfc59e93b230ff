//! Ctrl-C, and what else asks a program to end.

use std::process::exit;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use strata_model::progress::note;
use strata_trainer::Interrupt;

/// The training under way.
static UNDER_WAY: Mutex<Option<Interrupt>> = Mutex::new(None);

/// Runs a training that Ctrl-C, or TERM, ends after the step under way, with what was learned until then; asked a second
/// time, the program ends at once, as it does where no training is under way.
pub fn interruptible<T>(train: impl FnOnce(&Interrupt) -> T) -> Result<T> {
    let interrupt = Interrupt::default();
    *under_way() = Some(interrupt.clone());
    match ctrlc::set_handler(on_signal) {
        // a process has one handler; a demo trains several times
        Ok(()) | Err(ctrlc::Error::MultipleHandlers) => {}
        Err(error) => return Err(error).context("cannot listen for Ctrl-C"),
    }
    let done = train(&interrupt);
    *under_way() = None;
    Ok(done)
}

fn on_signal() {
    match under_way().as_ref() {
        Some(interrupt) if !interrupt.asked() => {
            interrupt.ask();
            note(
                "ending after the step under way, and saving what was learned, if anything was; once more to end at once",
            );
        }
        // as a shell names the end by Ctrl-C
        _ => exit(130),
    }
}

fn under_way() -> MutexGuard<'static, Option<Interrupt>> {
    UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner)
}
