//! Times kernels at the shapes of Stable Diffusion 1.5, and whole steps of a U-Net; measures what leaks.
//!
//! Every time is wall clock round a batch of launches and one wait, the median of several batches after a warm-up.

mod leak;
mod ops;
mod unet;

use std::path::PathBuf;

use strata_engine::{DType, Gpu, GpuOptions};
use strata_kernels::gemm_variant;

/// Times kernels, or whole steps of a U-Net; or measures what leaks.
#[derive(clap::Parser)]
struct Args {
    /// GPU adapter: part of its name, or its index
    #[arg(long, global = true)]
    adapter: Option<String>,
    /// Storage type
    #[arg(long, global = true, default_value = "f16", value_parser = ["f16", "f32"])]
    dtype: String,
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Kernels at the shapes of Stable Diffusion 1.5
    Ops {
        /// Only rows whose name contains this
        #[arg(default_value = "")]
        filter: String,
    },
    /// One forward pass and one training step of a U-Net in a folder
    Unet {
        /// Folder with config.json and diffusion_pytorch_model.safetensors
        folder: PathBuf,
        /// Side of the latents
        #[arg(long, default_value_t = 32)]
        latent: usize,
        /// Samples at once
        #[arg(long, default_value_t = 1)]
        batch: usize,
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
    println!("{}, {}, kernels {}, storage {}", caps.name, caps.driver, gemm_variant(&gpu).name(), args.dtype);
    let dtype = if args.dtype == "f16" { DType::F16 } else { DType::F32 };
    match args.what {
        What::Ops { filter } => ops::run(&gpu, dtype, &filter),
        What::Unet { folder, latent, batch, rank } => unet::run(&gpu, dtype, &folder, latent, batch, rank),
        What::Leak { config, steps, ranks, prompts, keep } => {
            leak::run(&gpu, &config, steps, &ranks, prompts.as_deref(), keep.as_deref())
        }
    }
}
