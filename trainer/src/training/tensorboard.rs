//! Curves for TensorBoard: an event file of scalars.
//!
//! A file is a sequence of records: length (u64), its masked CRC-32C, an `Event` in protobuf's encoding, and the masked
//! CRC-32C of that (tensorflow/core/lib/io/record_writer.h, tensorflow/core/util/event.proto).

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use strata_model::make_folder;

use crate::{Error, Result};

/// An event file that is being written.
pub(crate) struct TensorBoard {
    path: PathBuf,
    file: File,
    end: BoardEnd,
}

/// How far an event file had come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct BoardEnd {
    /// Which run of its folder it is of, from 1.
    run: u64,
    /// Bytes in it.
    length: u64,
}

/// The event file of a run in a folder.
fn path_of(folder: &Path, run: u64) -> PathBuf {
    let own = if run == 1 { folder.to_owned() } else { folder.join(format!("run-{run}")) };
    own.join("events.out.tfevents.strata")
}

impl TensorBoard {
    /// Starts an event file in a folder: in the folder itself, or, where earlier runs are there, in `run-2`, `run-3`, …, since
    /// TensorBoard draws what lies in one folder as one run.
    ///
    /// # Errors
    /// [`Error::Io`] where folder or file cannot be written.
    pub fn create(folder: &Path) -> Result<Self> {
        let mut run = 1;
        let (path, file) = loop {
            let path = path_of(folder, run);
            make_folder(path.parent().unwrap_or(folder))?;
            match File::create_new(&path) {
                Err(e) if e.kind() == ErrorKind::AlreadyExists => run += 1,
                file => break (path.clone(), file.map_err(Error::io("open event file", &path))?),
            }
        };
        let mut board = Self { path, file, end: BoardEnd { run, length: 0 } };
        board.event(0, |event| text(event, 3, "brain.Event:2"))?;
        Ok(board)
    }

    /// Goes on with the file of an earlier run in this folder, without what came after that end; `None` where it is not there,
    /// or shorter.
    ///
    /// # Errors
    /// [`Error::Io`] where the file cannot be written.
    pub fn go_on(folder: &Path, end: &BoardEnd) -> Result<Option<Self>> {
        let path = path_of(folder, end.run);
        let fail = || Error::io("open event file", &path);
        let file = match File::options().append(true).open(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            file => file.map_err(fail())?,
        };
        if file.metadata().map_err(fail())?.len() < end.length {
            return Ok(None);
        }
        file.set_len(end.length).map_err(fail())?;
        Ok(Some(Self { path, file, end: end.clone() }))
    }

    /// How far it has come.
    pub fn end(&self) -> BoardEnd {
        self.end.clone()
    }

    /// Returns once all of it is on the disk.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::io("write event file", &self.path))
    }

    /// Adds values of a step, by name. Those that are not finite are left out.
    ///
    /// # Errors
    /// [`Error::Io`] where the file cannot be written.
    pub fn scalars(&mut self, step: u64, values: &[(String, f64)]) -> Result<()> {
        let mut summary = Vec::new();
        for (name, value) in values.iter().filter(|(_, value)| value.is_finite()) {
            let mut scalar = Vec::new();
            text(&mut scalar, 1, name);
            scalar.push(2 << 3 | 5);
            scalar.extend((*value as f32).to_le_bytes());
            bytes(&mut summary, 1, &scalar);
        }
        self.event(step, |event| bytes(event, 5, &summary))
    }

    fn event(&mut self, step: u64, what: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        let mut event = vec![1 << 3 | 1];
        event.extend(now.to_le_bytes());
        event.push(2 << 3);
        varint(&mut event, step);
        what(&mut event);
        let length = (event.len() as u64).to_le_bytes();
        let mut record = length.to_vec();
        record.extend(masked(&length));
        record.extend(&event);
        record.extend(masked(&event));
        // one write, so that whoever reads along rarely sees half of it
        self.file.write_all(&record).map_err(Error::io("write event file", &self.path))?;
        self.end.length += record.len() as u64;
        Ok(())
    }
}

/// The checksum as records have it: rotated, so that data which holds checksums does not fool it.
fn masked(data: &[u8]) -> [u8; 4] {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

fn text(to: &mut Vec<u8>, field: u8, value: &str) {
    bytes(to, field, value.as_bytes());
}

fn bytes(to: &mut Vec<u8>, field: u8, value: &[u8]) {
    to.push(field << 3 | 2);
    varint(to, value.len() as u64);
    to.extend(value);
}

/// Seven bits at a time, the lowest first.
fn varint(to: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_curves_of_earlier_runs_stay() {
        let folder = tempfile::tempdir().unwrap();
        let name = "events.out.tfevents.strata";
        let files =
            [name.into(), format!("run-2/{name}"), format!("run-3/{name}")].map(|n| folder.path().join(n));
        for (runs, newest) in files.iter().enumerate() {
            let before: Vec<Vec<u8>> = files[..runs].iter().map(|f| std::fs::read(f).unwrap()).collect();
            let mut board = TensorBoard::create(folder.path()).unwrap();
            board.scalars(runs as u64, &[("loss".to_owned(), 0.5)]).unwrap();
            assert!(newest.is_file());
            for (file, before) in files.iter().zip(before) {
                assert_eq!(std::fs::read(file).unwrap(), before);
            }
        }
    }
}
