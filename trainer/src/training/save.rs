//! A save: all that a run needs to go on as if it had never stopped.
//!
//! It is a safetensors file, so that it is whole or not there and other programs can look into it. Its tensors are what each
//! pupil keeps on the GPU, as f32, named `FEATURE/NAME`; all else is in its metadata: a [`State`] as TOML, the keys of the run's
//! tags, and a checksum of both.
//!
//! What needs no place in it: chance, which is a function of seed and step; gradients, which are 0 between steps; and latents,
//! text states, silence's basis and the probe's draws, which come out alike each time.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use strata_model::{Key, TensorFile, header, keys_of, note_keys, write_atomic};

use crate::training::log::LogEnd;
use crate::training::pupil::PupilState;
use crate::{Error, Result};

/// Names in the metadata.
const FORMAT: &str = "strata_save";
const STATE: &str = "state";
const SUM: &str = "crc32c";

/// Files of other formats are not read.
const VERSION: &str = "1";

/// Values that are written at once.
const PART: usize = 1 << 18;

/// All that a run needs to go on, from between two steps.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Save {
    pub state: State,
    /// Of all features of the run that have one, by tag.
    pub keys: BTreeMap<String, Key>,
    /// Values by name.
    pub tensors: BTreeMap<String, Vec<f32>>,
}

/// What of it is no tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    /// The program and the GPU adapter that it was made with.
    pub maker: String,
    /// Fingerprints of the features of the run that have keys, by name.
    pub keyed: BTreeMap<String, String>,
    pub log: LogEnd,
    pub pupils: Vec<PupilState>,
}

impl Save {
    /// Writes it, whole or not at all.
    ///
    /// # Errors
    /// A value is not finite, for no later run could repair that; or the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let bad = self.tensors.iter().find(|(_, values)| values.iter().any(|v| !v.is_finite()));
        if let Some((name, _)) = bad {
            return Err(refused(path, &format!("`{name}` has values that are not finite; it is not saved")));
        }
        let state = toml::to_string(&self.state).map_err(|e| refused(path, &e.to_string()))?;
        let named =
            [(FORMAT, VERSION.to_owned()), (STATE, state)].map(|(name, text)| (name.to_owned(), text));
        let mut metadata = BTreeMap::from(named);
        note_keys(&mut metadata, &self.keys);
        metadata.insert(SUM.to_owned(), checksum(&metadata, &self.tensors));
        let shapes = self.tensors.iter().map(|(name, values)| (name.as_str(), vec![values.len()]));
        let header = header(Dtype::F32, shapes, &metadata).map_err(|e| refused(path, &e.to_string()))?;
        Ok(write_atomic(path, |out| {
            out.write_all(&header)?;
            self.tensors.values().flat_map(|values| bytes(values)).try_for_each(|part| out.write_all(&part))
        })?)
    }

    /// Reads one.
    ///
    /// # Errors
    /// The file is damaged, of another version, or not a save.
    pub fn read(path: &Path) -> Result<Self> {
        let mut file = TensorFile::open(path)?;
        let mut metadata = file.metadata().clone();
        match metadata.get(FORMAT).map(String::as_str) {
            Some(VERSION) => {}
            Some(other) => {
                return Err(refused(path, &format!("is a save of format {other}; only {VERSION} is read")));
            }
            None => return Err(refused(path, "is no save of a run")),
        }
        let names: Vec<String> = file.tensors().keys().cloned().collect();
        let mut tensors = BTreeMap::new();
        for name in names {
            tensors.insert(name.clone(), file.read(&name)?);
        }
        let sum = metadata.remove(SUM).unwrap_or_default();
        let found = checksum(&metadata, &tensors);
        if found != sum {
            return Err(refused(path, &format!("is damaged: its checksum is {found}, and should be {sum}")));
        }
        let state = toml::from_str(metadata.get(STATE).map_or("", String::as_str))
            .map_err(|e| refused(path, &format!("its state is not what Strata writes there: {e}")))?;
        Ok(Self { state, keys: keys_of(&metadata)?, tensors })
    }
}

fn refused(path: &Path, message: &str) -> Error {
    strata_model::Error::file(path, message).into()
}

/// A part at a time, so that host memory does not hold all values twice.
fn bytes(values: &[f32]) -> impl Iterator<Item = Vec<u8>> {
    values.chunks(PART).map(|part| part.iter().flat_map(|v| v.to_le_bytes()).collect())
}

/// CRC-32C of all names and values.
fn checksum(metadata: &BTreeMap<String, String>, tensors: &BTreeMap<String, Vec<f32>>) -> String {
    let text = metadata.iter().flat_map(|(name, text)| [name, text]).chain(tensors.keys());
    let sum = text.fold(0, |sum, text| crc32c::crc32c_append(sum, text.as_bytes()));
    let parts = tensors.values().flat_map(|values| bytes(values));
    let sum = parts.fold(sum, |sum, part| crc32c::crc32c_append(sum, &part));
    format!("{sum:08x}")
}
