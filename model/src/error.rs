//! Everything that can go wrong in this crate. Each message names the thing, what was found and what to do about it.

use std::{fmt, io, path::PathBuf};

/// What every fallible function of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused: missing file, no permission, full disk.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried: `read`, `write`, …
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },

    /// A file was read, but its contents are not what they should be.
    #[error("{}: {message}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong and what to do.
        message: String,
    },

    /// A model's file lacks one of its tensors.
    #[error(
        "{}: no tensor `{name}` (expected shape {shape:?}); the file does not hold this model, or not all of it",
        path.display()
    )]
    MissingTensor {
        /// The file, or the folder where there are several.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The shape it should have.
        shape: Vec<usize>,
    },

    /// Weights and configuration do not fit.
    #[error(
        "{}: tensor `{name}` has shape {found:?}, but the configuration asks for {expected:?}; config.json and weights \
         must come from the same model",
        path.display()
    )]
    TensorShape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The shape by the configuration.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },

    /// Numbers of a type that is not read.
    #[error(
        "{}: tensor `{name}` holds {dtype} values; only F8_E4M3, F8_E5M2, F16, BF16, F32, F64 and I64 are read: save the model in one of these",
        path.display()
    )]
    TensorDtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type, as the format names it.
        dtype: String,
    },

    /// The model's own code asked for one tensor twice: a wiring mistake, not a user's.
    #[error("{}: tensor `{name}` was already taken; every tensor belongs to exactly one layer", path.display())]
    TensorTaken {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },

    /// A file holds more than the configured model.
    #[error("{}: {} tensor(s) belong to no layer of the configured model: {}", path.display(), names.len(), listing(names))]
    UnusedTensors {
        /// The file, or the folder where there are several.
        path: PathBuf,
        /// What is left over.
        names: Vec<String>,
    },

    /// A setting of a JSON configuration that is wrong or not supported.
    #[error("{}: `{key}` is {value}: {message}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The setting.
        key: String,
        /// Its value, as JSON.
        value: String,
        /// What it should be.
        message: String,
    },

    /// The tokenizer's files, or a text it cannot encode.
    #[error("tokenizer in {}: {message}", path.display())]
    Tokenizer {
        /// The tokenizer's folder.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },

    /// Noise schedules and samplers: a timestep, a step count or a setting out of range.
    #[error("scheduler: {0}")]
    Scheduler(String),

    /// A selection of layers that cannot work.
    #[error("layer pattern `{pattern}`: {message}")]
    Pattern {
        /// The term or terms.
        pattern: String,
        /// What is wrong, and what would work.
        message: String,
    },

    /// LoRAs that do not fit the model, or gates that do not fit the LoRAs.
    #[error("LoRA: {0}")]
    Lora(String),

    /// What a model is given does not fit it: sizes of pictures, latents, text states or batches.
    #[error("{0}")]
    Input(String),

    /// The GPU's.
    #[error(transparent)]
    Engine(strata_engine::Error),
}

impl Error {
    /// For `map_err`: wraps the operating system's reason with what was tried on which path.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// A file whose contents are wrong.
    pub fn file(path: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        Self::File { path: path.into(), message: message.into() }
    }
}

/// For blocks that the engine runs again, whose errors come back as they were.
impl From<Error> for strata_engine::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Engine(error) => error,
            other => Self::Outer(Box::new(other)),
        }
    }
}

impl From<strata_engine::Error> for Error {
    fn from(error: strata_engine::Error) -> Self {
        match error {
            strata_engine::Error::Outer(outer) => match outer.downcast() {
                Ok(own) => *own,
                Err(other) => Self::Engine(strata_engine::Error::Outer(other)),
            },
            other => Self::Engine(other),
        }
    }
}

/// `1 step`, `2 steps`.
pub fn counted<N: fmt::Display + PartialEq + From<u8>>(n: N, what: &str) -> String {
    let end = if n == N::from(1) { "" } else { "s" };
    format!("{n} {what}{end}")
}

/// The names, comma separated; a long list is cut, since a file of the wrong model has hundreds.
pub(crate) fn listing(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let mut text = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text += &format!(" and {} more", names.len() - SHOWN);
    }
    text
}
