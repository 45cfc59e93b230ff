//! `strata parity`

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Result, bail};
use serde_json::json;
use strata_benches::parity::{Report, Row, run};
use strata_engine::DType;
use strata_model::counted;

use super::{GpuArgs, number_format, supported};

/// Compare with PyTorch, number by number
///
/// DIR is a pipeline folder with the reference's results beside it: goldens.safetensors, goldens_act.safetensors,
/// goldens_train.safetensors, tolerances.json, tokens.json, meta.json and lora/. Errors are relative L2 errors, unless
/// a row says otherwise. Exit code 1 if one is above its tolerance, or anything that should be there is not.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  strata parity goldens/sd15-tiny
  strata parity goldens/sd2-tiny --dtype f16
  strata parity goldens/sd15-tiny --weights sd15-tiny.safetensors
  strata parity goldens/sd15-tiny --json > parity.json")]
pub struct Parity {
    /// The folder of goldens
    dir: PathBuf,
    /// Run them with the weights of a checkpoint in one .safetensors file; DIR has the configurations, and what the file lacks
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// Number format of weights and activations
    #[arg(long, value_parser = number_format(), default_value = "f32")]
    dtype: DType,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    gpu: GpuArgs,
}

impl Parity {
    pub fn run(&self, out: &mut impl Write) -> Result<()> {
        let gpu = self.gpu.open()?;
        let report = run(&self.dir, self.weights.as_deref(), supported(self.dtype, &gpu)?, &gpu)?;
        if self.json {
            let mut value = serde_json::to_value(&report)?;
            value["pass"] = json!(report.pass());
            writeln!(out, "{}", serde_json::to_string_pretty(&value)?)?;
        } else {
            print(out, &report)?;
        }
        out.flush()?;
        if report.pass() {
            return Ok(());
        }
        let failed = report.rows.iter().filter(|row| !row.pass).count();
        let failed = counted(failed, "comparison");
        bail!("{failed} above tolerance, {} not possible", report.problems.len())
    }
}

fn print(out: &mut impl Write, report: &Report) -> Result<()> {
    writeln!(out, "{} on {}", report.dtype, report.adapter)?;
    if report.dtype == "f16" {
        let why = "f16 keeps 11 bits of each activation; where a gradient is within its error of 0, AdamW's first steps may go";
        writeln!(out, "Tolerances are wider than for f32. {why}")?;
        writeln!(out, "either way, so what five steps changed is compared more loosely still.")?;
    }
    let width = report.rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
    writeln!(out, "{:width$}  {:>9}  {:>9}  {:>9}", "golden", "error", "torch f32", "tolerance")?;
    for row in &report.rows {
        let Row { name, error, torch_f32, tolerance, pass, note } = row;
        let torch = torch_f32.map_or("-".to_owned(), |noise| format!("{noise:.1e}"));
        let verdict = if *pass { "pass" } else { "FAIL" };
        let line = format!("{name:width$}  {error:>9.1e}  {torch:>9}  {tolerance:>9.1e}  {verdict}  {note}");
        writeln!(out, "{}", line.trim_end())?;
    }
    for problem in &report.problems {
        writeln!(out, "FAIL  {problem}")?;
    }
    writeln!(out, "\n{:30}  {:>5}  {:>9}  {:>9}", "group", "rows", "worst", "tolerance")?;
    for ((group, _), rows) in groups(&report.rows) {
        // NaN is worse than any number
        let worst = rows.iter().map(|row| row.error).fold(
            0.0,
            |worst: f64, error| {
                if worst >= error { worst } else { error }
            },
        );
        let verdict = if rows.iter().all(|row| row.pass) { "pass" } else { "FAIL" };
        let (count, tolerance) = (rows.len(), rows[0].tolerance);
        writeln!(out, "{group:30}  {count:>5}  {worst:>9.1e}  {tolerance:>9.1e}  {verdict}")?;
    }
    writeln!(out, "\ncovered {} of {} goldens", report.covered, report.total)?;
    for row in &report.uncovered {
        writeln!(out, "  not covered: {:26}  {:>4}  needs {}", row.group, row.goldens, row.missing)?;
    }
    Ok(())
}

/// The rows by the first parts of their names and by tolerance.
fn groups(rows: &[Row]) -> BTreeMap<(String, u64), Vec<&Row>> {
    let mut groups: BTreeMap<(String, u64), Vec<&Row>> = BTreeMap::new();
    for row in rows {
        let parts = if row.name.starts_with("train.") { 3 } else { 1 };
        let name = row.name.split('.').take(parts).collect::<Vec<_>>().join(".");
        groups.entry((name, row.tolerance.to_bits())).or_default().push(row);
    }
    groups
}
