//! The log of a run: one line of JSON a step, to be plotted or watched while the run goes on.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use strata_model::make_folder;

use crate::training::tensorboard::TensorBoard;
use crate::{Error, ProbeRecord, Result};

/// What happened in one step. A number that is not finite is written as `null`, since JSON has no other way.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepRecord {
    /// The feature that learned; `None` (left out) in a run without features.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feature: Option<String>,
    /// The step, counted from 0.
    pub step: u64,
    /// How many times the dataset has been gone through: a count, with its fraction.
    pub epoch: f64,
    /// Mean loss over the samples of the step, what is preserved included.
    pub loss: f32,
    /// The part of it that preservation has; `None` (left out) without preservation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preserve_loss: Option<f32>,
    /// Norm of the whole gradient, before it was scaled down.
    pub grad_norm: f32,
    /// Learning rate.
    pub lr: f32,
    /// Factor on the loss that keeps f16 gradients in range; `None` (`null`) where f32 needs none.
    pub loss_scale: Option<f32>,
    /// Whether the update was left out because a gradient was not finite.
    pub skipped: bool,
    /// Seconds that the step took.
    pub seconds: f64,
    /// Samples a second in this step.
    pub samples_per_second: f64,
}

/// Where in a log another run begins.
#[derive(Serialize, Deserialize)]
struct RunRecord {
    /// Which run it is, counted from 1; the first has no such line.
    run: u64,
}

/// A log that is being written.
#[derive(Debug)]
pub struct StepLog {
    path: PathBuf,
    file: File,
}

impl StepLog {
    /// Starts a log, and its folder where there is none; or goes on with one, which is never emptied: a line
    /// `{"run": 2}` then says that another run begins, whose steps count from 0 again.
    ///
    /// A run that was killed may have left half a line; the next line is not glued to it.
    ///
    /// # Errors
    /// [`Error::Io`] where the folder or the file cannot be written.
    pub fn append(path: &Path) -> Result<Self> {
        if let Some(folder) = path.parent() {
            make_folder(folder)?;
        }
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .map_err(Error::io("open log", path))?;
        let runs = runs(&mut file).map_err(Error::io("go on with log", path))?;
        let mut log = Self { path: path.to_owned(), file };
        if runs > 0 {
            log.write(&RunRecord { run: runs + 1 })?;
        }
        Ok(log)
    }

    /// Adds a line, of a [`StepRecord`] or a [`ProbeRecord`](crate::ProbeRecord), which is in the file when this returns: nothing is buffered.
    ///
    /// # Errors
    /// [`Error::Io`] where the file cannot be written.
    pub fn write(&mut self, record: &impl Serialize) -> Result<()> {
        let fail = || Error::io("write log", &self.path);
        let mut line = serde_json::to_vec(record).map_err(|e| fail()(e.into()))?;
        line.push(b'\n');
        // One write for the line and its end, so that whoever reads along rarely sees half of it.
        self.file.write_all(&line).map_err(fail())
    }
}

/// Where a run says what happens.
pub(crate) struct Logs {
    steps: StepLog,
    board: Option<TensorBoard>,
}

impl Logs {
    pub fn new(steps: StepLog, board: Option<TensorBoard>) -> Self {
        Self { steps, board }
    }

    /// Notes a step.
    pub fn step(&mut self, record: &StepRecord) -> Result<()> {
        self.steps.write(record)?;
        let mut values = vec![
            ("loss", f64::from(record.loss)),
            ("grad_norm", f64::from(record.grad_norm)),
            ("lr", f64::from(record.lr)),
        ];
        values.extend(record.preserve_loss.map(|loss| ("preserve_loss", f64::from(loss))));
        self.curves(record.feature.as_deref().unwrap_or("lora"), record.step, &values)
    }

    /// Notes what a probe found.
    pub fn probe(&mut self, record: &ProbeRecord) -> Result<()> {
        self.steps.write(record)?;
        let mut values = vec![("drift", record.drift)];
        values.extend(record.leak.map(|leak| ("leak", leak)));
        self.curves(&record.feature, record.step, &values)
    }

    fn curves(&mut self, feature: &str, step: u64, values: &[(&str, f64)]) -> Result<()> {
        let Some(board) = &mut self.board else { return Ok(()) };
        let named: Vec<_> =
            values.iter().map(|(name, value)| (format!("{feature}/{name}"), *value)).collect();
        board.scalars(step, &named)
    }
}

/// How many runs a log has. Ends its last line where that is cut off.
fn runs(file: &mut File) -> std::io::Result<u64> {
    let (mut more, mut whole, mut empty) = (0, true, true);
    let mut lines = BufReader::new(&*file);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line)? > 0 {
        (whole, empty) = (line.ends_with(b"\n"), false);
        more += u64::from(serde_json::from_slice::<RunRecord>(&line).is_ok());
        line.clear();
    }
    if !whole {
        file.write_all(b"\n")?;
    }
    Ok(if empty { 0 } else { more + 1 })
}
