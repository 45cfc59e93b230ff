//! Files that are either whole or not there.

use crate::{Error, Result};
use std::fs::{self, File, TryLockError};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::Duration;
use tempfile::NamedTempFile;

/// What the names of temporary files begin and end with.
const MARKS: [&str; 2] = [".strata-", ".tmp"];

/// After this long nobody is about to lock a temporary file any more.
const SETTLED: Duration = Duration::from_secs(60);

/// Writes `path` through a temporary file in the same folder, synced and then renamed over it. Whatever fails (the
/// closure, a full disk, a crash), a file already at `path` stays as it was and the temporary one is removed: at once,
/// or by the next write to that folder where the process died.
///
/// # Errors
/// The folder is missing or not writable, the closure fails, or the disk does.
pub fn write_atomic(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    try_write(folder_of(path), path, write).map_err(Error::io("write", path))
}

/// Tries whether a file of so many bytes can be written at `path`, before the work that it is to keep. Of several
/// files on one disk, ask for the sum.
///
/// # Errors
/// `path` is a folder, its folder is missing or not writable, or the disk has less space.
pub fn check_room(path: &Path, bytes: u64) -> Result<()> {
    const MIB: f64 = 1048576.0;
    if path.is_dir() {
        return Err(Error::file(path, "is a folder; name a file"));
    }
    let folder = folder_of(path);
    let free = temporary(folder).and_then(|_removed| fs4::available_space(folder));
    let free = free.map_err(Error::io("write", path))?;
    if free < bytes {
        return Err(Error::file(
            path,
            format!(
                "needs {:.1} MiB, but the disk has {:.1} MiB free; make room, or choose another place",
                bytes as f64 / MIB,
                free as f64 / MIB
            ),
        ));
    }
    Ok(())
}

/// Makes a folder and those that it lies in, where they are not there.
///
/// # Errors
/// A file is where a folder should be, or a folder cannot be made.
pub fn make_folder(folder: &Path) -> Result<()> {
    match folder.ancestors().find(|above| above.exists()) {
        Some(file) if !file.is_dir() => {
            let message =
                format!("is a file, so there is no folder {}; choose another place", folder.display());
            Err(Error::file(file, message))
        }
        _ => fs::create_dir_all(folder).map_err(Error::io("make folder", folder)),
    }
}

/// Tries whether [`make_folder`] would succeed and files could be written there, and leaves nothing behind.
///
/// # Errors
/// A file is where a folder should be, or its place is not writable.
pub fn check_folder(folder: &Path) -> Result<()> {
    let above = folder.ancestors().find(|above| *above == Path::new("") || above.exists()).unwrap_or(folder);
    match above.is_file() {
        true => make_folder(folder),
        false => {
            let above = if above == Path::new("") { Path::new(".") } else { above };
            temporary(above).map(drop).map_err(Error::io("write to", above))
        }
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

fn try_write(
    folder: &Path,
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    remove_left_behind(folder);
    let mut file = temporary(folder)?;
    let mut buffer = BufWriter::new(file.as_file_mut());
    write(&mut buffer)?;
    buffer.flush()?;
    drop(buffer);
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    // The rename itself lives in the folder, which must reach the disk too; only Unix can open a folder for that.
    if cfg!(unix) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// A file in `folder` that is removed when it is dropped. Its lock says that the process which writes it lives.
fn temporary(folder: &Path) -> io::Result<NamedTempFile> {
    if !folder.is_dir() {
        let what = if folder.exists() { "is no folder" } else { "there is no such folder" };
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("{}: {what}", folder.display())));
    }
    let mut builder = tempfile::Builder::new();
    builder.prefix(MARKS[0]).suffix(MARKS[1]);
    // Temporary files are private by default; this one becomes the user's file and follows their umask.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let file = builder.tempfile_in(folder)?;
    // Where a file system knows no locks, its age must do.
    let _ = file.as_file().lock();
    Ok(file)
}

/// Removes the temporary files of processes that died. Failing costs space alone, so nothing is said of it.
fn remove_left_behind(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let [start, end] = MARKS.map(str::as_bytes);
        let ours = name.as_encoded_bytes().starts_with(start) && name.as_encoded_bytes().ends_with(end);
        if ours && is_left_behind(&entry.path()).unwrap_or(false) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Whether nobody writes a temporary file any more. It is empty until its writer has locked it.
fn is_left_behind(path: &Path) -> io::Result<bool> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let settled = metadata.modified()?.elapsed().is_ok_and(|age| age > SETTLED);
    Ok(match file.try_lock() {
        Ok(()) => settled || metadata.len() > 0,
        Err(TryLockError::WouldBlock) => false,
        Err(TryLockError::Error(_)) => settled,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_dead_processes_left_behind_is_removed_and_what_is_being_written_stays() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let dead = put(".strata-dead.tmp", "half");
        // its writer may be about to lock it
        let new = put(".strata-new.tmp", "");
        let old = put(".strata-old.tmp", "");
        let hour_ago = std::time::SystemTime::now() - Duration::from_secs(3600);
        File::options().write(true).open(&old).unwrap().set_modified(hour_ago).unwrap();
        let others = [put("strata-x.tmp", "x"), put(".strata-x.txt", "x")];
        let mut living = temporary(folder.path()).unwrap();
        living.write_all(b"half").unwrap();

        let path = folder.path().join("out");
        write_atomic(&path, |out| out.write_all(b"whole")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert!(!dead.exists() && !old.exists());
        assert!(new.exists() && living.path().exists() && others.iter().all(|other| other.exists()));
    }

    #[test]
    fn a_place_is_tried_before_it_is_needed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("out.safetensors");
        check_room(&file, 1).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "it leaves nothing");
        let message = |path: &Path, bytes: u64| check_room(path, bytes).unwrap_err().to_string();
        let full = message(&file, u64::MAX);
        assert!(full.contains("out.safetensors") && full.contains("17592186044416.0 MiB"), "{full}");
        assert!(message(folder.path(), 1).contains("is a folder"));
        let nowhere = message(&folder.path().join("none").join("out"), 1);
        assert!(nowhere.contains("there is no such folder"), "{nowhere}");
        fs::write(&file, "").unwrap();
        assert!(message(&file.join("out"), 1).contains("out.safetensors: is no folder"));
    }

    #[test]
    fn a_file_in_place_of_a_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let (new, file) = (folder.path().join("new"), folder.path().join("run.toml"));
        check_folder(&new.join("deep")).unwrap();
        assert!(!new.exists(), "it leaves nothing");
        make_folder(&new.join("deep")).unwrap();
        assert!(new.join("deep").is_dir());
        fs::write(&file, "").unwrap();
        for refused in
            [make_folder(&file.join("deep")), check_folder(&file), check_folder(&file.join("deep"))]
        {
            let message = refused.unwrap_err().to_string();
            assert!(message.contains("run.toml: is a file, so there is no folder"), "{message}");
        }
    }

    /// Permissions do not stop root; a file system that takes no files does.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_place_that_takes_no_files_is_told() {
        let message = check_room(Path::new("/proc/out.safetensors"), 1).unwrap_err().to_string();
        assert!(message.starts_with("cannot write /proc/out.safetensors"), "{message}");
    }
}
