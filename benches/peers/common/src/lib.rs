//! What the benchmarks of Strata's peers share: shapes, inputs, the command line, timing and the table.
//!
//! A peer turns an [`Op`] into a [`Case`]; [`run`] checks its result, times it and prints. A row that the
//! peer refuses, or computes wrongly, gets no time: its name and the reason go to stderr.

mod op;

use std::panic::{AssertUnwindSafe, catch_unwind, set_hook};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use serde_json::{Map, Value, json};

pub use op::{EPS, Op, heads_last};

/// A batch of launches lasts at least this many seconds, so that the wait at its end does not count.
const BATCH_SECONDS: f64 = 0.2;

/// Storage type of tensors.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum DType {
    F16,
    F32,
}

impl DType {
    pub fn name(self) -> &'static str {
        if self == DType::F16 { "f16" } else { "f32" }
    }

    /// Bound of what a result may be off, relative to the largest value.
    fn tolerance(self) -> f64 {
        if self == DType::F16 { 1e-2 } else { 1e-3 }
    }
}

/// One operation made ready by a peer.
pub struct Case<'a> {
    /// Launches so many times, each result really computed, and waits for the device.
    pub launch: Box<dyn FnMut(usize) -> Result<()> + 'a>,
    /// Operations of a launch.
    pub per_launch: usize,
    /// The result of the operation: row-major, in the layout that [`Op`] tells.
    pub result: Box<dyn Fn() -> Result<Vec<f32>> + 'a>,
}

/// A library to compare with.
pub trait Peer {
    /// Its name and version, "burn 0.22.1".
    fn version(&self) -> String;
    /// Name of the adapter, and what else decides its speed.
    fn device(&self) -> String;
    /// Uploads the inputs of an operation; an error says why the peer cannot run it.
    fn prepare(&self, op: &Op, dtype: DType) -> Result<Case<'_>>;
}

#[derive(clap::Parser)]
struct Args {
    /// Rows to time, as `strata bench --list --json` prints them
    #[arg(required_unless_present = "check")]
    shapes: Option<PathBuf>,
    /// Only rows whose name contains this
    #[arg(long, default_value = "")]
    filter: String,
    /// Storage type
    #[arg(long, default_value = "f16")]
    dtype: DType,
    /// One JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Only compare one small result of each operation with plain arithmetic; exit code 1 if one is wrong
    #[arg(long)]
    check: bool,
}

/// A line of the list of shapes.
struct Row {
    name: String,
    op: Op,
    flops: f64,
}

/// The whole program: reads the arguments, opens the peer for a storage type, checks or times.
pub fn run<P: Peer>(open: impl FnOnce(DType) -> Result<P>) -> ExitCode {
    let args = <Args as clap::Parser>::parse();
    set_hook(Box::new(|panic| {
        let reason = panic.payload_as_str().unwrap_or("it panicked").replace('\n', " ");
        PANIC.lock().unwrap().get_or_insert(reason);
    }));
    let done = caught(|| open(args.dtype)).and_then(|peer| match &args.shapes {
        Some(shapes) if !args.check => time_all(&peer, &rows(shapes)?, &args),
        _ => check_all(&peer, args.dtype),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The version of a dependency, from the text of Cargo.lock.
pub fn version(lock: &str, package: &str) -> String {
    let head = format!("name = \"{package}\"\nversion = \"");
    let at = lock.find(&head).expect("a dependency") + head.len();
    format!("{package} {}", lock[at..].split('"').next().unwrap_or_default())
}

/// What the first panic of any thread said.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

/// A panic is an error like any other.
fn caught<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    PANIC.lock().unwrap().take();
    catch_unwind(AssertUnwindSafe(f))
        .unwrap_or_else(|_| Err(anyhow!(PANIC.lock().unwrap().take().unwrap_or_default())))
}

/// Reads the rows; those with an unknown operation or field, or of a backward pass, are named on stderr.
fn rows(path: &std::path::Path) -> Result<Vec<Row>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let list: Vec<Map<String, Value>> = serde_json::from_str(&text)
        .with_context(|| format!("{} is not a JSON array of rows", path.display()))?;
    let (mut rows, mut unknown) = (Vec::new(), Vec::new());
    for mut row in list {
        let name =
            row.remove("name").and_then(|v| Some(v.as_str()?.to_string())).context("a row has no name")?;
        let flops = row.remove("flops").and_then(|v| v.as_f64()).unwrap_or(0.0);
        let forward = row.remove("pass").is_none_or(|pass| pass == "forward");
        match serde_json::from_value(Value::Object(row)) {
            Ok(op) if forward => rows.push(Row { name, op, flops }),
            _ => unknown.push(name),
        }
    }
    if !unknown.is_empty() {
        eprintln!("skipped, not for peers: {}", unknown.join(", "));
    }
    Ok(rows)
}

fn time_all(peer: &impl Peer, rows: &[Row], args: &Args) -> Result<()> {
    let mut out = Vec::new();
    if !args.json {
        println!("{}, {}, {}", peer.device(), peer.version(), args.dtype.name());
        println!("{:44} {:>10} {:>9} {:>9}", "kernel", "ms", "spread %", "GFLOP/s");
    }
    for Row { name, op, flops } in rows.iter().filter(|row| row.name.contains(&args.filter)) {
        let timed = caught(|| {
            let mut case = peer.prepare(op, args.dtype)?;
            verify(op, args.dtype, &case)?;
            time(&mut case)
        });
        let (seconds, spread) = match timed {
            Ok(time) => time,
            Err(reason) => {
                eprintln!("skipped {name}: {reason:#}");
                continue;
            }
        };
        let gflops = (*flops > 0.0).then(|| flops / seconds / 1e9);
        if !args.json {
            let rate = gflops.map_or("-".into(), |rate| format!("{rate:.1}"));
            println!("{name:44} {:10.3} {:9.1} {rate:>9}", seconds * 1e3, spread * 100.0);
        }
        out.push(json!({"name": name, "ms": seconds * 1e3, "spread": spread, "gflops": gflops}));
    }
    if args.json {
        let (peer, device) = (peer.version(), peer.device());
        println!("{:#}", json!({"peer": peer, "device": device, "dtype": args.dtype.name(), "rows": out}));
    }
    Ok(())
}

/// Median seconds of the operation in five batches, and (longest - shortest) / median. Before the batches
/// comes the warm-up, with compiling and tuning: three launches on their own, and ever longer batches.
fn time(case: &mut Case) -> Result<(f64, f64)> {
    let mut batch = |count: usize| -> Result<f64> {
        let start = Instant::now();
        (case.launch)(count)?;
        Ok(start.elapsed().as_secs_f64())
    };
    for _ in 0..3 {
        batch(1)?;
    }
    let mut count = 1;
    loop {
        let seconds = batch(count)?;
        if seconds >= BATCH_SECONDS {
            break;
        }
        count = (count as f64 * (1.1 * BATCH_SECONDS / seconds).clamp(1.1, 10.0)).ceil() as usize;
    }
    let mut times =
        (0..5).map(|_| Ok(batch(count)? / (count * case.per_launch) as f64)).collect::<Result<Vec<_>>>()?;
    times.sort_by(f64::total_cmp);
    Ok((times[2], (times[4] - times[0]) / times[2]))
}

fn check_all(peer: &impl Peer, dtype: DType) -> Result<()> {
    println!("{}, {}, {}", peer.device(), peer.version(), dtype.name());
    let mut wrong = 0;
    for op in Op::small() {
        match caught(|| peer.prepare(&op, dtype)) {
            Err(reason) => println!("skipped {op:?}: {reason:#}"),
            Ok(case) => match caught(|| verify(&op, dtype, &case)) {
                Ok(off) => println!("ok      {op:?}: off by {off:.1e} of the largest value at most"),
                Err(reason) => {
                    println!("WRONG   {op:?}: {reason:#}");
                    wrong += 1;
                }
            },
        }
    }
    anyhow::ensure!(wrong == 0, "{wrong} results are wrong");
    Ok(())
}

/// Compares up to 500 values of a result, spread over all of it, with plain arithmetic; how far off they are.
fn verify(op: &Op, dtype: DType, case: &Case) -> Result<f64> {
    let (result, inputs) = ((case.result)()?, op.inputs());
    anyhow::ensure!(result.len() == op.outputs(), "{} values, expected {}", result.len(), op.outputs());
    let step = op.outputs().div_ceil(500) | 1;
    let at: Vec<usize> = (0..op.outputs()).step_by(step).collect();
    let expected: Vec<f64> = at.iter().map(|&i| op.expected(&inputs, i)).collect();
    let largest = expected.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
    let mut worst = 0.0;
    for (&i, expected) in at.iter().zip(&expected) {
        let off = (f64::from(result[i]) - expected).abs() / largest;
        anyhow::ensure!(off <= dtype.tolerance(), "value {i} is {}, expected {expected}", result[i]);
        worst = off.max(worst);
    }
    Ok(worst)
}
