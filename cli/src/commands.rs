//! The commands, and the arguments that several of them have.

pub mod bench;
pub mod dataset;
pub mod demo;
pub mod devices;
pub mod generate;
pub mod info;
mod interrupt;
pub mod layers;
mod lora;
pub mod lora_files;
mod model;
pub mod parity;
mod picture;
pub mod probe;
pub mod train;
mod tuning;

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use strata_engine::{DType, Gpu, GpuOptions};
use strata_model::progress::note;
use strata_model::{MAX_RANK, check_room};

/// Which GPU adapter to use.
#[derive(clap::Args)]
pub struct GpuArgs {
    /// GPU adapter: its index in `strata devices`, or a part of its name [default: the best]
    #[arg(long, value_name = "NAME|INDEX", value_parser = adapter)]
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

/// The largest side of a picture, in pixels: 256 times the area of Stable Diffusion's own.
pub const MAX_SIDE: i64 = 8192;
/// The most steps that a schedule of 1000 timesteps has.
pub const MAX_SAMPLING_STEPS: i64 = 1000;

fn adapter(text: &str) -> Result<String> {
    let how = "give one's index in `strata devices`, or a part of its name";
    ensure!(!text.trim().is_empty(), "names no GPU adapter; {how}");
    let indices: Vec<&str> = text.split(',').map(str::trim).collect();
    let all_numbers = indices.iter().all(|index| index.parse::<usize>().is_ok());
    ensure!(indices.len() == 1 || !all_numbers, "a run has one GPU adapter; {how}");
    Ok(text.to_owned())
}

/// Reads a seed.
pub fn seed(text: &str) -> Result<u64> {
    match text.parse() {
        Ok(seed) => Ok(seed),
        Err(_) => {
            bail!("a seed is a whole number from 0 to {}; the same one gives the same result again", u64::MAX)
        }
    }
}

/// Reads a number format: f32 or f16.
pub fn number_format() -> impl TypedValueParser<Value = DType> {
    PossibleValuesParser::new(["f32", "f16"]).map(|name| if name == "f16" { DType::F16 } else { DType::F32 })
}

/// A number format that was asked for; f16 must be something the GPU adapter can do.
pub fn supported(dtype: DType, gpu: &Gpu) -> Result<DType> {
    let caps = gpu.caps();
    ensure!(
        dtype == DType::F32 || caps.f16,
        "GPU adapter {} has no f16 in shaders; use --dtype f32",
        caps.name
    );
    Ok(dtype)
}

/// Finds out before the work whether a file can be written where an option asks for it.
pub fn check_file(option: &str, path: &Path) -> Result<()> {
    check_room(path, 0).with_context(|| option.to_owned())
}

/// Reads a rank, or says what one is.
pub fn rank(text: &str) -> Result<usize> {
    match text.parse() {
        Ok(rank) if (1..=MAX_RANK).contains(&rank) => Ok(rank),
        _ => bail!("a rank is a whole number from 1 to {MAX_RANK}"),
    }
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
