//! The log of a run: one line of JSON a step, to be plotted or watched while the run goes on.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use strata_model::{check_folder, make_folder};

use crate::training::tensorboard::{BoardEnd, TensorBoard};
use crate::{Config, Error, ProbeRecord, Result};

/// What happened in one step. A number that is not finite is written as `null`, since JSON has no other way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// Bytes in it.
    length: u64,
}

impl StepLog {
    /// Starts a log, and its folder where there is none; or goes on with one, which is never emptied: a line
    /// `{"run": 2}` then says that another run begins, whose steps count from 0 again.
    ///
    /// A run that was killed may have left half a line, to which the next is not glued; or nothing after its `{"run": 2}`, which
    /// then holds for the next run.
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
        let (runs, empty) = runs(&mut file).map_err(Error::io("go on with log", path))?;
        let length = file.metadata().map_err(Error::io("go on with log", path))?.len();
        let mut log = Self { path: path.to_owned(), file, length };
        if !empty {
            log.write(&RunRecord { run: runs + 1 })?;
        }
        Ok(log)
    }

    /// Goes on with a log where it had so many bytes: what was written after that will come again. `None` where it is shorter
    /// now, or another run has begun in it since.
    ///
    /// # Errors
    /// [`Error::Io`] where the file cannot be read or written.
    fn go_on(path: &Path, length: u64) -> Result<Option<Self>> {
        let fail = || Error::io("go on with log", path);
        let mut file = match OpenOptions::new().read(true).append(true).open(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            file => file.map_err(fail())?,
        };
        let shorter = file.metadata().map_err(fail())?.len() < length;
        file.seek(SeekFrom::Start(length)).map_err(fail())?;
        if shorter || has_run(&file).map_err(fail())? {
            return Ok(None);
        }
        file.set_len(length).map_err(fail())?;
        Ok(Some(Self { path: path.to_owned(), file, length }))
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
        self.file.write_all(&line).map_err(fail())?;
        self.length += line.len() as u64;
        Ok(())
    }
}

/// Where a run says what happens.
pub(crate) struct Logs {
    steps: StepLog,
    board: Option<TensorBoard>,
    settled: LogEnd,
}

/// How far logs had come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct LogEnd {
    /// Bytes of the log of steps.
    steps: u64,
    board: Option<BoardEnd>,
}

impl Logs {
    /// Goes on where an earlier run had come, as if it had never stopped; where there is none, or its files are not there any
    /// more, as a new run.
    pub fn open(config: &Config, from: Option<&LogEnd>) -> Result<Self> {
        let path = config.log_path();
        let steps = match from.map(|end| StepLog::go_on(&path, end.steps)).transpose()?.flatten() {
            Some(log) => log,
            None => StepLog::append(&path)?,
        };
        let from = from.and_then(|end| end.board.as_ref());
        let board =
            |folder: &Path| match from.map(|end| TensorBoard::go_on(folder, end)).transpose()?.flatten() {
                Some(board) => Ok(board),
                None => TensorBoard::create(folder),
            };
        let board = config.tensorboard.as_deref().map(board).transpose()?;
        let mut logs = Self { steps, board, settled: LogEnd { steps: 0, board: None } };
        logs.settle();
        Ok(logs)
    }

    /// Whether they can be written, before the work that they are to tell of.
    pub fn check(config: &Config) -> Result<()> {
        let path = config.log_path();
        path.parent().map_or(Ok(()), make_folder)?;
        OpenOptions::new().append(true).create(true).open(&path).map_err(Error::io("open log", &path))?;
        Ok(config.tensorboard.as_deref().map_or(Ok(()), check_folder)?)
    }

    /// What was written until now is whole.
    pub fn settle(&mut self) {
        self.settled = LogEnd { steps: self.steps.length, board: self.board.as_ref().map(TensorBoard::end) };
    }

    /// How far they had come when they were last whole; and that is on the disk.
    pub fn end(&self) -> Result<LogEnd> {
        self.steps.file.sync_data().map_err(Error::io("write log", &self.steps.path))?;
        self.board.iter().try_for_each(TensorBoard::sync)?;
        Ok(self.settled.clone())
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

/// Whether another run begins in the rest of a log.
fn has_run(file: &File) -> std::io::Result<bool> {
    for line in BufReader::new(file).split(b'\n') {
        if serde_json::from_slice::<RunRecord>(&line?).is_ok() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// How many runs a log has, and whether the last of them has no line. Ends the log's last line where that is cut off.
fn runs(file: &mut File) -> std::io::Result<(u64, bool)> {
    let (mut runs, mut whole, mut empty) = (1, true, true);
    let mut lines = BufReader::new(&*file);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line)? > 0 {
        whole = line.ends_with(b"\n");
        empty = serde_json::from_slice::<RunRecord>(&line).is_ok();
        runs += u64::from(empty);
        line.clear();
    }
    if !whole {
        file.write_all(b"\n")?;
    }
    Ok((runs, empty))
}
