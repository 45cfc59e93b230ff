//! Captions, and texts in whatever encoding they were saved.

use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The caption of a picture.
pub(crate) struct Caption {
    pub path: PathBuf,
    /// The first line, trimmed; never empty.
    pub text: String,
    /// Whether more lines follow that are not blank, which are not used.
    pub goes_on: bool,
}

/// Reads the caption file of a picture.
///
/// # Errors
/// It is missing, no text, or its first line is empty.
pub(crate) fn read_caption(picture: &Path, extension: &str) -> Result<Caption> {
    let path = picture.with_extension(extension.trim_start_matches('.'));
    if !path.exists() {
        let (name, caption_name) = (picture.display(), path.file_name().unwrap_or_default().display());
        return Err(Error::Dataset(format!(
            "missing caption: {name} has no {caption_name}; write one, or remove the picture"
        )));
    }
    let text = read_text(&path)?;
    let mut lines = text.lines().map(str::trim);
    let first = lines.next().unwrap_or_default();
    if first.is_empty() {
        let name = path.display();
        return Err(Error::Dataset(format!(
            "{name}: the first line is empty; write there what the picture shows"
        )));
    }
    let goes_on = lines.any(|line| !line.is_empty());
    Ok(Caption { text: first.to_owned(), goes_on, path })
}

/// The text of a file in UTF-8, or in UTF-16 with the mark that it begins with then; without that mark.
///
/// # Errors
/// [`Error::Io`] where the file cannot be read; [`Error::Dataset`] where it is in another encoding, which is named with the
/// line.
fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(Error::io("read caption", path))?;
    let refuse = |found: String| Error::Dataset(format!("{}: {found}; save it as UTF-8", path.display()));
    let wide = |bytes: &[u8], unit: fn([u8; 2]) -> u16, name: &str| {
        let (pairs, rest) = bytes.as_chunks();
        let text = String::from_utf16(&pairs.iter().map(|pair| unit(*pair)).collect::<Vec<u16>>());
        text.ok().filter(|_| rest.is_empty()).ok_or_else(|| refuse(format!("is damaged {name}")))
    };
    match &bytes[..] {
        [0xff, 0xfe, text @ ..] => wide(text, u16::from_le_bytes, "UTF-16 LE"),
        [0xfe, 0xff, text @ ..] => wide(text, u16::from_be_bytes, "UTF-16 BE"),
        [0xef, 0xbb, 0xbf, text @ ..] | text => {
            let line_of = |at: usize| 1 + text[..at].iter().filter(|byte| **byte == b'\n').count();
            // Letters of UTF-16 have a zero byte first or last, and then are UTF-8 as well.
            if let Some(at) = text.iter().position(|byte| *byte == 0) {
                let name = if at.is_multiple_of(2) { "UTF-16 BE" } else { "UTF-16 LE" };
                let line = line_of(at);
                return Err(refuse(format!(
                    "line {line} has a zero byte, as {name} without a byte order mark has"
                )));
            }
            let text = std::str::from_utf8(text).map_err(|e| {
                let at = e.valid_up_to();
                let (byte, line) = (text[at], line_of(at));
                let latin = match byte {
                    0xa0.. => format!(
                        "; it is {:?} in Latin-1 (Windows-1252), if that is what this is",
                        char::from(byte)
                    ),
                    _ => String::new(),
                };
                let at = at + bytes.len() - text.len();
                refuse(format!("line {line}: byte {at} (0x{byte:02x}) is not UTF-8{latin}"))
            });
            Ok(text?.to_owned())
        }
    }
}
