//! What can go wrong in a run. Every message names the thing, the values that clash, and what to do.

use std::path::{Path, PathBuf};

use strata_model::counted;

/// `Result` of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong between a config and a LoRA.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A config that does not parse, or asks for something impossible. The message names the key.
    #[error("{}: {message}", place(file.as_deref(), *line))]
    Config {
        /// The config file; `None` for a config built in code.
        file: Option<PathBuf>,
        /// Line in that file, from 1; `None` where the value is a default.
        line: Option<usize>,
        /// The key, its value, and what it must be.
        message: String,
    },

    /// A dataset folder that cannot be trained on.
    #[error("{0}")]
    Dataset(String),

    /// A picture that cannot be decoded.
    #[error("{}: not a readable picture: {reason}; repair the picture, or remove it", path.display())]
    Picture {
        /// The picture.
        path: PathBuf,
        /// What the decoder said.
        reason: String,
    },

    /// A feature that cannot be probed, or what it is probed with.
    #[error("{0}")]
    Probe(String),

    /// Prompts, or a basis of what they say, that nothing can be kept silent with.
    #[error("{0}")]
    Silence(String),

    /// The operating system refused a file or a folder.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb and its object: `read caption`.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },

    /// Gradients that no smaller loss scale makes finite.
    #[error("step {step}: {message}")]
    Diverged {
        /// The step, counted from 0 as in the log.
        step: u64,
        /// What was seen, and what to do.
        message: String,
    },

    /// The end of the run was asked for.
    #[error("interrupted after {}", counted(*steps, "step"))]
    Interrupted {
        /// Steps taken.
        steps: u64,
    },

    /// A run that ended before its time, and what is left of it.
    #[error("{cause}{}", left(*resume, saved))]
    Unfinished {
        /// Why it ended.
        cause: Box<Self>,
        /// The step that the same run goes on from.
        resume: Option<u64>,
        /// LoRA files of what was learned until then.
        saved: Vec<PathBuf>,
    },

    /// Saves of a run that another one cannot go on from, but could begin anew beside.
    #[error("{0}")]
    Resume(String),

    /// A run that should have gone on, and has nothing to go on from.
    #[error("no save beside {}, so there is nothing to go on from", output.display())]
    NoSave {
        /// The file that the run is for.
        output: PathBuf,
    },

    /// The GPU, or a tensor on it.
    #[error(transparent)]
    Engine(strata_engine::Error),

    /// The model, or a file of it.
    #[error(transparent)]
    Model(#[from] strata_model::Error),
}

/// What failed in a model's block that ran again is the model's.
impl From<strata_engine::Error> for Error {
    fn from(error: strata_engine::Error) -> Self {
        match strata_model::Error::from(error) {
            strata_model::Error::Engine(error) => Self::Engine(error),
            other => Self::Model(other),
        }
    }
}

impl Error {
    /// Wraps an `io::Error`: `.map_err(Error::io("read caption", &path))`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

fn left(resume: Option<u64>, saved: &[PathBuf]) -> String {
    let resume = resume.map(|step| format!("; the same run, started again, goes on from step {step}"));
    let saved =
        (!saved.is_empty()).then(|| format!("; what was learned until then is in {}", listing(saved)));
    [resume, saved].into_iter().flatten().collect()
}

fn listing(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// `run.toml:12`, `run.toml`, or `config`: as much of the place as is known.
fn place(file: Option<&Path>, line: Option<usize>) -> String {
    match (file, line) {
        (Some(file), Some(line)) => format!("{}:{line}", file.display()),
        (Some(file), None) => file.display().to_string(),
        (None, _) => "config".to_owned(),
    }
}
