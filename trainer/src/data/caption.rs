//! Captions, and texts in whatever encoding they were saved.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::data::dataset::names;
use crate::{Error, Result};

/// The caption of a picture.
pub(crate) struct Caption {
    /// The first line, trimmed; never empty.
    pub text: String,
    /// Whether more lines follow that are not blank, which are not used.
    pub goes_on: bool,
}

/// The caption files among the files of a folder, by the names of their pictures without extension.
pub(crate) struct CaptionFiles<'a> {
    extension: &'a str,
    by_stem: BTreeMap<&'a [u8], &'a Path>,
}

impl<'a> CaptionFiles<'a> {
    /// Those that end with a dot and `extension`, in any case; of several for one picture the one that is written so.
    pub fn among(files: &'a [PathBuf], extension: &'a str) -> Self {
        let extension = extension.trim_start_matches('.');
        let mut by_stem = BTreeMap::new();
        for file in files {
            let Some((stem, end)) = parts(file, extension) else { continue };
            if end == extension.as_bytes() || !by_stem.contains_key(stem) {
                by_stem.insert(stem, file.as_path());
            }
        }
        Self { extension, by_stem }
    }

    /// That of a picture.
    pub fn of(&self, picture: &Path) -> Option<&'a Path> {
        self.by_stem.get(picture.file_stem()?.as_encoded_bytes()).copied()
    }

    /// Whether a file is the caption of some picture, be it there or not.
    pub fn is_one(&self, file: &Path) -> bool {
        parts(file, self.extension).is_some()
    }

    /// What is wrong where these pictures have none.
    pub fn missing(&self, pictures: &[&Path]) -> Error {
        let message = match pictures {
            [picture] => {
                let caption = picture.with_extension(self.extension);
                let caption = caption.file_name().unwrap_or_default().display();
                format!(
                    "missing caption: {} has no {caption}; write one, or remove the picture",
                    picture.display()
                )
            }
            _ => format!(
                "missing captions: {} pictures have no .{} beside them ({}); write these, or remove the pictures",
                pictures.len(),
                self.extension,
                names(pictures)
            ),
        };
        Error::Dataset(message)
    }
}

/// What a file's name has before and after the dot, where it ends with a dot and `extension`, in any case.
fn parts<'a>(file: &'a Path, extension: &str) -> Option<(&'a [u8], &'a [u8])> {
    let name = file.file_name()?.as_encoded_bytes();
    let (rest, end) = name.split_at(name.len().checked_sub(extension.len())?);
    let stem = rest.strip_suffix(b".")?;
    end.eq_ignore_ascii_case(extension.as_bytes()).then_some((stem, end))
}

/// Reads a caption file.
///
/// # Errors
/// It is no text, or its first line is empty.
pub(crate) fn read_caption(path: &Path) -> Result<Caption> {
    let text = read_text(path)?;
    let mut lines = text.lines().map(str::trim);
    let first = lines.next().unwrap_or_default();
    if first.is_empty() {
        let name = path.display();
        return Err(Error::Dataset(format!(
            "{name}: the first line is empty; write there what the picture shows"
        )));
    }
    let goes_on = lines.any(|line| !line.is_empty());
    Ok(Caption { text: first.to_owned(), goes_on })
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
