//! One writer for each output.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use same_file::Handle;

use crate::{Error, Result};

/// An output that no other run may write, until this is dropped or its process ends, in whatever way.
#[derive(Debug)]
pub struct Lock {
    /// The file beside the output that carries the lock.
    beside: PathBuf,
    _file: File,
}

/// Claims the output `path`, through a lock on `.NAME.lock` beside it that holds the process id. The output itself need not
/// be there. On a file system that knows no locks every claim succeeds.
///
/// # Errors
/// Another run has it, which is named; or the file beside it cannot be written.
pub fn lock(path: &Path) -> Result<Lock> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.lock"));
    let fail = || Error::io("lock", &beside);
    loop {
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&beside)
            .map_err(fail())?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(taken(path, &beside)),
            Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(e)) => return Err(fail()(e)),
        }
        if is_there(&file, &beside) {
            let id = format!("{}\n", std::process::id());
            file.set_len(0).and_then(|()| file.write_all(id.as_bytes())).map_err(fail())?;
            return Ok(Lock { beside, _file: file });
        }
        // Its owner removed it after it was opened here: this lock would be on a file that nobody else finds.
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Before the lock goes; a file that stays all the same stops nobody.
        let _ = fs::remove_file(&self.beside);
    }
}

fn is_there(file: &File, path: &Path) -> bool {
    let opened = file.try_clone().and_then(Handle::from_file);
    opened.is_ok_and(|opened| Handle::from_path(path).is_ok_and(|there| there == opened))
}

fn taken(path: &Path, beside: &Path) -> Error {
    // Windows lets nobody read a locked file, and a lock can be a moment older than the number in it.
    let id = fs::read_to_string(beside).unwrap_or_default();
    let who = match id.trim() {
        "" => "another run".to_owned(),
        id => format!("another run, process {id},"),
    };
    Error::file(path, format!("{who} is writing this; wait for it, end it, or choose another output"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_refused_with_the_firsts_process_id() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("cat.safetensors");
        let first = lock(&output).unwrap();
        let message = lock(&output).unwrap_err().to_string();
        assert!(message.contains("cat.safetensors"), "{message}");
        #[cfg(unix)]
        assert!(message.contains(&format!("process {}", std::process::id())), "{message}");
        let other = lock(&folder.path().join("dog.safetensors")).unwrap();
        drop(first);
        drop(lock(&output).unwrap());
        drop(other);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing stays behind");
    }

    #[test]
    fn what_a_dead_process_left_behind_stops_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("cat.safetensors");
        fs::write(folder.path().join(".cat.safetensors.lock"), "999999999999\n").unwrap();
        let first = lock(&output).unwrap();
        let message = lock(&output).unwrap_err().to_string();
        assert!(!message.contains("999999999999"), "{message}");
        drop(first);
    }

    #[test]
    fn an_output_nowhere_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let message = lock(&folder.path().join("none").join("x")).unwrap_err().to_string();
        assert!(message.contains("cannot lock") && message.contains("none"), "{message}");
    }
}
