//! What people see on stderr while work takes its time. In a terminal: one row, drawn at once, which goes when the work ends,
//! also when it fails. Elsewhere: a line at the start, at most one every half minute, and one at the end. Or nothing at all
//! ([`set_quiet`]).

mod display;

use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use console::Term;
use indicatif::{
    HumanDuration, ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressState, ProgressStyle,
};

use display::{Display, Lines, Terminal};

/// How often the row is drawn while nothing else changes it, and how often in a second it may be.
const TICK: Duration = Duration::from_millis(200);
const RATE: u8 = 20;
/// How long there is no new line where there is no terminal.
const PAUSE: Duration = Duration::from_secs(30);

/// What matters most comes first, since a narrow terminal shows the beginning alone.
const BAR: &str = "{prefix:>8} {pos}/{len} {bar:24} {pace} {msg}";
const BAR_LINE: &str = "{prefix} {pos}/{len}, {pace} {msg}";
const WAITING: &str = "{spinner} {prefix} {elapsed} {msg}";
const WAITING_LINE: &str = "{prefix} {msg}";

static QUIET: AtomicBool = AtomicBool::new(false);

/// Whether all bars made from now on, in this process, show nothing.
pub fn set_quiet(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
}

/// A bar for `length` pieces of work, steps unless named: rate and time left, or how long the first piece has taken so far.
pub fn bar(length: u64, what: &str) -> ProgressBar {
    let what = if what.is_empty() { "steps" } else { what };
    shown(ProgressBar::new(length), [BAR, BAR_LINE], what)
}

/// Says while a bar is shown that files were saved, in lines that stay.
pub fn saved<'a>(bar: &ProgressBar, files: impl IntoIterator<Item = &'a PathBuf>) {
    files.into_iter().for_each(|file| bar.println(format!("saved {}", file.display())));
}

/// Says something worth knowing that is no error, also where progress is not shown.
pub fn note(text: &str) {
    // nobody may be listening
    let _ = writeln!(io::stderr(), "note: {text}");
}

/// A line for work of unknown length: what it is, for how long, and a message.
pub fn waiting(what: &str) -> ProgressBar {
    shown(ProgressBar::new_spinner(), [WAITING, WAITING_LINE], what)
}

/// Draws on stderr, by the first template if that is a terminal and by the second if not.
fn shown(bar: ProgressBar, [row, line]: [&str; 2], what: &str) -> ProgressBar {
    let term = Term::buffered_stderr();
    if QUIET.load(Ordering::Relaxed) {
        bar.set_draw_target(ProgressDrawTarget::hidden());
        bar
    } else if ProgressDrawTarget::term(term.clone(), RATE).is_hidden() {
        let lines = Display::new(Lines::new(io::stderr(), PAUSE));
        let bar = styled(bar, ProgressDrawTarget::term_like(Box::new(lines)), line, what);
        // a bar whose length is yet to be found has nothing to say
        if bar.length() != Some(0) {
            bar.tick();
        }
        bar
    } else {
        let display = Display::new(Terminal(term));
        let target = ProgressDrawTarget::term_like_with_hz(Box::new(display), RATE);
        let bar = styled(bar, target, row, what);
        bar.enable_steady_tick(TICK);
        bar
    }
}

fn styled(bar: ProgressBar, target: ProgressDrawTarget, template: &str, what: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = bar.with_style(style.with_key("pace", pace)).with_prefix(what.to_owned());
    bar.set_draw_target(target);
    bar.with_finish(ProgressFinish::AndClear)
}

/// A first step can take a minute on a new GPU or driver, whose compiler then sees every kernel for the first time.
fn pace(state: &ProgressState, out: &mut dyn fmt::Write) {
    // what does not fit the terminal is none of the work's concern
    let _ = match state.pos() {
        0 => write!(out, "starting, {:#} (new kernels compile)", HumanDuration(state.elapsed())),
        _ => write!(out, "{:.2}/s {:#} left", state.per_sec(), HumanDuration(state.eta())),
    };
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU16;
    use std::sync::{Arc, Mutex};

    use indicatif::{InMemoryTerm, TermLike};

    use super::*;

    /// A terminal that is made narrower while something is drawn on it.
    #[derive(Debug, Clone)]
    struct Shrinking {
        term: InMemoryTerm,
        width: Arc<AtomicU16>,
    }

    impl TermLike for Shrinking {
        fn width(&self) -> u16 {
            self.width.load(Ordering::Relaxed)
        }
        fn move_cursor_up(&self, n: usize) -> io::Result<()> {
            self.term.move_cursor_up(n)
        }
        fn move_cursor_down(&self, n: usize) -> io::Result<()> {
            self.term.move_cursor_down(n)
        }
        fn move_cursor_right(&self, n: usize) -> io::Result<()> {
            self.term.move_cursor_right(n)
        }
        fn move_cursor_left(&self, n: usize) -> io::Result<()> {
            self.term.move_cursor_left(n)
        }
        fn write_line(&self, s: &str) -> io::Result<()> {
            self.term.write_line(s)
        }
        fn write_str(&self, s: &str) -> io::Result<()> {
            self.term.write_str(s)
        }
        fn clear_line(&self) -> io::Result<()> {
            self.term.clear_line()
        }
        fn flush(&self) -> io::Result<()> {
            self.term.flush()
        }
    }

    fn on(term: impl TermLike + 'static, template: &str) -> ProgressBar {
        let target = ProgressDrawTarget::term_like(Box::new(Display::new(Terminal(term))));
        styled(ProgressBar::new(120), target, template, "hair_style_a")
    }

    #[test]
    fn a_narrow_terminal_shows_the_beginning_in_one_row() {
        for width in 0..=20_u16 {
            let term = InMemoryTerm::new(3, width.max(1));
            let bar = on(Shrinking { term: term.clone(), width: Arc::new(width.into()) }, BAR);
            for step in 0..5 {
                bar.set_message(format!("loss 0.1{step} 髪"));
                bar.inc(1);
            }
            let shown = term.contents();
            let whole = format!("hair_style_a 5/120 {}", " ".repeat(24));
            assert_eq!(shown, whole[..usize::from(width.saturating_sub(1))].trim_end(), "{width} columns");
            bar.finish_and_clear();
            assert_eq!(term.contents(), "", "{width} columns");
        }
    }

    #[test]
    fn a_row_fits_a_terminal_that_shrinks() {
        let (term, width) = (InMemoryTerm::new(4, 90), Arc::new(AtomicU16::new(90)));
        let bar = on(Shrinking { term: term.clone(), width: width.clone() }, BAR);
        saved(&bar, &["a.safetensors".into()]);
        for columns in (1..=90).rev() {
            width.store(columns, Ordering::Relaxed);
            bar.inc(1);
            bar.tick();
            let shown = term.contents();
            let rows: Vec<&str> = shown.lines().collect();
            assert_eq!(rows[0], "saved a.safetensors");
            assert!(rows.len() <= 2, "{rows:?}");
            let drawn = rows.get(1).map_or(0, |row| console::measure_text_width(row));
            assert!(drawn < usize::from(columns), "{columns} columns: {rows:?}");
        }
        bar.finish_and_clear();
        assert_eq!(term.contents(), "saved a.safetensors");
    }

    #[derive(Clone, Default)]
    struct Said(Arc<Mutex<Vec<u8>>>);

    impl Said {
        fn lines(&self) -> Vec<String> {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap().lines().map(str::to_owned).collect()
        }
    }

    impl Write for Said {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines(pause: Duration) -> (ProgressBar, Said) {
        let said = Said::default();
        let lines = Display::new(Lines::new(said.clone(), pause));
        let target = ProgressDrawTarget::term_like(Box::new(lines));
        (styled(ProgressBar::new(3), target, "{prefix} {pos}/{len} {msg}", "hair"), said)
    }

    #[test]
    fn without_a_terminal_there_is_a_line_at_the_start_at_the_end_and_of_what_was_written() {
        let (bar, said) = lines(Duration::from_secs(1000));
        bar.tick();
        for step in 1..=3 {
            bar.set_message(format!("loss {step}"));
            bar.inc(1);
            std::thread::sleep(Duration::from_millis(5));
            bar.suspend(|| ());
            if step == 2 {
                saved(&bar, &["a.safetensors".into()]);
            }
        }
        bar.finish_and_clear();
        drop(bar);
        assert_eq!(said.lines(), ["hair 0/3", "saved a.safetensors", "hair 3/3 loss 3"]);

        let (bar, said) = lines(Duration::from_secs(1000));
        bar.tick();
        drop(bar);
        assert_eq!(said.lines(), ["hair 0/3"], "what was said is not said again");
    }

    #[test]
    fn without_a_terminal_there_are_lines_now_and_then() {
        let (bar, said) = lines(Duration::from_millis(50));
        for step in 0..12 {
            bar.set_message(step.to_string());
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(bar);
        let said = said.lines();
        assert!((2..=5).contains(&said.len()) && said.last().unwrap() == "hair 0/3 11", "{said:?}");
    }
}
