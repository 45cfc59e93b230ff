//! The commands, and the arguments that several of them have.

mod batch;
pub mod bench;
pub mod dataset;
pub mod demo;
pub mod devices;
pub mod generate;
pub mod layers;
mod lora;
pub mod parity;
pub mod probe;
pub mod train;
mod tuning;

use std::io::{self, Write};

use anyhow::{Result, ensure};
use strata_engine::{DType, Gpu, GpuOptions};

/// Which GPU adapter to use.
#[derive(clap::Args)]
pub struct GpuArgs {
    /// GPU adapter: its index in `strata devices`, or a part of its name [default: the best]
    #[arg(long, value_name = "NAME|INDEX")]
    adapter: Option<String>,
}

impl GpuArgs {
    /// Opens it, tuned as it was last.
    pub fn open(&self) -> Result<Gpu> {
        let gpu = Gpu::open(&GpuOptions { adapter: self.adapter.clone(), ..GpuOptions::default() })?;
        tuning::apply(&gpu)?;
        Ok(gpu)
    }
}

/// A number format, as an argument.
#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
pub enum Dtype {
    /// 32 bits
    F32,
    /// 16 bits
    F16,
}

impl Dtype {
    /// The storage type; f16 must be something the GPU adapter can do.
    pub fn on(self, gpu: &Gpu) -> Result<DType> {
        let caps = gpu.caps();
        ensure!(
            self == Dtype::F32 || caps.f16,
            "GPU adapter {} has no f16 in shaders; use --dtype f32",
            caps.name
        );
        Ok(if self == Dtype::F16 { DType::F16 } else { DType::F32 })
    }
}

impl From<Dtype> for DType {
    fn from(dtype: Dtype) -> DType {
        match dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
        }
    }
}

/// Says something worth knowing that is no error.
pub fn note(text: &str) {
    // nobody may be listening
    let _ = writeln!(io::stderr(), "note: {text}");
}

/// `1234567` as `1,234,567`.
pub fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn digits_in_threes() {
        let cases = [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")];
        cases.into_iter().for_each(|(n, text)| assert_eq!(super::thousands(n), text));
    }
}
