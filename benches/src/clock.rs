//! How long something takes: the median of batches, by the GPU's clock where it has one.

use std::time::{Duration, Instant};

use anyhow::Result;
use strata_engine::{Gpu, LaunchTime};

/// A batch lasts at least this long, if more than one run of the work fits.
const BATCH: Duration = Duration::from_millis(200);
/// Batches, of which the median counts.
const BATCHES: usize = 5;
/// Fewer are timed where one run takes longer than this.
const LONG: Duration = Duration::from_secs(10);
const FEW_BATCHES: usize = 3;

/// Something to be run again and again.
pub type Work<'a> = Box<dyn Fn() -> Result<()> + 'a>;

/// What one run of some work takes.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Median time in seconds, by the GPU's clock; by the wall's where it has none.
    pub seconds: f64,
    /// (longest − shortest) / median.
    pub spread: f64,
    /// Median time in seconds that the host takes to record and submit it, without waiting.
    pub encode_seconds: f64,
    /// Operations that its launches declare.
    pub flops: u64,
    /// Bytes of its launches' bindings.
    pub bytes: u64,
    /// Its launches, of a run in which each was timed alone.
    pub launches: Vec<LaunchTime>,
    /// Most bytes of tensors alive at once.
    pub peak_bytes: u64,
}

/// Times `work`. Its first run, in which pipelines are compiled, does not count.
pub fn measure(gpu: &Gpu, work: &dyn Fn() -> Result<()>) -> Result<Measured> {
    work()?;
    gpu.wait()?;
    gpu.reset_peak();
    let start = Instant::now();
    let ((), launches) = gpu.profile(work)?;
    let once = start.elapsed();
    let runs = (BATCH.as_secs_f64() / once.as_secs_f64()).ceil().clamp(1.0, 1000.0) as u32;
    let batches = if once > LONG { FEW_BATCHES } else { BATCHES };
    let (mut seconds, mut encoding) = (Vec::new(), Vec::new());
    for _ in 0..batches {
        let mut encoded = Duration::ZERO;
        let start = Instant::now();
        let ((), gpu_seconds) = gpu.time(|| -> Result<()> {
            let start = Instant::now();
            (0..runs).try_for_each(|_| work())?;
            gpu.flush();
            encoded = start.elapsed();
            Ok(())
        })?;
        seconds.push(gpu_seconds.unwrap_or(start.elapsed().as_secs_f64()) / f64::from(runs));
        encoding.push(encoded.as_secs_f64() / f64::from(runs));
    }
    seconds.sort_by(f64::total_cmp);
    encoding.sort_by(f64::total_cmp);
    let median = seconds[batches / 2];
    Ok(Measured {
        seconds: median,
        spread: (seconds[batches - 1] - seconds[0]) / median,
        encode_seconds: encoding[batches / 2],
        flops: launches.iter().map(|launch| launch.flops).sum(),
        bytes: launches.iter().map(|launch| launch.bytes).sum(),
        launches,
        peak_bytes: gpu.stats().peak_bytes,
    })
}
