//! What tells models apart without reading them whole.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// How much of a file is read at once: its beginning, and places all over it.
const SAMPLE: usize = 64 << 10;
const SAMPLES: u64 = 32;

/// Adds the files of a component's folder that end in one of `extensions`: their names, sizes and samples.
///
/// # Errors
/// A file cannot be read.
pub(super) fn folder(hash: &mut Sha256, folder: &Path, extensions: &[&str]) -> Result<()> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .map_err(Error::io("read", folder))?;
    files.retain(|path| path.extension().is_some_and(|e| extensions.iter().any(|one| e == *one)));
    files.sort();
    for path in files {
        hash.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        sample(&path, hash).map_err(Error::io("read", &path))?;
    }
    Ok(())
}

/// Adds a safetensors file whatever its name: its header, size and samples.
///
/// # Errors
/// It cannot be read.
pub(super) fn file(hash: &mut Sha256, path: &Path) -> Result<()> {
    header(path, hash).and_then(|()| sample(path, hash)).map_err(Error::io("read", path))
}

fn header(path: &Path, hash: &mut Sha256) -> std::io::Result<()> {
    let (mut file, mut length, mut header) = (File::open(path)?, [0; 8], Vec::new());
    file.read_exact(&mut length)?;
    file.take(u64::from_le_bytes(length)).read_to_end(&mut header)?;
    hash.update(&header);
    Ok(())
}

/// Adds a file's size and evenly spaced samples, its beginning and end among them.
fn sample(path: &Path, hash: &mut Sha256) -> std::io::Result<()> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    hash.update(length.to_le_bytes());
    let last = length.saturating_sub(SAMPLE as u64);
    let mut buffer = Vec::with_capacity(SAMPLE);
    for i in 0..SAMPLES {
        let start = last * i / (SAMPLES - 1);
        buffer.clear();
        file.seek(SeekFrom::Start(start))?;
        (&mut file).take(SAMPLE as u64).read_to_end(&mut buffer)?;
        hash.update(&buffer);
        if last == 0 {
            break;
        }
    }
    Ok(())
}
