//! Measures what leaks, with each means against it, and whether training at full size is sound. `strata bench` measures times.

mod leak;
mod sound;

use std::path::PathBuf;

use strata_engine::{Gpu, GpuOptions};
use strata_kernels::bodies;

/// Measures what leaks, and whether training is sound.
#[derive(clap::Parser)]
struct Args {
    /// GPU adapter: part of its name, or its index
    #[arg(long, global = true)]
    adapter: Option<String>,
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Whether training in f16 is sound on a U-Net of Stable Diffusion 1.5's size
    Sound {
        /// Updates
        #[arg(long, default_value_t = 200)]
        steps: u64,
        /// Height and width of the latents
        #[arg(long, default_value_t = 32)]
        latent: usize,
        /// Rank of the LoRA on all attention layers
        #[arg(long, default_value_t = 8)]
        rank: usize,
    },
    /// The features of a config, trained with each means against leaking, and probed
    Leak {
        /// The config, a TOML file
        config: PathBuf,
        /// Updates of each feature, instead of the config's
        #[arg(long)]
        steps: Option<u64>,
        /// Only silence, at these ranks, beside the plain LoRA
        #[arg(long, value_delimiter = ',')]
        ranks: Vec<usize>,
        /// Prompts to probe with, one a line; {} stands for the tag
        #[arg(long)]
        prompts: Option<PathBuf>,
        /// Leave the LoRAs, leak.json and inputs.safetensors in this folder
        #[arg(long, value_name = "FOLDER")]
        keep: Option<PathBuf>,
    },
}

fn main() -> anyhow::Result<()> {
    let args: Args = clap::Parser::parse();
    let gpu = Gpu::open(&GpuOptions { adapter: args.adapter, ..Default::default() })?;
    let caps = gpu.caps();
    println!("{}, {}, kernels {}", caps.name, caps.driver, bodies(&gpu)?.name());
    match args.what {
        What::Sound { steps, latent, rank } => sound::run(&gpu, steps, latent, rank),
        What::Leak { config, steps, ranks, prompts, keep } => {
            leak::run(&gpu, &config, steps, &ranks, prompts.as_deref(), keep.as_deref())
        }
    }
}
