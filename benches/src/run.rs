//! Everything, in order.

use anyhow::{Result, ensure};
use strata_engine::{DType, Gpu, Tensor};
use strata_kernels::{Choice, Tuning, copy};

use crate::case::{cases, square};
use crate::clock::{Measured, measure};
use crate::models::{self, Setting, Step};
use crate::{Case, Report, Row, ops};

/// Sides of the square products whose best is the ceiling: on CPU adapters, and on GPUs.
const SQUARES: [&[usize]; 2] = [&[512, 1024], &[1024, 2048, 4096, 8192]];
/// Bytes that the copying kernel reads: on CPU adapters and on GPUs more than their caches hold.
const COPIED: [usize; 2] = [64 << 20, 256 << 20];

/// What to time.
#[derive(Clone, Debug)]
pub struct Options {
    /// Storage type.
    pub dtype: DType,
    /// Height and width of latents: 64 for pictures of 512 × 512.
    pub latent: usize,
    /// Samples at once; each is timed.
    pub batches: Vec<usize>,
    /// Only rows whose name contains one of these; all if there are none. Ceilings are always measured.
    pub only: Vec<String>,
}

impl Options {
    /// Whether a row of this name is asked for.
    pub fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| name.contains(part.as_str()))
    }

    /// The rows of a model's steps: batch and name of each.
    fn rows<M>(&self, step: &Step<M>) -> Vec<(usize, String)> {
        let name = |&batch: &usize| (batch, (step.name)(batch, self.latent));
        self.batches.iter().map(name).filter(|(_, name)| self.wants(name)).collect()
    }

    fn count<M>(&self, steps: &[Step<M>]) -> usize {
        steps.iter().map(|step| self.rows(step).len()).sum()
    }
}

/// The kernels that [`run`] times: square products, of which every run times all, and those of the U-Net.
pub fn list(gpu: &Gpu, options: &Options) -> Vec<Case> {
    let all = squares(gpu).into_iter().chain(cases(options.latent, &options.batches));
    all.filter(|case| options.wants(&case.name)).collect()
}

fn squares(gpu: &Gpu) -> Vec<Case> {
    SQUARES[usize::from(!gpu.caps().cpu)].iter().map(|side| square(*side)).collect()
}

/// Times what the options ask for. `show` hears of each row when it is done, with the report so far; `next` hears what
/// comes next, how many rows are done and how many there are.
///
/// # Errors
/// Nothing is wanted, or the GPU fails.
pub fn run(
    gpu: &Gpu,
    options: &Options,
    next: &mut dyn FnMut(&str, usize, usize),
    show: &mut dyn FnMut(&Report, &Row) -> Result<()>,
) -> Result<Report> {
    let Options { dtype, latent, .. } = *options;
    let squares = squares(gpu);
    let kernels: Vec<Case> = list(gpu, options).into_iter().filter(|case| !squares.contains(case)).collect();
    let models = options.count(&models::CLIP) + options.count(&models::VAE) + options.count(&models::UNET);
    ensure!(
        kernels.len() + models > 0 || squares.iter().any(|case| options.wants(&case.name)),
        "no row's name contains {}; `strata bench --list` names the kernels",
        options.only.join(" or ")
    );
    let total = 1 + squares.len() + kernels.len() + models;
    let mut run = Run { gpu, options, report: Report::new(gpu, dtype, latent)?, done: 0, total, next, show };

    run.ceilings(&squares, COPIED[usize::from(!gpu.caps().cpu)])?;
    for case in &kernels {
        run.announce(&case.name);
        let measured = measure(gpu, &*ops::work(gpu, dtype, case)?)?;
        run.push(&case.name, &measured)?;
    }
    run.steps(&models::CLIP, || models::clip(gpu, dtype))?;
    run.steps(&models::VAE, || models::vae(gpu, dtype))?;
    run.steps(&models::UNET, || models::unet(gpu, dtype))?;
    Ok(run.report)
}

/// Finds the fastest body for each product of square matrices, CLIP, VAE, U-Net and training step that was not tuned yet;
/// `next` hears what comes next. Options that say `only` what to time say nothing here.
///
/// # Errors
/// The GPU fails.
pub fn tune(
    gpu: &Gpu,
    options: &Options,
    tuning: &mut Tuning,
    next: &mut dyn FnMut(&str),
) -> Result<Vec<Choice>> {
    let dtype = options.dtype;
    strata_kernels::tune(gpu, tuning, || {
        for case in squares(gpu) {
            next(&case.name);
            ops::work(gpu, dtype, &case)?()?;
        }
        tune_steps(gpu, options, &models::CLIP, next, || models::clip(gpu, dtype))?;
        tune_steps(gpu, options, &models::VAE, next, || models::vae(gpu, dtype))?;
        // what recomputes has the products of what does not
        tune_steps(gpu, options, &models::UNET[..2], next, || models::unet(gpu, dtype))
    })
}

fn tune_steps<M>(
    gpu: &Gpu,
    options: &Options,
    steps: &[Step<M>],
    next: &mut dyn FnMut(&str),
    open: impl FnOnce() -> Result<M>,
) -> Result<()> {
    let mut model = open()?;
    let Options { dtype, latent, .. } = *options;
    for step in steps {
        for &batch in &options.batches {
            next(&(step.name)(batch, latent));
            (step.work)(&mut model, Setting { gpu, dtype, latent, batch })?()?;
        }
    }
    Ok(())
}

struct Run<'a> {
    gpu: &'a Gpu,
    options: &'a Options,
    report: Report,
    done: usize,
    total: usize,
    next: &'a mut dyn FnMut(&str, usize, usize),
    show: &'a mut dyn FnMut(&Report, &Row) -> Result<()>,
}

impl Run<'_> {
    /// The ceilings come first, since every other row is compared with them.
    fn ceilings(&mut self, squares: &[Case], copied: usize) -> Result<()> {
        let Run { gpu, .. } = *self;
        let dtype = self.options.dtype;
        self.announce("copy");
        let source = Tensor::zeros(gpu, &[copied / dtype.bytes() as usize], dtype)?;
        let copying = measure(gpu, &|| Ok(copy(&source).map(drop)?))?;
        drop(source);
        self.report.ceilings.copy_gbps = copying.bytes as f64 / copying.seconds / 1e9;
        let mut measured = vec![(format!("copy {} MiB", copied >> 20), copying)];
        for case in squares {
            self.announce(&case.name);
            let product = measure(gpu, &*ops::work(gpu, dtype, case)?)?;
            let ceilings = &mut self.report.ceilings;
            ceilings.gemm_tflops = ceilings.gemm_tflops.max(product.flops as f64 / product.seconds / 1e12);
            measured.push((case.name.clone(), product));
        }
        measured.iter().try_for_each(|(name, measured)| self.push(name, measured))
    }

    fn steps<M>(&mut self, steps: &[Step<M>], open: impl FnOnce() -> Result<M>) -> Result<()> {
        if self.options.count(steps) == 0 {
            return Ok(());
        }
        let mut model = open()?;
        let Options { dtype, latent, .. } = *self.options;
        for step in steps {
            for (batch, name) in self.options.rows(step) {
                self.announce(&name);
                let setting = Setting { gpu: self.gpu, dtype, latent, batch };
                let measured = measure(self.gpu, &*(step.work)(&mut model, setting)?)?;
                self.push(&name, &measured)?;
            }
        }
        Ok(())
    }

    fn announce(&mut self, name: &str) {
        (self.next)(name, self.done, self.total);
        self.done += 1;
    }

    fn push(&mut self, name: &str, measured: &Measured) -> Result<()> {
        let row = Row::new(name.into(), measured, self.gpu, &self.report.ceilings);
        (self.show)(&self.report, &row)?;
        self.report.rows.push(row);
        Ok(())
    }
}
