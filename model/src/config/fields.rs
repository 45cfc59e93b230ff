//! A JSON object that is read strictly.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::{Error, Result, sniff};

/// Settings of diffusers' `EMAModel`, which it writes into the model's own file.
const EMA: [&str; 10] = [
    "collected_params",
    "decay",
    "foreach",
    "inv_gamma",
    "min_decay",
    "model_cls",
    "optimization_step",
    "power",
    "update_after_step",
    "use_ema_warmup",
];

/// Of a file that every model has.
const MISSING: &str =
    "is missing: the model was not fetched whole; fetch this file from where the model came from";

/// One JSON object being read: every key asked for is removed, and what remains at the end is unknown.
pub(super) struct Fields {
    path: PathBuf,
    pub map: Map<String, Value>,
    notes: Vec<String>,
}

impl Fields {
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).map_err(|e| match e.kind() {
            ErrorKind::NotFound => Error::file(path, MISSING),
            _ => Error::io("read", path)(e),
        })?;
        let parse = |text: &str| serde_json::from_str(&quote_non_finite(text)).map_err(|e| e.to_string());
        let text = std::str::from_utf8(&bytes).map_err(|e| e.to_string());
        let map = text.and_then(|text| parse(text.trim_start_matches('\u{feff}'))).map_err(|reason| {
            let message = match sniff::by_bytes(&bytes) {
                Some(found) => format!("not JSON, but {found}"),
                None => format!("not a JSON object: {reason}"),
            };
            Error::file(path, message)
        })?;
        Ok(Self { path: path.into(), map, notes: Vec::new() })
    }

    /// The class that wrote the file; empty where it does not say.
    pub fn class(&self) -> &str {
        self.map.get("_class_name").and_then(Value::as_str).unwrap_or_default()
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

    /// As [`skip`](Self::skip), and says so of those that are set.
    pub fn set_aside(&mut self, keys: &[&str], whose: &str) {
        let set: Vec<&str> = keys
            .iter()
            .copied()
            .filter(|key| !matches!(self.map.remove(*key), None | Some(Value::Null | Value::Bool(false))))
            .collect();
        if !set.is_empty() {
            let path = self.path.display();
            self.notes.push(format!("{path}: not used, since of {whose}: {}", set.join(", ")));
        }
    }

    /// Refuses what was never asked for. Returns what was set aside.
    pub fn finish(&mut self) -> Result<Vec<String>> {
        self.set_aside(&EMA, "EMAModel, which averages weights while a model is trained");
        let unknown = |key: &str, value: &Value| {
            !key.starts_with('_') && !matches!(value, Value::Null | Value::Bool(false))
        };
        let key = self.map.iter().find(|(key, value)| unknown(key, value)).map(|(key, _)| key.clone());
        match key {
            None => Ok(std::mem::take(&mut self.notes)),
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

/// Python writes numbers that JSON does not have. As strings they may stand where nothing is read, and are refused by name
/// where a number is.
fn quote_non_finite(text: &str) -> String {
    let (mut quoted, mut rest, mut in_string) = (String::with_capacity(text.len()), text, false);
    while let Some(c) = rest.chars().next() {
        let number = ["-Infinity", "Infinity", "NaN"].into_iter().find(|n| !in_string && rest.starts_with(n));
        let mut taken = number.map_or(c.len_utf8(), str::len);
        if in_string && c == '\\' {
            taken += rest[1..].chars().next().map_or(0, char::len_utf8);
        }
        in_string ^= c == '"';
        match number {
            Some(number) => quoted.extend(["\"", number, "\""]),
            None => quoted.push_str(&rest[..taken]),
        }
        rest = &rest[taken..];
    }
    quoted
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
