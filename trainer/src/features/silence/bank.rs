//! Ordinary prompts: what people ask for without any tag.

use std::collections::BTreeSet;
use std::path::Path;

use crate::{Error, Result};

/// Prompts of every kind, one per line.
const BANK: &str = include_str!("../bank.txt");

/// The prompts that come with Strata, and the empty one: portraits, animals, places, things, styles, single words,
/// lists of tags, what people do not want, other languages, odd punctuation.
pub fn default_bank() -> Vec<String> {
    prompts(BANK)
}

/// The prompts of a file, one per line, and the empty one. Empty lines and repetitions do not count.
///
/// # Errors
/// The file cannot be read, is not UTF-8, or holds no prompt.
pub fn read_bank(path: &Path) -> Result<Vec<String>> {
    let bytes = std::fs::read(path).map_err(Error::io("read prompt bank", path))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let valid = e.utf8_error().valid_up_to();
        let line = 1 + e.as_bytes()[..valid].iter().filter(|byte| **byte == b'\n').count();
        Error::Silence(format!("{}:{line}: not UTF-8; save the prompts as UTF-8", path.display()))
    })?;
    let prompts = prompts(&text);
    if prompts.len() == 1 {
        return Err(Error::Silence(format!(
            "{}: holds no prompt; write one per line, some hundred of every kind, or use the default bank",
            path.display()
        )));
    }
    Ok(prompts)
}

/// The empty prompt, and the different lines of a text.
fn prompts(text: &str) -> Vec<String> {
    let mut seen = BTreeSet::new();
    // Some editors put a byte order mark first; CLIP would take it for a word.
    let lines = text.trim_start_matches('\u{feff}').lines().map(str::trim);
    std::iter::once("").chain(lines).filter(|line| seen.insert(*line)).map(str::to_owned).collect()
}
