//! The names that A1111 has for the contents of files.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// The first 12 hexadecimal digits of the SHA-256 of what lies behind a file's header, as A1111's `Lora hashes` have it; so a file
/// keeps it when its metadata changes. Of PEFT's folder that of its weights.
///
/// # Errors
/// The file cannot be read.
pub fn lora_hash(path: &Path) -> Result<String> {
    let weights = path.join("adapter_model.safetensors");
    let path = if path.is_dir() { &weights } else { path };
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let mut length = [0; 8];
        file.read_exact(&mut length)?;
        file.seek(SeekFrom::Start(8_u64.saturating_add(u64::from_le_bytes(length))))?;
        short_hash(file)
    };
    read().map_err(Error::io("read", path))
}

/// The first 12 hexadecimal digits of the SHA-256 of a file, as A1111's `TI hashes` have it of embeddings.
///
/// # Errors
/// The file cannot be read.
pub fn embedding_hash(path: &Path) -> Result<String> {
    File::open(path).and_then(short_hash).map_err(Error::io("read", path))
}

/// Of what is left of a file.
fn short_hash(mut file: File) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut chunk = vec![0; 1 << 16];
    loop {
        match file.read(&mut chunk)? {
            0 => break,
            n => hash.update(&chunk[..n]),
        }
    }
    Ok(hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect())
}
