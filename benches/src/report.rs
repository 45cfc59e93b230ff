//! What a run found, as JSON has it and as a table.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};
use strata_engine::{DType, Gpu};
use strata_kernels::bodies;

use crate::clock::Measured;

/// Where it ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// The GPU adapter's name.
    pub name: String,
    /// `Vulkan`, `Metal` or `Dx12`.
    pub backend: String,
    /// Driver and its version.
    pub driver: String,
    /// `gpu`, or `wall` where the adapter has no timestamps.
    pub clock: String,
    /// The GEMM variant in use.
    pub gemm: String,
    /// A CPU pretending to be a GPU.
    pub cpu: bool,
}

impl Device {
    /// That of an open adapter.
    ///
    /// # Errors
    /// Those of [`bodies`].
    pub(crate) fn of(gpu: &Gpu) -> strata_engine::Result<Self> {
        let caps = gpu.caps();
        Ok(Self {
            name: caps.name.clone(),
            backend: caps.backend.clone(),
            driver: caps.driver.clone(),
            clock: if caps.timestamps { "gpu" } else { "wall" }.into(),
            gemm: bodies(gpu)?.name().into(),
            cpu: caps.cpu,
        })
    }
}

/// The best that the device did in this very run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ceilings {
    /// Of square products, in TFLOP/s.
    pub gemm_tflops: f64,
    /// Of a kernel that copies, reading and writing, in GB/s.
    pub copy_gbps: f64,
}

/// The launches of one kernel in one run of a row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kernel {
    /// Shader and body.
    pub label: String,
    /// How often.
    pub launches: usize,
    /// Milliseconds of all, each timed alone; `None` where the adapter has no timestamps.
    pub ms: Option<f64>,
    /// Operations of all.
    pub flops: u64,
}

/// What one thing takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What.
    pub name: String,
    /// Median time in milliseconds.
    pub ms: f64,
    /// (longest − shortest) / median of the batches timed.
    pub spread: f64,
    /// Operations, as launches declare them.
    pub flops: u64,
    /// Bytes of the launches' bindings: what they move if each byte is read or written once.
    pub bytes: u64,
    /// Operations in the median time.
    pub tflops: f64,
    /// Bytes in the median time.
    pub gbps: f64,
    /// Share of [`Ceilings::gemm_tflops`].
    pub of_gemm: f64,
    /// Share of [`Ceilings::copy_gbps`]; above 1 where caches hold what one launch left to the next.
    pub of_copy: f64,
    /// The bodies that ran.
    pub variant: String,
    /// Milliseconds until the host has recorded and submitted it; work that reads back, as a training step does, also waits in them.
    /// `None` on CPU adapters, where host and device are one.
    pub encode_ms: Option<f64>,
    /// Most MiB of tensors alive at once.
    pub peak_mib: f64,
    /// Its kernels, the longest first.
    pub kernels: Vec<Kernel>,
}

impl Row {
    pub(crate) fn new(name: String, measured: &Measured, gpu: &Gpu, ceilings: &Ceilings) -> Self {
        let kernels = kernels(measured);
        let (tflops, gbps) =
            (measured.flops as f64 / measured.seconds / 1e12, measured.bytes as f64 / measured.seconds / 1e9);
        let labels: Vec<&str> = kernels.iter().map(|kernel| kernel.label.as_str()).collect();
        Self {
            name,
            ms: measured.seconds * 1e3,
            spread: measured.spread,
            flops: measured.flops,
            bytes: measured.bytes,
            tflops,
            gbps,
            of_gemm: tflops / ceilings.gemm_tflops,
            of_copy: gbps / ceilings.copy_gbps,
            variant: match labels.len() {
                0..=3 => labels.join(", "),
                n => format!("{} and {} more", labels[..2].join(", "), n - 2),
            },
            encode_ms: (!gpu.caps().cpu).then_some(measured.encode_seconds * 1e3),
            peak_mib: measured.peak_bytes as f64 / f64::from(1 << 20),
            kernels,
        }
    }
}

/// Sums up launches by kernel.
fn kernels(measured: &Measured) -> Vec<Kernel> {
    let mut sums: BTreeMap<&str, Kernel> = BTreeMap::new();
    for launch in &measured.launches {
        let kernel = sums.entry(&launch.label).or_insert_with(|| Kernel {
            label: launch.label.clone(),
            launches: 0,
            ms: Some(0.0),
            flops: 0,
        });
        kernel.launches += 1;
        kernel.ms = kernel.ms.zip(launch.seconds).map(|(ms, seconds)| ms + 1e3 * seconds);
        kernel.flops += launch.flops;
    }
    let mut kernels: Vec<Kernel> = sums.into_values().collect();
    kernels.sort_by(|a, b| b.ms.partial_cmp(&a.ms).unwrap_or(std::cmp::Ordering::Equal));
    kernels
}

/// A whole run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Strata's version.
    pub strata: String,
    /// Where it ran.
    pub device: Device,
    /// Storage type: `f16` or `f32`.
    pub dtype: String,
    /// Height and width of latents.
    pub latent: usize,
    /// What rows are compared with.
    pub ceilings: Ceilings,
    /// One for each thing timed.
    pub rows: Vec<Row>,
}

impl Report {
    /// A run without rows.
    ///
    /// # Errors
    /// Those of [`bodies`].
    pub(crate) fn new(gpu: &Gpu, dtype: DType, latent: usize) -> strata_engine::Result<Self> {
        Ok(Self {
            strata: env!("CARGO_PKG_VERSION").into(),
            device: Device::of(gpu)?,
            dtype: dtype.wgsl().into(),
            latent,
            ceilings: Ceilings::default(),
            rows: Vec::new(),
        })
    }

    /// Where and how, and the ceilings, in two lines.
    pub fn heading(&self) -> String {
        let Device { name, backend, driver, clock, gemm, .. } = &self.device;
        let unit = self.unit();
        format!(
            "{name}, {backend}, {driver}; GEMM variant {gemm}, {}, times by the {clock} clock\n\
             ceilings: GEMM {:.1} {}, copy {:.1} GB/s\n",
            self.dtype,
            self.ceilings.gemm_tflops * unit.1,
            unit.0,
            self.ceilings.copy_gbps,
        )
    }

    /// Name of the unit of rates, and how many of it a TFLOP/s is.
    pub(crate) fn unit(&self) -> (&'static str, f64) {
        if self.ceilings.gemm_tflops < 1.0 { ("GFLOP/s", 1e3) } else { ("TFLOP/s", 1.0) }
    }

    /// The table's first line.
    pub fn columns(&self) -> String {
        let unit = self.unit().0;
        let columns =
            format!("{:>10} {:>5} {unit:>8} {:>8} {:>6} {:>6}", "ms", "± %", "GB/s", "% GEMM", "% copy");
        format!("{:52} {columns}  kernels", "")
    }

    /// One line of the table.
    pub fn line(&self, row: &Row) -> String {
        // what does no products has no rate of them
        let dash = || "-".to_string();
        let (rate, share) = match row.flops {
            0 => (dash(), dash()),
            _ => (format!("{:.1}", row.tflops * self.unit().1), format!("{:.0}", 100.0 * row.of_gemm)),
        };
        let mut line = format!(
            "{:52} {:10.3} {:5.1} {rate:>8} {:8.1} {share:>6} {:6.0}  {}",
            row.name,
            row.ms,
            100.0 * row.spread,
            row.gbps,
            100.0 * row.of_copy,
            row.variant,
        );
        if let Some(encode) = row.encode_ms.filter(|_| row.kernels.len() > 3) {
            let _ = write!(line, "; host {encode:.1} ms");
        }
        if row.kernels.len() > 3 {
            let _ = write!(line, "; peak {:.0} MiB", row.peak_mib);
        }
        line
    }

    /// The kernels of a row, a line each.
    pub fn kernel_lines(&self, row: &Row) -> Vec<String> {
        let (unit, scale) = self.unit();
        let total: f64 = row.kernels.iter().filter_map(|kernel| kernel.ms).sum();
        row.kernels
            .iter()
            .map(|Kernel { label, launches, ms, flops }| match ms {
                Some(ms) => format!(
                    "    {label:48} {launches:5} launches {ms:10.3} ms {:5.1} % {:8.1} {unit}",
                    100.0 * ms / total,
                    *flops as f64 / ms / 1e9 * scale,
                ),
                None => format!("    {label:48} {launches:5} launches"),
            })
            .collect()
    }
}
