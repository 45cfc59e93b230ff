//! Keys: word vectors of a tag's own, which stand where the tag is written in place of those that its letters spell
//! (textual inversion, Gal et al., arXiv 2208.01618).

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::tensor_file::write_f32s;
use crate::{Error, Result};

/// Where LoRA files have the keys of their tags.
const METADATA: &str = "strata_keys";

/// The word vectors of a tag.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    /// Row-major [n, C].
    vectors: Vec<f32>,
    channels: usize,
}

/// A key in a file's metadata.
#[derive(Deserialize)]
struct Stored {
    channels: usize,
    /// The vectors' f32, little-endian, in base64: JSON's decimal numbers would be three times as long.
    vectors: String,
}

impl Key {
    /// Of vectors, row-major [n, `channels`], with n at least 1.
    ///
    /// # Errors
    /// They do not fill whole rows, or a value is not finite.
    pub fn new(vectors: Vec<f32>, channels: usize) -> Result<Self> {
        if vectors.is_empty() || channels == 0 || !vectors.len().is_multiple_of(channels) {
            let n = vectors.len();
            return Err(Error::Lora(format!("a key of {n} values: it needs rows of {channels} channels")));
        }
        if vectors.iter().any(|v| !v.is_finite()) {
            return Err(Error::Lora("a key has a value that is not finite; the file is damaged".into()));
        }
        Ok(Self { vectors, channels })
    }

    /// How many vectors there are: the tokens that the tag takes.
    pub fn count(&self) -> usize {
        self.vectors.len() / self.channels
    }

    /// C: the width of the text encoder's word vectors.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Row-major [n, C].
    pub fn vectors(&self) -> &[f32] {
        &self.vectors
    }

    /// Writes a textual-inversion file whose only tensor is named as the tag: A1111, ComfyUI and diffusers take the only
    /// tensor of such a file whatever its name, and diffusers takes its name for the word.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, tag: &str, path: &Path) -> Result<()> {
        let tensor = (vec![self.count(), self.channels], self.vectors.clone());
        write_f32s(path, &BTreeMap::from([(tag.to_owned(), tensor)]))
    }
}

/// The keys of the tags of a LoRA file, from its metadata.
///
/// # Errors
/// They are there but damaged.
pub fn keys_of(metadata: &BTreeMap<String, String>) -> Result<BTreeMap<String, Key>> {
    let Some(text) = metadata.get(METADATA) else { return Ok(BTreeMap::new()) };
    let damaged = |what: &str| Error::Lora(format!("the file's metadata has {METADATA}, which {what}"));
    let stored: BTreeMap<String, Stored> =
        serde_json::from_str(text).map_err(|e| damaged(&format!("is not what Strata writes there: {e}")))?;
    let key = |(tag, stored): (String, Stored)| {
        let bytes = STANDARD.decode(&stored.vectors).map_err(|e| damaged(&format!("is damaged: {e}")))?;
        let values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        Ok((tag, Key::new(values, stored.channels)?))
    };
    stored.into_iter().map(key).collect()
}

/// Notes keys, by tag, in the metadata of a LoRA file; without keys, nothing.
pub fn note_keys(metadata: &mut BTreeMap<String, String>, keys: &BTreeMap<String, Key>) {
    let stored = |(tag, key): (&String, &Key)| {
        let bytes: Vec<u8> = key.vectors.iter().flat_map(|v| v.to_le_bytes()).collect();
        let (channels, vectors) = (key.channels, STANDARD.encode(bytes));
        (tag.clone(), json!({"channels": channels, "vectors": vectors}))
    };
    let keys: BTreeMap<String, Value> = keys.iter().map(stored).collect();
    if !keys.is_empty() {
        metadata.insert(METADATA.into(), json!(keys).to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_keys_are_refused() {
        let read = |text: &str| keys_of(&BTreeMap::from([(METADATA.to_owned(), text.to_owned())]));
        assert_eq!(keys_of(&BTreeMap::new()).unwrap(), BTreeMap::new());
        let one = STANDARD.encode([1.0_f32.to_le_bytes(), (-2.5_f32).to_le_bytes()].concat());
        let keys = read(&format!(r#"{{"t": {{"channels": 2, "vectors": "{one}"}}}}"#)).unwrap();
        assert_eq!(keys["t"].vectors(), [1.0, -2.5]);
        for (channels, vectors) in [(3, &*one), (0, &one), (2, "?"), (2, ""), (1, "AADAfw==")] {
            let text = format!(r#"{{"t": {{"channels": {channels}, "vectors": "{vectors}"}}}}"#);
            assert!(read(&text).is_err(), "{text}");
        }
        assert!(read("[]").is_err());
    }
}
