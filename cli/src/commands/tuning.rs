//! What `strata bench --tune` found, kept in the user's cache folder: a file for each GPU adapter, driver and version of the kernels.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use strata_engine::Gpu;
use strata_kernels::{Tuning, tuning_name, use_tuning};
use strata_model::{make_folder, write_atomic};

use super::note;

fn path(gpu: &Gpu) -> Result<Option<PathBuf>> {
    let name = format!("gemm-{}.json", tuning_name(gpu)?);
    Ok(dirs::cache_dir().map(|folder| folder.join("strata").join(name)))
}

/// What was found on this adapter; nothing where it was never tuned, or where the file cannot be read.
pub fn load(gpu: &Gpu) -> Result<Tuning> {
    let Some(path) = path(gpu)? else { return Ok(Tuning::default()) };
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Tuning::default()),
        Err(e) => {
            return Ok(ignored(&path, &format!("cannot be read ({e}); make it readable, or remove it")));
        }
    };
    let damaged = |e| ignored(&path, &format!("is damaged ({e}); `strata bench --tune` writes it anew"));
    Ok(serde_json::from_slice(&text).unwrap_or_else(damaged))
}

fn ignored(path: &Path, why: &str) -> Tuning {
    note(&format!("what was tuned is ignored: {} {why}", path.display()));
    Tuning::default()
}

/// Lets the adapter's kernels make use of it.
pub fn apply(gpu: &Gpu) -> Result<()> {
    Ok(use_tuning(gpu, &load(gpu)?)?)
}

/// Keeps what was found.
pub fn save(gpu: &Gpu, tuning: &Tuning) -> Result<PathBuf> {
    let path = path(gpu)?.context("this system names no cache folder for the user")?;
    let folder = path.parent().unwrap_or(&path);
    make_folder(folder)?;
    write_atomic(&path, |file| serde_json::to_writer_pretty(file, tuning).map_err(Into::into))?;
    Ok(path)
}
