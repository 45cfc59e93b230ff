//! `strata bench`

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use indicatif::ProgressBar;
use serde_json::json;
use strata_benches::{Options, Report, Row, compare, list, roofline, run, tune};
use strata_engine::{DType, Gpu};
use strata_kernels::Choice;
use strata_model::progress;
use strata_model::write_atomic;

use super::{GpuArgs, check_file, note, number_format, supported, tuning};

/// Side of the latents and batches on GPUs, pictures of 512 × 512, and on CPU adapters, which are far slower.
const DEFAULTS: [(usize, &[usize]); 2] = [(64, &[1, 4]), (32, &[1])];

/// Time kernels and whole steps at the shapes of Stable Diffusion 1.5
///
/// Each time is the median of five batches (three of what takes over ten seconds) on the GPU's own clock, after a warm-up; ± is (longest - shortest) / median. Before
/// all else the device's own ceilings are measured: square matrix products, and a kernel that copies. A rate in GB/s
/// counts each byte of a launch's arguments once. Weights are random: nothing is downloaded.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  strata bench                                          all kernels, U-Net, training step, VAE and CLIP
  strata bench conv attention --batch 4                 only rows whose names contain one of these
  strata bench 'training step' --kernels                which kernels a step consists of
  strata bench --save before.json --plot roofline.png   keep the numbers, and draw them
  strata bench --compare before.json                    what is faster or slower than then
  strata bench --tune --batch 2                         tune for training with a batch of 2
  STRATA_COOP=0 strata bench conv                       without cooperative matrices")]
pub struct Bench {
    /// Only rows whose name contains one of these
    filter: Vec<String>,
    /// Storage type [default: f16 where the GPU adapter has it]
    #[arg(long, value_parser = number_format())]
    dtype: Option<DType>,
    /// Height and width of the latents [default: 64, for pictures of 512×512; 32 on CPUs]
    #[arg(long, value_name = "SIDE", value_parser = clap::value_parser!(u32).range(1..=512))]
    latent: Option<u32>,
    /// Samples at once; several are timed one after the other [default: 1,4; 1 on CPUs]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=64))]
    batch: Vec<u32>,
    /// Below rows of several kernels, list these
    #[arg(long)]
    kernels: bool,
    /// Name the kernels that would be timed, and stop; with --json also their sizes, for other programs to time
    #[arg(long)]
    list: bool,
    /// First find the fastest way to run each matrix product of these models at these sizes, and keep it for all commands.
    /// Results stay the same to the last bit
    #[arg(long)]
    tune: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Write the JSON to a file
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Draw the roofline to a PNG, with the rows that were asked for
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Compare with a file that --save wrote
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    #[command(flatten)]
    gpu: GpuArgs,
}

impl Bench {
    pub fn run(&self, out: &mut impl Write) -> Result<()> {
        let before = self.compare.as_deref().map(read).transpose()?;
        for (option, file) in [("--save", &self.save), ("--plot", &self.plot)] {
            file.as_deref().map_or(Ok(()), |file| check_file(option, file))?;
        }
        let gpu = self.gpu.open()?;
        let (latent, batches) = DEFAULTS[usize::from(gpu.caps().cpu)];
        let dtype = self.dtype.unwrap_or(if gpu.caps().f16 { DType::F16 } else { DType::F32 });
        let options = Options {
            dtype: supported(dtype, &gpu)?,
            latent: self.latent.map_or(latent, |side| side as usize),
            batches: match self.batch.is_empty() {
                true => batches.to_vec(),
                // in order, and none twice
                false => {
                    self.batch.iter().map(|b| *b as usize).collect::<BTreeSet<_>>().into_iter().collect()
                }
            },
            only: self.filter.clone(),
        };
        if self.list {
            return self.list(out, &gpu, &options);
        }

        if self.tune {
            self.tune(out, &gpu, &options)?;
        }
        let bar = progress::bar(0, "rows");
        let report = self.measure(out, &gpu, &options, &bar);
        bar.finish_and_clear();
        let report = report?;
        let changes = before.as_ref().map(|before| compare(before, &report));
        if let Some(before) = before.as_ref().filter(|before| !alike(before, &report)) {
            note(&format!("compared with {} in {}", before.heading().trim_end(), before.dtype));
        }
        match (&changes, self.json) {
            (None, true) => writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?,
            (Some(changes), true) => {
                let changes: Vec<_> = changes
                    .iter()
                    .map(|c| json!({"name": c.now.name, "before_ms": c.before.ms, "ms": c.now.ms, "speedup": c.speedup, "significant": c.significant}))
                    .collect();
                let all = json!({"report": report, "changes": changes});
                writeln!(out, "{}", serde_json::to_string_pretty(&all)?)?;
            }
            (None, false) => {}
            (Some(changes), false) => {
                writeln!(out, "\n{:52} {:>10} {:>10} {:>8}", "", "before, ms", "now, ms", "speedup")?;
                for c in changes {
                    let mark = if c.significant { "" } else { "  within noise" };
                    let (before, now) = (c.before.ms, c.now.ms);
                    writeln!(out, "{:52} {before:10.3} {now:10.3} {:8.2}{mark}", c.now.name, c.speedup)?;
                }
            }
        }
        if let Some(path) = &self.save {
            write_atomic(path, |file| serde_json::to_writer_pretty(file, &report).map_err(Into::into))?;
        }
        if let Some(path) = &self.plot {
            let png = roofline(&report, |name| options.wants(name))?;
            write_atomic(path, |file| file.write_all(&png))?;
        }
        Ok(())
    }

    /// Runs, and shows each row as soon as it is there.
    fn measure(
        &self,
        out: &mut impl Write,
        gpu: &Gpu,
        options: &Options,
        bar: &ProgressBar,
    ) -> Result<Report> {
        let mut next = |name: &str, done: usize, total: usize| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
            bar.set_message(name.to_string());
        };
        let mut headed = false;
        let mut show = |report: &Report, row: &Row| -> Result<()> {
            if self.json {
                return Ok(());
            }
            bar.suspend(|| {
                if !std::mem::replace(&mut headed, true) {
                    writeln!(out, "{}{}", report.heading(), report.columns())?;
                }
                writeln!(out, "{}", report.line(row))?;
                if self.kernels && row.kernels.len() > 1 {
                    report.kernel_lines(row).iter().try_for_each(|line| writeln!(out, "{line}"))?;
                }
                Ok(out.flush()?)
            })
        };
        run(gpu, options, &mut next, &mut show)
    }

    fn tune(&self, out: &mut impl Write, gpu: &Gpu, options: &Options) -> Result<()> {
        let mut tuning = tuning::load(gpu)?;
        let line = progress::waiting("tuning");
        let mut next = |name: &str| line.set_message(name.to_owned());
        let found = tune(gpu, options, &mut tuning, &mut next)?;
        drop(line);
        let path = tuning::save(gpu, &tuning)?;
        let faster: Vec<_> = found.iter().filter(|choice| choice.body != choice.usual).collect();
        note(&format!(
            "tuned {} products, {} of them faster now; kept in {}",
            found.len(),
            faster.len(),
            path.display()
        ));
        if !self.json {
            for Choice { product, usual, body, speedup } in faster {
                writeln!(out, "{product:52} {body} instead of {usual}: {speedup:.2} times as fast")?;
            }
        }
        Ok(())
    }

    fn list(&self, out: &mut impl Write, gpu: &Gpu, options: &Options) -> Result<()> {
        let cases = list(gpu, options);
        ensure!(!cases.is_empty(), "no kernel's name contains {}", options.only.join(" or "));
        match self.json {
            true => writeln!(out, "{}", serde_json::to_string_pretty(&cases)?)?,
            false => cases.iter().try_for_each(|case| writeln!(out, "{}", case.name))?,
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Report> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text)
        .with_context(|| format!("{} is not what `strata bench --save` writes", path.display()))
}

fn alike(a: &Report, b: &Report) -> bool {
    (&a.device, &a.dtype) == (&b.device, &b.dtype)
}
