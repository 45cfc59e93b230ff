//! The U-Net's configuration.

use std::path::Path;

use serde_json::{Value, json};

use super::fields::{Fields, groups, positive};
use crate::Result;

/// What a `UNet2DConditionModel` looks like.
#[derive(Debug, Clone, PartialEq)]
pub struct UnetConfig {
    /// Channels of a latent.
    pub in_channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// Channels of each level, finest first.
    pub block_out_channels: Vec<usize>,
    /// Whether `down_blocks.i` has attention.
    pub down_blocks: Vec<bool>,
    /// Whether `up_blocks.i` has attention; `up_blocks.0` is the coarsest.
    pub up_blocks: Vec<bool>,
    /// Resnets per down block; up blocks have one more.
    pub layers_per_block: usize,
    /// Attention heads of each level, finest first; the mid block uses the last, up blocks read it backwards.
    pub heads: Vec<usize>,
    /// Channels of the text states.
    pub cross_attention_dim: usize,
    /// Groups of the group norms.
    pub norm_num_groups: usize,
    /// Added to the variance in the residual blocks' norms and the last one; the attention's is fixed.
    pub norm_eps: f64,
    /// `proj_in`/`proj_out` are linear layers (SD2) rather than 1×1 convolutions (SD1).
    pub use_linear_projection: bool,
    /// Diffusers' wish for f32 attention scores; here they are f32 always.
    pub upcast_attention: bool,
    /// Whether the cosines of the timestep come before the sines.
    pub flip_sin_to_cos: bool,
    /// How many frequencies of the timestep are left out of the count that spaces them.
    pub freq_shift: f64,
    /// Width and height of the latents the model was trained on.
    pub sample_size: usize,
    /// What of the file was not used, and why: a sentence each.
    pub notes: Vec<String>,
}

impl UnetConfig {
    /// Reads a `UNet2DConditionModel`'s config.json.
    ///
    /// # Errors
    /// Not readable, a setting that is not supported, an unknown setting, or numbers that do not fit together.
    pub fn open(path: &Path) -> Result<Self> {
        let mut f = Fields::open(path)?;
        refuse_other_models(&mut f)?;
        let null = Value::Null;
        for key in [
            "class_embed_type",
            "addition_embed_type",
            "num_class_embeds",
            "encoder_hid_dim",
            "encoder_hid_dim_type",
            "time_cond_proj_dim",
            "time_embedding_act_fn",
            "timestep_post_act",
            "projection_class_embeddings_input_dim",
            "reverse_transformer_layers_per_block",
            "cross_attention_norm",
        ] {
            f.only(key, std::slice::from_ref(&null))?;
        }
        for key in [
            "center_input_sample",
            "only_cross_attention",
            "dual_cross_attention",
            "resnet_skip_time_act",
            "class_embeddings_concat",
            "mid_block_only_cross_attention",
        ] {
            f.only(key, &[json!(false), null.clone()])?;
        }
        for key in [
            "downsample_padding",
            "mid_block_scale_factor",
            "transformer_layers_per_block",
            "resnet_out_scale_factor",
        ] {
            f.only(key, &[json!(1)])?;
        }
        f.only("conv_in_kernel", &[json!(3)])?;
        f.only("conv_out_kernel", &[json!(3)])?;
        f.only("dropout", &[json!(0)])?;
        f.only("act_fn", &[json!("silu"), json!("swish")])?;
        f.only("resnet_time_scale_shift", &[json!("default")])?;
        f.only("time_embedding_type", &[json!("positional")])?;
        f.only("attention_type", &[json!("default")])?;
        f.only("mid_block_type", &[json!("UNetMidBlock2DCrossAttn")])?;
        // These two matter only with an addition_embed_type, which is refused above.
        f.skip(&["addition_embed_type_num_heads", "addition_time_embed_dim"]);

        let block_out_channels = f.counts("block_out_channels", &[320, 640, 1280, 1280])?;
        let levels = block_out_channels.len();
        f.only("time_embedding_dim", &[null, json!(4 * block_out_channels[0])])?;
        let with_attention = |f: &mut Fields, key: &str, attention: &str, plain: &str, default: [bool; 4]| {
            let Some(names) = f.get::<Vec<String>>(key)? else { return Ok(default.to_vec()) };
            let known = names.iter().all(|name| name == attention || name == plain);
            if !known || names.len() != levels {
                let message = format!(
                    "expected one of {attention}, {plain} for each of the {levels} block_out_channels"
                );
                return Err(f.refuse(key, &json!(names), message));
            }
            Ok(names.iter().map(|name| name == attention).collect())
        };
        let down_blocks = with_attention(
            &mut f,
            "down_block_types",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
            [true, true, true, false],
        )?;
        let up_blocks = with_attention(
            &mut f,
            "up_block_types",
            "CrossAttnUpBlock2D",
            "UpBlock2D",
            [false, true, true, true],
        )?;
        if down_blocks.len() != levels || up_blocks.len() != levels {
            return Err(f.refuse(
                "block_out_channels",
                &json!(block_out_channels),
                "without lists of block types there must be 4",
            ));
        }

        // Diffusers' oldest mistake, kept for its files' sake: `attention_head_dim` is the number of heads.
        let heads_key = if f.map.get("num_attention_heads").is_some_and(|v| !v.is_null()) {
            "num_attention_heads"
        } else {
            "attention_head_dim"
        };
        f.uniform(heads_key);
        let heads = match f.map.get(heads_key) {
            Some(Value::Array(_)) => f.counts(heads_key, &[])?,
            _ => vec![f.count(heads_key, 8)?; levels],
        };
        f.skip(&["attention_head_dim", "num_attention_heads"]);
        if heads.len() != levels || heads.iter().zip(&block_out_channels).any(|(h, c)| c % h != 0) {
            return Err(f.refuse(
                heads_key,
                &json!(heads),
                format!("must divide the channels {block_out_channels:?}, level by level"),
            ));
        }
        for key in ["layers_per_block", "cross_attention_dim", "sample_size"] {
            f.uniform(key);
        }
        let config = Self {
            in_channels: f.count("in_channels", 4)?,
            out_channels: f.count("out_channels", 4)?,
            layers_per_block: f.count("layers_per_block", 2)?,
            cross_attention_dim: f.count("cross_attention_dim", 1280)?,
            norm_num_groups: groups(&mut f, &block_out_channels)?,
            norm_eps: positive(&mut f, "norm_eps", 1e-5)?,
            use_linear_projection: f.or("use_linear_projection", false)?,
            upcast_attention: f.or("upcast_attention", false)?,
            flip_sin_to_cos: f.or("flip_sin_to_cos", true)?,
            freq_shift: f.or("freq_shift", 0.0)?,
            sample_size: f.count("sample_size", 64)?,
            block_out_channels,
            down_blocks,
            up_blocks,
            heads,
            notes: f.finish()?,
        };
        Ok(config)
    }

    /// Stable Diffusion 1.5's.
    pub fn sd15() -> Self {
        Self {
            in_channels: 4,
            out_channels: 4,
            block_out_channels: vec![320, 640, 1280, 1280],
            down_blocks: vec![true, true, true, false],
            up_blocks: vec![false, true, true, true],
            heads: vec![8; 4],
            layers_per_block: 2,
            cross_attention_dim: 768,
            norm_num_groups: 32,
            norm_eps: 1e-5,
            use_linear_projection: false,
            upcast_attention: false,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            sample_size: 64,
            notes: Vec::new(),
        }
    }

    /// Stable Diffusion 2's.
    pub fn sd2() -> Self {
        Self {
            heads: vec![5, 10, 20, 20],
            cross_attention_dim: 1024,
            use_linear_projection: true,
            ..Self::sd15()
        }
    }

    /// Width of the time embedding after its two linear layers.
    pub fn time_embed_dim(&self) -> usize {
        4 * self.block_out_channels[0]
    }
}

/// Names models that are not Stable Diffusion from text to image, before a setting of theirs is refused that says less.
fn refuse_other_models(f: &mut Fields) -> Result<()> {
    const ADVICE: &str =
        "only models of Stable Diffusion 1.x and 2.x from text to picture are supported: take one of those";
    let class = f.class();
    if !matches!(class, "" | "UNet2DConditionModel") {
        return Err(f.refuse("_class_name", &json!(class), format!("not a UNet2DConditionModel; {ADVICE}")));
    }
    if let Some(kind @ Value::String(_)) = f.map.get("addition_embed_type") {
        let message = format!("as in Stable Diffusion XL, which is not supported; {ADVICE}");
        return Err(f.refuse("addition_embed_type", kind, message));
    }
    let channels = |key: &str| f.map.get(key).map_or(Some(4), Value::as_u64);
    let (Some(inward), Some(outward)) = (channels("in_channels"), channels("out_channels")) else {
        return Ok(());
    };
    match other_kind(inward, outward) {
        None => Ok(()),
        Some(kind) => {
            let message = format!("with out_channels {outward} that is {kind}");
            Err(f.refuse("in_channels", &json!(inward), message))
        }
    }
}

/// What a U-Net is that does not predict from noisy latents alone, and what to take instead.
pub(crate) fn other_kind(inward: u64, outward: u64) -> Option<String> {
    let kind = match (inward, outward) {
        (inward, outward) if inward == outward => return None,
        (9, 4) => "an inpainting model, which also reads a mask and the masked picture",
        (8, 4) => "an InstructPix2Pix model, which also reads the picture to be changed",
        (7, 4) => "an upscaler, which also reads the small picture",
        (5, 4) => "a depth model, which also reads a depth map",
        _ => "a model that also reads something else",
    };
    Some(format!(
        "{kind}; train on the model from text to picture that it was made from, whose LoRAs fit it as well"
    ))
}
