//! Writes a U-Net of Stable Diffusion 1.5's size with random weights in f16, for benchmarks and smoke tests.
//!
//!     cargo run --release -p strata-model --example random_unet -- FOLDER [--tiny] [--seed N]
//!
//! FOLDER/unet then holds config.json and diffusion_pytorch_model.safetensors (1.7 GB; 1.4 MB with --tiny). Weights
//! are scaled by their fan-in, so that activations stay within f16; one seed always gives the same file.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use half::f16;
use safetensors::Dtype;
use strata_model::{Result, UnetConfig, header, random_weights, unet_tensors, write_atomic};

const CONFIG: &str = r#"{
  "_class_name": "UNet2DConditionModel",
  "act_fn": "silu",
  "attention_head_dim": HEADS,
  "block_out_channels": CHANNELS,
  "center_input_sample": false,
  "cross_attention_dim": CONTEXT,
  "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
  "downsample_padding": 1,
  "flip_sin_to_cos": true,
  "freq_shift": 0,
  "in_channels": 4,
  "layers_per_block": 2,
  "mid_block_scale_factor": 1,
  "norm_eps": 1e-05,
  "norm_num_groups": GROUPS,
  "out_channels": 4,
  "sample_size": 64,
  "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]
}
"#;

fn main() -> std::process::ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (mut folder, mut tiny, mut seed) = (None, false, Some(0));
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--tiny" => tiny = true,
            "--seed" => seed = arguments.next().and_then(|n| n.parse().ok()),
            _ => folder = Some(PathBuf::from(argument)),
        }
    }
    let (Some(folder), Some(seed)) = (folder, seed) else {
        eprintln!("usage: random_unet FOLDER [--tiny] [--seed N]");
        return 2.into();
    };
    match write(&folder.join("unet"), tiny, seed) {
        Ok(()) => 0.into(),
        Err(error) => {
            eprintln!("{error}");
            1.into()
        }
    }
}

fn write(folder: &Path, tiny: bool, seed: u64) -> Result<()> {
    let values = match tiny {
        false => {
            [("HEADS", "8"), ("CHANNELS", "[320, 640, 1280, 1280]"), ("CONTEXT", "768"), ("GROUPS", "32")]
        }
        true => [("HEADS", "2"), ("CHANNELS", "[16, 24, 32, 32]"), ("CONTEXT", "32"), ("GROUPS", "8")],
    };
    let json = values.iter().fold(CONFIG.to_string(), |json, (key, value)| json.replace(key, value));
    std::fs::create_dir_all(folder).map_err(strata_model::Error::io("make", folder))?;
    let config = folder.join("config.json");
    write_atomic(&config, |out| out.write_all(json.as_bytes()))?;

    // by name, as the header wants them
    let tensors = unet_tensors(&UnetConfig::open(&config)?)?;
    let tensors: BTreeMap<&str, _> = tensors.iter().map(|t| (t.names[0].as_str(), t)).collect();
    write_atomic(&folder.join("diffusion_pytorch_model.safetensors"), |out| {
        let shapes = tensors.iter().map(|(name, info)| (*name, info.shapes[0].clone()));
        out.write_all(&header(Dtype::F16, shapes, &BTreeMap::new())?)?;
        let mut out = BufWriter::with_capacity(1 << 20, out);
        for value in tensors.values().flat_map(|info| random_weights(info, seed)) {
            out.write_all(&f16::from_f32(value).to_le_bytes())?;
        }
        out.flush()
    })
}
