//! What progress is drawn on.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use console::truncate_str;
use indicatif::TermLike;

/// Takes lines that stay, and a row that is replaced by the next one.
pub trait Output: Send {
    fn line(&mut self, text: &str) -> io::Result<()>;
    fn row(&mut self, text: &str) -> io::Result<()>;
    /// Takes the row away.
    fn clear(&mut self) -> io::Result<()>;
    fn flush(&mut self) -> io::Result<()>;
}

/// A terminal so wide that whatever indicatif draws fits one row, and the cursor never has to leave it.
pub struct Display<O>(Mutex<Drawn<O>>);

struct Drawn<O> {
    output: O,
    /// What was drawn last: the row if nothing comes after it, else a line.
    held: Option<String>,
}

impl<O> Display<O> {
    pub fn new(output: O) -> Self {
        Self(Mutex::new(Drawn { output, held: None }))
    }

    fn drawn(&self) -> MutexGuard<'_, Drawn<O>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<O> fmt::Debug for Display<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Display").finish_non_exhaustive()
    }
}

impl<O: Output> TermLike for Display<O> {
    fn width(&self) -> u16 {
        u16::MAX
    }

    fn move_cursor_up(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_down(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_right(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_left(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.write_str(text)
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        // indicatif fills each row to its end with blanks
        if text.trim().is_empty() {
            return Ok(());
        }
        let mut drawn = self.drawn();
        let before = drawn.held.replace(text.to_owned());
        before.map_or(Ok(()), |line| drawn.output.line(&line))
    }

    fn clear_line(&self) -> io::Result<()> {
        self.drawn().output.clear()
    }

    fn flush(&self) -> io::Result<()> {
        let mut drawn = self.drawn();
        if let Some(row) = drawn.held.take() {
            drawn.output.row(&row)?;
        }
        drawn.output.flush()
    }
}

/// A terminal. Its row ends before the right edge: one that wraps could not be taken back from a terminal that shrinks.
pub struct Terminal<T>(pub T);

impl<T: TermLike> Output for Terminal<T> {
    fn line(&mut self, text: &str) -> io::Result<()> {
        self.0.write_line(text)
    }

    fn row(&mut self, text: &str) -> io::Result<()> {
        self.0.write_str(&truncate_str(text, usize::from(self.0.width().saturating_sub(1)), ""))
    }

    fn clear(&mut self) -> io::Result<()> {
        self.0.clear_line()
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Lines where there is no terminal: the first row, the last, and between them at most one in a `pause`.
pub struct Lines<W: Write> {
    out: W,
    pause: Duration,
    /// The last row that was written, and when.
    said: Option<(String, Instant)>,
    /// The newest row, if it is another.
    unsaid: Option<String>,
}

impl<W: Write> Lines<W> {
    pub fn new(out: W, pause: Duration) -> Self {
        Self { out, pause, said: None, unsaid: None }
    }
}

impl<W: Write + Send> Output for Lines<W> {
    fn line(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "{text}")
    }

    fn row(&mut self, text: &str) -> io::Result<()> {
        let text = text.trim();
        match &self.said {
            Some((said, _)) if said == text => self.unsaid = None,
            Some((_, when)) if when.elapsed() < self.pause => self.unsaid = Some(text.to_owned()),
            _ => {
                (self.said, self.unsaid) = (Some((text.to_owned(), Instant::now())), None);
                writeln!(self.out, "{text}")?;
            }
        }
        Ok(())
    }

    fn clear(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl<W: Write> Drop for Lines<W> {
    fn drop(&mut self) {
        if let Some(text) = &self.unsaid {
            // nobody may be listening
            let _ = writeln!(self.out, "{text}");
        }
    }
}
