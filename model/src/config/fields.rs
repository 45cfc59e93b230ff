//! A JSON object that is read strictly.

use std::fs;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::{Error, Result};

/// One JSON object being read: every key asked for is removed, and what remains at the end is unknown.
pub(super) struct Fields {
    path: PathBuf,
    pub map: Map<String, Value>,
}

impl Fields {
    pub fn open(path: &Path) -> Result<Self> {
        let text = fs::read(path).map_err(Error::io("read", path))?;
        let map = serde_json::from_slice(&text)
            .map_err(|e| Error::file(path, format!("not a JSON object: {e}")))?;
        Ok(Self { path: path.into(), map })
    }

    pub fn refuse(&self, key: &str, value: &Value, message: impl Into<String>) -> Error {
        Error::Config {
            path: self.path.clone(),
            key: key.into(),
            value: value.to_string(),
            message: message.into(),
        }
    }

    /// The value of `key`; `None` if missing or null.
    pub fn get<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>> {
        match self.map.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                T::deserialize(&value).map(Some).map_err(|e| self.refuse(key, &value, e.to_string()))
            }
        }
    }

    pub fn or<T: DeserializeOwned>(&mut self, key: &str, default: T) -> Result<T> {
        Ok(self.get(key)?.unwrap_or(default))
    }

    /// A count that must be there and not be zero.
    pub fn count(&mut self, key: &str, default: usize) -> Result<usize> {
        match self.get(key)?.unwrap_or(default) {
            0 => Err(self.refuse(key, &json!(0), "must be at least 1")),
            n => Ok(n),
        }
    }

    pub fn counts(&mut self, key: &str, default: &[usize]) -> Result<Vec<usize>> {
        let list = self.get(key)?.unwrap_or(default.to_vec());
        if list.is_empty() || list.contains(&0) {
            return Err(self.refuse(key, &json!(list), "must be a list of numbers that are at least 1"));
        }
        Ok(list)
    }

    /// Turns `[x, x, …]` into `x`: newer files may give one value per block where older ones give one for all.
    pub fn uniform(&mut self, key: &str) {
        if let Some(Value::Array(list)) = self.map.get(key)
            && let Some(first) = list.first()
            && list.iter().all(|value| value == first)
        {
            let first = first.clone();
            self.map.insert(key.into(), first);
        }
    }

    /// `key` must be missing or have one of these values: anything else is a feature that is not built.
    pub fn only(&mut self, key: &str, supported: &[Value]) -> Result<()> {
        let same = |a: &Value, b: &Value| a == b || a.as_f64().is_some_and(|a| Some(a) == b.as_f64());
        self.uniform(key);
        match self.map.remove(key) {
            Some(value) if !supported.iter().any(|ok| same(ok, &value)) => {
                let list = supported.iter().map(Value::to_string).collect::<Vec<_>>().join(" or ");
                Err(self.refuse(key, &value, format!("not supported; only {list} is")))
            }
            _ => Ok(()),
        }
    }

    /// Keys whose value changes nothing here.
    pub fn skip(&mut self, keys: &[&str]) {
        for key in keys {
            self.map.remove(*key);
        }
    }

    /// Refuses what was never asked for.
    pub fn finish(mut self) -> Result<()> {
        let unknown = |key: &str, value: &Value| {
            !key.starts_with('_') && !matches!(value, Value::Null | Value::Bool(false))
        };
        let key = self.map.iter().find(|(key, value)| unknown(key, value)).map(|(key, _)| key.clone());
        match key {
            None => Ok(()),
            Some(key) => {
                let value = self.map.remove(&key).unwrap_or_default();
                Err(self.refuse(
                    &key,
                    &value,
                    "unknown setting; it may change what the model computes, so it is not ignored",
                ))
            }
        }
    }
}

/// The groups of norms, which must divide the channels of every level.
pub(super) fn groups(f: &mut Fields, channels: &[usize]) -> Result<usize> {
    let groups = f.count("norm_num_groups", 32)?;
    if channels.iter().any(|c| c % groups != 0) {
        return Err(f.refuse(
            "norm_num_groups",
            &json!(groups),
            format!("must divide all of block_out_channels {channels:?}"),
        ));
    }
    Ok(groups)
}

/// A number above 0.
pub(super) fn positive(f: &mut Fields, key: &str, default: f64) -> Result<f64> {
    let value: f64 = f.or(key, default)?;
    if !(value > 0.0 && value.is_finite()) {
        return Err(f.refuse(key, &json!(value), "must be greater than 0"));
    }
    Ok(value)
}
