//! The U-Net of Stable Diffusion 1.x and 2.x: diffusers' `UNet2DConditionModel`.

mod blocks;
mod transformer;

use strata_engine::{DType, Gpu, Tensor};
use strata_kernels::{Act, Weight, activation, timestep_embedding};

use crate::build::{Builder, Plan, WeightInfo, load, load_random, sketch, turned};
use crate::config::UnetConfig;
use crate::layers::{Conv2d, GroupNorm, Layer, LayerInfo, Linear};
use crate::lora::LoraSet;
use crate::weights::Weights;
use crate::{Conditioning, Cx, Error, Result};
use blocks::{Conditions, DownBlock, MidBlock, UpBlock};

/// Predicts noise: frozen, with places to attach LoRA.
pub struct Unet<W = Weight> {
    config: UnetConfig,
    compute: DType,
    layers: Vec<LayerInfo>,
    /// What each of them multiplies with, on the GPU.
    matrices: Vec<W>,
    features: usize,
    checkpointing: bool,
    conv_in: Conv2d<W>,
    linear_1: Linear<W>,
    linear_2: Linear<W>,
    down_blocks: Vec<DownBlock<W>>,
    mid_block: MidBlock<W>,
    up_blocks: Vec<UpBlock<W>>,
    conv_norm_out: GroupNorm<W>,
    conv_out: Conv2d<W>,
}

/// What the U-Net is given.
#[derive(Debug, Clone, Copy)]
pub struct UnetInput<'a> {
    /// Noisy latents [B, H, W, in_channels]; any H and W will do, and f32 whatever the weights are.
    pub sample: &'a Tensor,
    /// One for each of them.
    pub timesteps: &'a [f32],
    /// What the picture is of: text states [B, T, cross_attention_dim].
    pub conditioning: &'a Conditioning,
}

/// The layers of a U-Net that looks like this: no GPU and no weights needed.
///
/// # Errors
/// The configuration cannot be built.
pub fn layers_of(config: &UnetConfig) -> Result<Vec<LayerInfo>> {
    Ok(sketch(config)?.0.list_layers())
}

/// Every tensor that the weights file of such a U-Net holds.
///
/// # Errors
/// The configuration cannot be built.
pub fn unet_tensors(config: &UnetConfig) -> Result<Vec<WeightInfo>> {
    Ok(sketch(config)?.1)
}

impl Plan for UnetConfig {
    type Model<W> = Unet<W>;

    fn build<W>(&self, b: &mut Builder<'_, W>) -> Result<Unet<W>> {
        let (channels, temb) = (&self.block_out_channels, self.time_embed_dim());
        let levels = 0..channels.len();
        Ok(Unet {
            config: self.clone(),
            compute: b.compute(),
            layers: Vec::new(),
            matrices: Vec::new(),
            features: 0,
            checkpointing: false,
            conv_in: Conv2d::build(b, "conv_in".into(), self.in_channels, channels[0])?,
            linear_1: Linear::build(b, "time_embedding.linear_1".into(), channels[0], temb, true)?,
            linear_2: Linear::build(b, "time_embedding.linear_2".into(), temb, temb, true)?,
            down_blocks: levels
                .clone()
                .map(|level| DownBlock::build(b, level, self))
                .collect::<Result<_>>()?,
            mid_block: MidBlock::build(b, self)?,
            up_blocks: levels.map(|i| UpBlock::build(b, i, self)).collect::<Result<_>>()?,
            conv_norm_out: GroupNorm::build(
                b,
                "conv_norm_out".into(),
                channels[0],
                self.norm_num_groups,
                self.norm_eps,
            )?,
            conv_out: Conv2d::build(b, "conv_out".into(), channels[0], self.out_channels)?,
        })
    }
}

impl<W> Unet<W> {
    /// Calls `f` for every linear layer and convolution, in the order in which the data passes them.
    pub fn visit_layers(&mut self, f: &mut dyn FnMut(Layer<'_, W>)) {
        f(Layer::Conv(&mut self.conv_in));
        f(Layer::Linear(&mut self.linear_1));
        f(Layer::Linear(&mut self.linear_2));
        self.down_blocks.iter_mut().for_each(|block| block.visit(f));
        self.mid_block.visit(f);
        self.up_blocks.iter_mut().for_each(|block| block.visit(f));
        f(Layer::Conv(&mut self.conv_out));
    }

    fn list_layers(&mut self) -> Vec<LayerInfo> {
        let mut layers = Vec::new();
        self.visit_layers(&mut |layer| layers.push(layer.info()));
        layers
    }
}

impl Unet {
    /// Of a configuration and its weights.
    ///
    /// # Errors
    /// The weights do not fit, or the GPU is out of memory.
    pub(crate) fn load(gpu: &Gpu, config: &UnetConfig, weights: Weights, dtype: DType) -> Result<Self> {
        Ok(load(config, weights, gpu, dtype)?.listed())
    }

    /// One of random weights, see [`random_weights`](crate::random_weights).
    ///
    /// # Errors
    /// The GPU is out of memory.
    pub fn random(gpu: &Gpu, config: &UnetConfig, dtype: DType, seed: u64) -> Result<Self> {
        Ok(load_random(config, gpu, dtype, seed)?.listed())
    }

    fn listed(mut self) -> Self {
        self.layers = self.list_layers();
        let mut matrices = Vec::new();
        self.visit_layers(&mut |layer| {
            matrices.push(match layer {
                Layer::Linear(layer) => layer.w.clone(),
                Layer::Conv(layer) => layer.w.clone(),
            });
        });
        self.matrices = matrices;
        self
    }

    /// What the model looks like.
    pub fn config(&self) -> &UnetConfig {
        &self.config
    }

    /// Every linear layer and convolution, in the order in which the data passes them.
    pub fn layers(&self) -> &[LayerInfo] {
        &self.layers
    }

    /// The matrix or kernel of a layer, as files have it. Waits for the GPU.
    ///
    /// # Errors
    /// There is no such layer, or the GPU fails.
    pub(crate) fn matrix(&self, path: &str) -> Result<Vec<f32>> {
        let found = self.layers.iter().zip(&self.matrices).find(|(layer, _)| layer.path == path);
        let Some((layer, weight)) = found else {
            return Err(Error::Lora(format!("this U-Net has no layer {path}")));
        };
        let values = weight.data().to_f32()?;
        Ok(match layer.side() {
            1 => values,
            side => turned(&values, [side * side, layer.inputs]),
        })
    }

    /// How many LoRA sets are attached.
    pub fn features(&self) -> usize {
        self.features
    }

    /// Puts the LoRAs of a set on their layers. Returns the set's number, which is the place of its gate in
    /// [`Cx::gates`]. The layers share the set's memory: what training changes there is seen at once.
    ///
    /// # Errors
    /// A LoRA is for a layer that this U-Net does not have, or of another size or dtype; then none is attached.
    pub fn attach(&mut self, set: &LoraSet) -> Result<usize> {
        let (own, other) = (self.compute, set.dtype());
        if own != other {
            return Err(Error::Lora(format!(
                "a LoRA set made for {other:?} cannot be attached to a U-Net of {own:?}"
            )));
        }
        for entry in set.entries() {
            let Some(layer) = self.layers.iter().find(|layer| layer.path == entry.path) else {
                let message = format!("this U-Net has no layer {}", entry.path);
                return Err(Error::Lora(format!("{message}; the LoRA was made for another model")));
            };
            let size = |[inputs, outputs, side]: [usize; 3]| {
                format!("{inputs} to {outputs} channels with a kernel of {side}×{side}")
            };
            let (own, its) = ([layer.inputs, layer.outputs, layer.side()], entry.size());
            if own != its {
                let message = format!("{} maps {}, but its LoRA {}", layer.path, size(own), size(its));
                return Err(Error::Lora(format!("{message}; it was made for another model")));
            }
        }
        let feature = self.features;
        let slots: Vec<_> = set.slots(feature).collect();
        self.visit_layers(&mut |mut layer| {
            let slot = slots.iter().find(|(entry, _)| entry.path == layer.path());
            layer.lora_mut().extend(slot.map(|(_, slot)| slot.clone()));
        });
        self.features += 1;
        Ok(feature)
    }

    /// Takes all LoRAs off.
    pub fn detach_all(&mut self) {
        self.features = 0;
        self.visit_layers(&mut |mut layer| layer.lora_mut().clear());
    }

    /// Gradient checkpointing: with a tape, each residual block with its attention keeps its inputs alone and runs a second
    /// time on the way back. Less memory, the same bits, and the time of a second forward pass. Off where an
    /// observer looks on.
    pub fn set_gradient_checkpointing(&mut self, on: bool) {
        self.checkpointing = on;
    }

    /// What the model says about noisy latents: f32 [B, H, W, out_channels].
    ///
    /// # Errors
    /// Shapes do not fit, there are more LoRA sets attached than gates given, or the GPU fails.
    pub fn forward(&self, cx: &Cx<'_>, input: &UnetInput<'_>) -> Result<Tensor> {
        let UnetInput { sample, timesteps, conditioning: Conditioning { states: context } } = *input;
        self.check(sample, timesteps, context)?;
        let UnetConfig { block_out_channels, flip_sin_to_cos, freq_shift, .. } = &self.config;
        let (gpu, dtype, shift) = (sample.gpu(), self.compute, *freq_shift as f32);
        let time = timestep_embedding(gpu, timesteps, block_out_channels[0], *flip_sin_to_cos, shift, dtype)?;
        cx.tap("time_proj", &time);
        let temb = self.linear_1.forward_with(cx, &time, Act::Silu, None)?;
        let temb = self.linear_2.forward(cx, &temb)?;
        cx.tap("time_embedding", &temb);
        let silu_temb = &activation(cx.tape, &temb, Act::Silu)?;
        // what an observer is shown must be what flows on
        let checkpointing = self.checkpointing && cx.taps.is_none();
        let given = Conditions { silu_temb, context, checkpointing };

        // What flows from block to block is f32 whatever the weights are: about 70 sums run through it, and in f16
        // each would round its largest values.
        let mut x = self.conv_in.forward(cx, sample, DType::F32)?;
        cx.tap("conv_in", &x);
        let mut skips = vec![x.clone()];
        for block in &self.down_blocks {
            x = block.forward(cx, &x, given, &mut skips)?;
        }
        x = self.mid_block.forward(cx, &x, given)?;
        for block in &self.up_blocks {
            x = block.forward(cx, &x, given, &mut skips)?;
        }
        let x = self.conv_norm_out.forward_silu(cx, &x, None, dtype)?;
        self.conv_out.forward(cx, &x, DType::F32)
    }

    fn check(&self, sample: &Tensor, timesteps: &[f32], context: &Tensor) -> Result<()> {
        let UnetConfig { in_channels, cross_attention_dim, .. } = self.config;
        let batch = timesteps.len();
        let fits = match (sample.shape(), context.shape()) {
            (&[b, h, w, c], &[bc, t, cc]) => {
                h * w * t > 0 && (b, bc) == (batch, batch) && (c, cc) == (in_channels, cross_attention_dim)
            }
            _ => false,
        };
        if fits && batch > 0 {
            return Ok(());
        }
        Err(Error::Input(format!(
            "U-Net: got latents {:?}, {batch} timesteps and text states {:?}; it needs [B, H, W, {in_channels}], B and [B, T, \
             {cross_attention_dim}]; other channels mean that text encoder and U-Net are of different models",
            sample.shape(),
            context.shape()
        )))
    }
}
