//! Between pictures and latents: diffusers' `AutoencoderKL`.

use strata_engine::{DType, Gpu, Tensor};
use strata_kernels::{Act, AttentionArgs, Padding, Weight, attention, split, upsample_nearest};

use crate::build::{Builder, Plan, load, load_random};
use crate::config::VaeConfig;
use crate::layers::{Conv2d, GroupNorm, Linear};
use crate::resnet::{Resnet, ResnetArgs};
use crate::weights::Weights;
use crate::{Cx, Error, Result};

/// Of all norms; it is no setting.
const NORM_EPS: f64 = 1e-6;
/// Where diffusers cuts log variances off.
const LOGVAR: [f32; 2] = [-30.0, 20.0];

/// Turns pictures into latents and back; frozen.
pub struct Vae<W = Weight> {
    config: VaeConfig,
    compute: DType,
    encoder: Coder<W>,
    quant_conv: Option<Linear<W>>,
    post_quant_conv: Option<Linear<W>>,
    decoder: Coder<W>,
}

/// The encoder: conv_in, blocks, mid, out. Or the decoder: conv_in, mid, blocks, out.
struct Coder<W> {
    path: &'static str,
    conv_in: Conv2d<W>,
    blocks: Vec<Block<W>>,
    mid: Mid<W>,
    conv_norm_out: GroupNorm<W>,
    conv_out: Conv2d<W>,
}

/// Residual blocks, then half or twice the height and width, but for the last.
struct Block<W> {
    path: String,
    resnets: Vec<Resnet<W>>,
    sampler: Option<Conv2d<W>>,
}

struct Mid<W> {
    resnet_0: Resnet<W>,
    attention: Option<Attention<W>>,
    resnet_1: Resnet<W>,
}

/// x + to_out(softmax(q kᵀ / √C) v), q, k and v of group_norm(x): a single head over all places.
struct Attention<W> {
    path: String,
    group_norm: GroupNorm<W>,
    to_q: Linear<W>,
    to_k: Linear<W>,
    to_v: Linear<W>,
    to_out: Linear<W>,
}

impl Plan for VaeConfig {
    type Model<W> = Vae<W>;

    fn build<W>(&self, b: &mut Builder<'_, W>) -> Result<Vae<W>> {
        let latent = self.latent_channels;
        let pointwise = |b: &mut Builder<'_, W>, used: bool, path: &str, channels| match used {
            true => Linear::build_conv(b, path.into(), channels, channels).map(Some),
            false => Ok(None),
        };
        Ok(Vae {
            config: self.clone(),
            compute: b.compute(),
            encoder: Coder::encoder(b, self)?,
            quant_conv: pointwise(b, self.use_quant_conv, "quant_conv", 2 * latent)?,
            post_quant_conv: pointwise(b, self.use_post_quant_conv, "post_quant_conv", latent)?,
            decoder: Coder::decoder(b, self)?,
        })
    }
}

impl<W> Coder<W> {
    fn encoder(b: &mut Builder<'_, W>, config: &VaeConfig) -> Result<Self> {
        let channels = &config.block_out_channels;
        let ends = [config.in_channels, 2 * config.latent_channels];
        let blocks = Block::build_all(b, "encoder.down", channels, config.layers_per_block, config)?;
        Self::build(b, "encoder", blocks, [channels[0], channels[channels.len() - 1]], ends, config)
    }

    fn decoder(b: &mut Builder<'_, W>, config: &VaeConfig) -> Result<Self> {
        let channels: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let ends = [config.latent_channels, config.out_channels];
        let blocks = Block::build_all(b, "decoder.up", &channels, config.layers_per_block + 1, config)?;
        Self::build(b, "decoder", blocks, [channels[0], channels[channels.len() - 1]], ends, config)
    }

    /// `channels` at the first and last block, `ends` at the input and the output. The mid block lies at the coarser
    /// end of the blocks: last in the encoder, first in the decoder.
    fn build(
        b: &mut Builder<'_, W>,
        path: &'static str,
        blocks: Vec<Block<W>>,
        channels: [usize; 2],
        ends: [usize; 2],
        config: &VaeConfig,
    ) -> Result<Self> {
        let coarsest = config.block_out_channels[config.block_out_channels.len() - 1];
        let at = |name: &str| format!("{path}.{name}");
        Ok(Self {
            conv_in: Conv2d::build(b, at("conv_in"), ends[0], channels[0])?,
            blocks,
            mid: Mid::build(b, &at("mid_block"), coarsest, config)?,
            conv_norm_out: GroupNorm::build(
                b,
                at("conv_norm_out"),
                channels[1],
                config.norm_num_groups,
                NORM_EPS,
            )?,
            conv_out: Conv2d::build(b, at("conv_out"), channels[1], ends[1])?,
            path,
        })
    }
}

impl Coder<Weight> {
    fn forward(&self, cx: &Cx<'_>, x: &Tensor) -> Result<Tensor> {
        let dtype = x.dtype();
        let mut x = self.conv_in.forward(cx, x, dtype)?;
        cx.tap(&self.conv_in.path, &x);
        let mid = |x: &Tensor| -> Result<Tensor> {
            let x = self.mid.forward(cx, x)?;
            cx.tap_at(self.path, "mid_block", &x);
            Ok(x)
        };
        if self.path == "decoder" {
            x = mid(&x)?;
        }
        for block in &self.blocks {
            x = block.forward(cx, &x)?;
        }
        if self.path == "encoder" {
            x = mid(&x)?;
        }
        let x = self.conv_norm_out.forward_silu(cx, &x, None, dtype)?;
        let x = self.conv_out.forward(cx, &x, dtype)?;
        cx.tap(&self.conv_out.path, &x);
        Ok(x)
    }
}

fn resnet<W>(
    b: &mut Builder<'_, W>,
    path: String,
    inputs: usize,
    outputs: usize,
    config: &VaeConfig,
) -> Result<Resnet<W>> {
    let args = ResnetArgs { temb: None, groups: config.norm_num_groups, eps: NORM_EPS };
    Resnet::build(b, path, inputs, outputs, args)
}

impl<W> Block<W> {
    /// `side` is `encoder.down` or `decoder.up`; a block for each of `channels`.
    fn build_all(
        b: &mut Builder<'_, W>,
        side: &str,
        channels: &[usize],
        resnets: usize,
        config: &VaeConfig,
    ) -> Result<Vec<Self>> {
        let sampler = side.split('.').next_back().unwrap_or(side);
        let mut blocks = Vec::new();
        for (i, &outputs) in channels.iter().enumerate() {
            let path = format!("{side}_blocks.{i}");
            let first = channels[i.saturating_sub(1)];
            let inputs = |j| if j == 0 { first } else { outputs };
            let resnets =
                (0..resnets).map(|j| resnet(b, format!("{path}.resnets.{j}"), inputs(j), outputs, config));
            let resnets = resnets.collect::<Result<_>>()?;
            let sampler = match i + 1 < channels.len() {
                true => Some(Conv2d::build(b, format!("{path}.{sampler}samplers.0.conv"), outputs, outputs)?),
                false => None,
            };
            blocks.push(Self { path, resnets, sampler });
        }
        Ok(blocks)
    }
}

impl Block<Weight> {
    fn forward(&self, cx: &Cx<'_>, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for resnet in &self.resnets {
            x = resnet.forward(cx, &x, None)?;
        }
        if let Some(conv) = &self.sampler {
            let up = self.path.starts_with("decoder");
            x = match up {
                true => {
                    let (height, width) = (x.shape()[1], x.shape()[2]);
                    conv.forward(cx, &upsample_nearest(cx.tape, &x, 2 * height, 2 * width)?, x.dtype())?
                }
                false => conv.halve(cx, &x, Padding::BottomRight)?,
            };
            cx.tap_at(&self.path, if up { "upsamplers.0" } else { "downsamplers.0" }, &x);
        }
        cx.tap(&self.path, &x);
        Ok(x)
    }
}

impl<W> Mid<W> {
    fn build(b: &mut Builder<'_, W>, path: &str, channels: usize, config: &VaeConfig) -> Result<Self> {
        let attention = match config.mid_block_add_attention {
            true => Some(Attention::build(b, format!("{path}.attentions.0"), channels, config)?),
            false => None,
        };
        Ok(Self {
            resnet_0: resnet(b, format!("{path}.resnets.0"), channels, channels, config)?,
            attention,
            resnet_1: resnet(b, format!("{path}.resnets.1"), channels, channels, config)?,
        })
    }
}

impl Mid<Weight> {
    fn forward(&self, cx: &Cx<'_>, x: &Tensor) -> Result<Tensor> {
        let mut x = self.resnet_0.forward(cx, x, None)?;
        if let Some(attention) = &self.attention {
            x = attention.forward(cx, &x)?;
        }
        self.resnet_1.forward(cx, &x, None)
    }
}

impl<W> Attention<W> {
    /// Older files have other names, and some have 1×1 convolutions.
    fn build(b: &mut Builder<'_, W>, path: String, channels: usize, config: &VaeConfig) -> Result<Self> {
        Ok(Self {
            group_norm: GroupNorm::build(
                b,
                format!("{path}.group_norm"),
                channels,
                config.norm_num_groups,
                NORM_EPS,
            )?,
            to_q: Linear::build_any(b, &path, &["to_q", "query"], channels)?,
            to_k: Linear::build_any(b, &path, &["to_k", "key"], channels)?,
            to_v: Linear::build_any(b, &path, &["to_v", "value"], channels)?,
            to_out: Linear::build_any(b, &path, &["to_out.0", "proj_attn"], channels)?,
            path,
        })
    }
}

impl Attention<Weight> {
    fn forward(&self, cx: &Cx<'_>, x: &Tensor) -> Result<Tensor> {
        let n = self.group_norm.forward(cx, x, x.dtype())?;
        let tokens = n.reshape(&[x.shape()[0], x.shape()[1] * x.shape()[2], x.last()])?;
        let (q, k, v) = (
            self.to_q.forward(cx, &tokens)?,
            self.to_k.forward(cx, &tokens)?,
            self.to_v.forward(cx, &tokens)?,
        );
        let a =
            attention(cx.tape, &q, &k, &v, &AttentionArgs { heads: 1, causal: false })?.reshape(x.shape())?;
        let y = self.to_out.forward_with(cx, &a, Act::None, Some(x))?;
        cx.tap(&self.path, &y);
        Ok(y)
    }
}

impl Vae {
    /// Of a configuration and its weights.
    ///
    /// # Errors
    /// The weights do not fit, or the GPU is out of memory.
    pub(crate) fn load(gpu: &Gpu, config: &VaeConfig, weights: Weights, dtype: DType) -> Result<Self> {
        load(config, weights, gpu, dtype)
    }

    /// One of random weights, see [`random_weights`](crate::random_weights).
    ///
    /// # Errors
    /// The GPU is out of memory.
    pub fn random(gpu: &Gpu, config: &VaeConfig, dtype: DType, seed: u64) -> Result<Self> {
        load_random(config, gpu, dtype, seed)
    }

    /// What the model looks like.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    pub(crate) fn dtype(&self) -> DType {
        self.compute
    }

    /// The normal distributions of the latents of pictures [B, H, W, 3] with values from −1 to 1: their mean and the
    /// logarithm of their variance, each [B, h, w, latent channels]. A latent is (mean + exp(logvar / 2) · n) ·
    /// scaling factor. Waits for the GPU.
    ///
    /// # Errors
    /// Height or width is no multiple of [`VaeConfig::downscale`], or the GPU fails.
    pub fn encode(&self, cx: &Cx<'_>, image: &Tensor) -> Result<(Tensor, Tensor)> {
        let (scale, channels) = (self.config.downscale(), self.config.in_channels);
        let fits = |side: usize| side > 0 && side.is_multiple_of(scale);
        if !matches!(image.shape(), &[b, h, w, c] if b > 0 && fits(h) && fits(w) && c == channels) {
            let message = format!(
                "VAE: got pictures {:?}; it needs [B, H, W, {channels}], H and W multiples of {scale}",
                image.shape()
            );
            return Err(Error::Input(message));
        }
        let mut moments = self.encoder.forward(cx, image)?;
        if let Some(layer) = &self.quant_conv {
            moments = layer.forward(cx, &moments)?;
            cx.tap(&layer.path, &moments);
        }
        let (mean, logvar) = split(cx.tape, &moments, self.config.latent_channels)?;
        let clamped: Vec<f32> = logvar.to_f32()?.iter().map(|v| v.clamp(LOGVAR[0], LOGVAR[1])).collect();
        let logvar = Tensor::from_f32(image.gpu(), &clamped, logvar.shape(), logvar.dtype())?;
        Ok((mean, logvar))
    }

    /// The pictures [B, H, W, 3] of latents [B, h, w, latent channels] that are already divided by the scaling factor:
    /// values from −1 to 1, and a little beyond.
    ///
    /// # Errors
    /// The shape does not fit, or the GPU fails.
    pub fn decode(&self, cx: &Cx<'_>, latent: &Tensor) -> Result<Tensor> {
        let channels = self.config.latent_channels;
        if !matches!(latent.shape(), &[b, h, w, c] if b * h * w > 0 && c == channels) {
            let message = format!("VAE: got latents {:?}; it needs [B, H, W, {channels}]", latent.shape());
            return Err(Error::Input(message));
        }
        match &self.post_quant_conv {
            None => self.decoder.forward(cx, latent),
            Some(layer) => {
                let x = layer.forward(cx, latent)?;
                cx.tap(&layer.path, &x);
                self.decoder.forward(cx, &x)
            }
        }
    }
}
