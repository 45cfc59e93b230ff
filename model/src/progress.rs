//! What people see while work takes its time: one line on stderr, or nothing where that is no terminal. It is drawn at once
//! and goes when the work ends, also when it fails.

use std::fmt::Write;
use std::time::Duration;

use indicatif::{HumanDuration, ProgressBar, ProgressFinish, ProgressState, ProgressStyle};

/// How often the line is drawn while nothing else changes it.
const TICK: Duration = Duration::from_millis(200);

/// A bar for `length` pieces of work, steps unless named: rate and time left, or how long the first piece has taken so far.
pub fn bar(length: u64, what: &str) -> ProgressBar {
    let what = if what.is_empty() { "steps" } else { what };
    line(ProgressBar::new(length), "{prefix:>8} {wide_bar} {pos}/{len} {pace} {msg}", what)
}

/// A line for work of unknown length: what it is, for how long, and a message.
pub fn waiting(what: &str) -> ProgressBar {
    line(ProgressBar::new_spinner(), "{spinner} {prefix} {elapsed} {msg}", what)
}

fn line(bar: ProgressBar, template: &str, what: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = bar.with_style(style.with_key("pace", pace)).with_prefix(what.to_owned());
    let bar = bar.with_finish(ProgressFinish::AndClear);
    bar.enable_steady_tick(TICK);
    bar
}

/// A first step can take a minute on a new GPU or driver, whose compiler then sees every kernel for the first time.
fn pace(state: &ProgressState, out: &mut dyn Write) {
    // what does not fit the terminal is none of the work's concern
    let _ = match state.pos() {
        0 => write!(out, "starting, {:#} (new kernels compile)", HumanDuration(state.elapsed())),
        _ => write!(out, "{:.2}/s {:#} left", state.per_sec(), HumanDuration(state.eta())),
    };
}
