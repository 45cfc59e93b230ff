//! The VAE's configuration.

use std::path::Path;

use serde_json::{Value, json};

use super::fields::{Fields, groups, positive};
use crate::Result;

/// What an `AutoencoderKL` looks like.
#[derive(Debug, Clone, PartialEq)]
pub struct VaeConfig {
    /// Channels of a picture.
    pub in_channels: usize,
    /// Channels of a decoded picture.
    pub out_channels: usize,
    /// Channels of a latent.
    pub latent_channels: usize,
    /// Channels of each level, finest first.
    pub block_out_channels: Vec<usize>,
    /// Resnets per encoder block; decoder blocks have one more.
    pub layers_per_block: usize,
    /// Groups of the group norms.
    pub norm_num_groups: usize,
    /// Latents are multiplied by this after encoding and divided before decoding.
    pub scaling_factor: f64,
    /// Whether a 1×1 convolution follows the encoder.
    pub use_quant_conv: bool,
    /// Whether a 1×1 convolution precedes the decoder.
    pub use_post_quant_conv: bool,
    /// Whether the mid blocks have attention.
    pub mid_block_add_attention: bool,
    /// What of the file was not used, and why: a sentence each.
    pub notes: Vec<String>,
}

impl VaeConfig {
    /// Reads an `AutoencoderKL`'s config.json.
    ///
    /// # Errors
    /// Those of [`UnetConfig::open`](super::UnetConfig::open).
    pub fn open(path: &Path) -> Result<Self> {
        let mut f = Fields::open(path)?;
        refuse_other_autoencoders(&f)?;
        f.only("act_fn", &[json!("silu"), json!("swish")])?;
        f.only("down_block_types", &[json!("DownEncoderBlock2D")])?;
        f.only("up_block_types", &[json!("UpDecoderBlock2D")])?;
        f.only("latents_mean", &[Value::Null])?;
        f.only("latents_std", &[Value::Null])?;
        f.only("shift_factor", &[Value::Null, json!(0)])?;
        // force_upcast asks for f32 where f16 overflows; sample_size is a hint for tiling.
        f.skip(&["force_upcast", "sample_size"]);
        let block_out_channels = f.counts("block_out_channels", &[64])?;
        let config = Self {
            in_channels: f.count("in_channels", 3)?,
            out_channels: f.count("out_channels", 3)?,
            latent_channels: f.count("latent_channels", 4)?,
            layers_per_block: f.count("layers_per_block", 1)?,
            norm_num_groups: groups(&mut f, &block_out_channels)?,
            scaling_factor: positive(&mut f, "scaling_factor", 0.18215)?,
            use_quant_conv: f.or("use_quant_conv", true)?,
            use_post_quant_conv: f.or("use_post_quant_conv", true)?,
            mid_block_add_attention: f.or("mid_block_add_attention", true)?,
            block_out_channels,
            notes: f.finish()?,
        };
        Ok(config)
    }

    /// Stable Diffusion 1.5's.
    pub fn sd15() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 4,
            block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            norm_num_groups: 32,
            scaling_factor: 0.18215,
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
            notes: Vec::new(),
        }
    }

    /// How many image pixels a latent pixel spans, per side.
    pub fn downscale(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }
}

/// Names autoencoders whose latents are not those that Stable Diffusion's U-Net was trained on.
fn refuse_other_autoencoders(f: &Fields) -> Result<()> {
    const ADVICE: &str = "use the VAE that came with the model, an AutoencoderKL";
    let class = f.class();
    let what = match class {
        _ if class == "VQModel" || f.map.contains_key("num_vq_embeddings") => {
            "a VQ model, whose latents are of a codebook"
        }
        _ if class == "AutoencoderTiny" || f.map.contains_key("decoder_block_out_channels") => {
            "a tiny autoencoder, made for previews"
        }
        "" | "AutoencoderKL" => return Ok(()),
        _ => "an autoencoder that is not supported",
    };
    Err(f.refuse("_class_name", &json!(class), format!("{what}; {ADVICE}")))
}
