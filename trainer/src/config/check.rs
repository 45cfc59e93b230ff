//! What a config must satisfy beyond its types.

use std::borrow::Borrow;
use std::fmt::Display;
use std::path::Path;

use super::Config;
use super::section::{Entry, Section};
use crate::{Error, Result};

/// A key, and what is wrong with it.
#[derive(Debug)]
pub(crate) struct Problem {
    /// From the top of the file: `train.steps`, `lora[0].rank`.
    pub key: String,
    pub message: String,
}

impl Problem {
    /// Of a key whose value must be something else.
    pub fn new(key: impl Into<String>, value: impl Display, must: impl Display) -> Self {
        let key = key.into();
        Self { message: format!("{key} = {value}: {must}"), key }
    }

    /// For a config that came from no file.
    fn into_error(self) -> Error {
        Error::Config { file: None, line: None, message: self.message }
    }
}

impl Config {
    /// Checks every value. [`Config::load`] does this already; a config built in code needs it.
    ///
    /// # Errors
    /// [`Error::Config`] with the first key whose value cannot work.
    pub fn validate(&self) -> Result<()> {
        validate(self, "")
    }
}

/// Checks a section that stands in the table `at`.
pub(crate) fn validate(section: &dyn Section, at: &str) -> Result<()> {
    check(section, at).map_err(Problem::into_error)
}

/// As [`validate`], with the key.
pub(super) fn check(section: &dyn Section, at: &str) -> Result<(), Problem> {
    for entry in section.entries() {
        match entry {
            Entry::Key(key) => {
                if let Some(must) = key.fault {
                    return Err(Problem::new(join(at, key.name), key.value.unwrap_or_default(), must));
                }
            }
            Entry::Table { name, repeated, sections } => {
                for (i, section) in sections.into_iter().enumerate() {
                    let at = join(at, name);
                    check(section, &if repeated { format!("{at}[{i}]") } else { at })?;
                }
            }
        }
    }
    section.together().map_err(|Problem { key, message }| Problem {
        key: join(at, &key),
        message: if at.is_empty() { message } else { format!("{at}.{message}") },
    })
}

/// `train.steps`
pub(crate) fn join(at: &str, name: &str) -> String {
    if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") }
}

/// That a value `must` be something.
pub(crate) fn require(ok: bool, must: impl Into<String>) -> Result<(), String> {
    if ok { Ok(()) } else { Err(must.into()) }
}

/// A whole number from `min` to `max`, both included.
pub(crate) fn within<T: PartialOrd + Display>(min: T, max: T) -> impl Fn(&T) -> Result<(), String> {
    move |value| {
        require((&min..=&max).contains(&value), format!("must be a whole number from {min} to {max}"))
    }
}

/// Nothing, or what `check` accepts.
pub(crate) fn if_set<T: Borrow<B>, B: ?Sized>(
    check: impl Fn(&B) -> Result<(), String>,
) -> impl Fn(&Option<T>) -> Result<(), String> {
    move |value| match value {
        Some(value) => check(value.borrow()).map_err(|must| format!("{must}; omit it for the default")),
        None => Ok(()),
    }
}

/// More than 0 and finite; NaN is not.
pub(crate) fn positive(x: &f64) -> Result<(), String> {
    require(x.is_finite(), "is not finite; must be more than 0")?;
    require(*x > 0.0, "must be more than 0")
}

/// At least 0 and finite; NaN is not.
pub(crate) fn not_negative(x: &f64) -> Result<(), String> {
    require(x.is_finite(), "is not finite; must be 0 or more")?;
    require(*x >= 0.0, "must be 0 or more")
}

/// A path that is not empty; `what` it leads to.
pub(crate) fn named(what: &'static str) -> impl Fn(&Path) -> Result<(), String> {
    move |path| require(!path.as_os_str().is_empty(), format!("must be {what}"))
}

/// A LoRA file.
pub(crate) fn lora_file(path: &Path) -> Result<(), String> {
    let named = path.file_stem().is_some() && path.extension().is_some_and(|e| e == "safetensors");
    require(named, "must be the path of a `.safetensors` file")
}

/// A file, as opposed to `..` and nothing.
pub(crate) fn file_name(path: &Path) -> Result<(), String> {
    require(path.file_name().is_some(), "must be the path of a file")
}
