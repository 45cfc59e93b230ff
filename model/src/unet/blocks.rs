//! The U-Net's down, mid and up blocks.

use strata_engine::Tensor;
use strata_kernels::{Padding, Weight, concat, upsample_nearest};

use super::transformer::Transformer;
use crate::build::Builder;
use crate::config::UnetConfig;
use crate::layers::{Conv2d, Layer};
use crate::resnet::{Resnet, ResnetArgs};
use crate::{Cx, Result};

/// What every block is given besides the data that runs through it.
#[derive(Clone, Copy)]
pub(super) struct Conditions<'a> {
    /// silu of the time embedding, [B, temb].
    pub silu_temb: &'a Tensor,
    /// Text states, [B, T, Cc].
    pub context: &'a Tensor,
    /// Whether a unit keeps its inputs alone, and runs again on the way back.
    pub checkpointing: bool,
}

pub(super) fn resnet_args(config: &UnetConfig) -> ResnetArgs {
    ResnetArgs { temb: Some(config.time_embed_dim()), groups: config.norm_num_groups, eps: config.norm_eps }
}

/// A residual block, and attention where the level has any.
#[derive(Clone)]
struct Unit<W> {
    resnet: Resnet<W>,
    attention: Option<Transformer<W>>,
}

impl<W> Unit<W> {
    /// Number `j` of the block at `path`.
    fn build(
        b: &mut Builder<'_, W>,
        path: &str,
        j: usize,
        [inputs, outputs]: [usize; 2],
        heads: Option<usize>,
        config: &UnetConfig,
    ) -> Result<Self> {
        let resnet = Resnet::build(b, format!("{path}.resnets.{j}"), inputs, outputs, resnet_args(config))?;
        let attention = match heads {
            Some(heads) => {
                Some(Transformer::build(b, format!("{path}.attentions.{j}"), outputs, heads, config)?)
            }
            None => None,
        };
        Ok(Self { resnet, attention })
    }

    fn visit(&mut self, f: &mut dyn FnMut(Layer<'_, W>)) {
        self.resnet.visit(f);
        self.attention.iter_mut().for_each(|attention| attention.visit(f));
    }
}

impl Unit<Weight> {
    /// Of x, beside which the channels of a skip tensor are put.
    fn forward(
        &self,
        cx: &Cx<'_>,
        x: &Tensor,
        skip: Option<&Tensor>,
        given: Conditions<'_>,
    ) -> Result<Tensor> {
        if !given.checkpointing {
            return self.run(cx, x, skip, given);
        }
        // handles of weights, gates and inputs, not copies
        let (unit, gates, x, skip) = (self.clone(), cx.gates.clone(), x.clone(), skip.cloned());
        let (silu_temb, context) = (given.silu_temb.clone(), given.context.clone());
        cx.tape.recompute(move |tape| {
            let cx = Cx { tape, gates: &gates, taps: None };
            let given = Conditions { silu_temb: &silu_temb, context: &context, checkpointing: true };
            unit.run(&cx, &x, skip.as_ref(), given)
        })
    }

    fn run(&self, cx: &Cx<'_>, x: &Tensor, skip: Option<&Tensor>, given: Conditions<'_>) -> Result<Tensor> {
        let x = skip.map_or(Ok(x.clone()), |skip| concat(cx.tape, x, skip))?;
        let x = self.resnet.forward(cx, &x, Some(given.silu_temb))?;
        match &self.attention {
            Some(attention) => attention.forward(cx, &x, given.context),
            None => Ok(x),
        }
    }
}

/// Units, then half the height and width but at the coarsest level.
pub(super) struct DownBlock<W> {
    path: String,
    units: Vec<Unit<W>>,
    downsampler: Option<Conv2d<W>>,
}

impl<W> DownBlock<W> {
    /// `down_blocks.level`.
    pub fn build(b: &mut Builder<'_, W>, level: usize, config: &UnetConfig) -> Result<Self> {
        let (path, channels) = (format!("down_blocks.{level}"), &config.block_out_channels);
        let (inputs, outputs) = (channels[level.saturating_sub(1)], channels[level]);
        let heads = config.down_blocks[level].then(|| config.heads[level]);
        let mut units = Vec::new();
        for j in 0..config.layers_per_block {
            let inputs = if j == 0 { inputs } else { outputs };
            units.push(Unit::build(b, &path, j, [inputs, outputs], heads, config)?);
        }
        let downsampler = match level + 1 < channels.len() {
            true => Some(Conv2d::build(b, format!("{path}.downsamplers.0.conv"), outputs, outputs)?),
            false => None,
        };
        Ok(Self { path, units, downsampler })
    }

    pub fn visit(&mut self, f: &mut dyn FnMut(Layer<'_, W>)) {
        self.units.iter_mut().for_each(|unit| unit.visit(f));
        self.downsampler.iter_mut().for_each(|conv| f(Layer::Conv(conv)));
    }
}

impl DownBlock<Weight> {
    /// Every output is pushed to `skips`, for the up block of the same level.
    pub fn forward(
        &self,
        cx: &Cx<'_>,
        x: &Tensor,
        given: Conditions<'_>,
        skips: &mut Vec<Tensor>,
    ) -> Result<Tensor> {
        let (mut x, first) = (x.clone(), skips.len());
        for unit in &self.units {
            x = unit.forward(cx, &x, None, given)?;
            skips.push(x.clone());
        }
        if let Some(conv) = &self.downsampler {
            x = conv.halve(cx, &x, Padding::Same)?;
            cx.tap_at(&self.path, "downsamplers.0", &x);
            skips.push(x.clone());
        }
        if cx.taps.is_some() {
            for (j, skip) in skips[first..].iter().enumerate() {
                cx.tap(&format!("{}.res.{j}", self.path), skip);
            }
        }
        cx.tap(&self.path, &x);
        Ok(x)
    }
}

/// A residual block, attention, a residual block.
pub(super) struct MidBlock<W> {
    units: [Unit<W>; 2],
}

impl<W> MidBlock<W> {
    pub fn build(b: &mut Builder<'_, W>, config: &UnetConfig) -> Result<Self> {
        let level = config.block_out_channels.len() - 1;
        let channels = config.block_out_channels[level];
        let heads = Some(config.heads[level]);
        let unit = |(j, heads)| Unit::build(b, "mid_block", j, [channels; 2], heads, config);
        let [first, second] = [(0, heads), (1, None)].map(unit);
        Ok(Self { units: [first?, second?] })
    }

    pub fn visit(&mut self, f: &mut dyn FnMut(Layer<'_, W>)) {
        self.units.iter_mut().for_each(|unit| unit.visit(f));
    }
}

impl MidBlock<Weight> {
    pub fn forward(&self, cx: &Cx<'_>, x: &Tensor, given: Conditions<'_>) -> Result<Tensor> {
        let mut x = x.clone();
        for unit in &self.units {
            x = unit.forward(cx, &x, None, given)?;
        }
        cx.tap("mid_block", &x);
        Ok(x)
    }
}

/// Units that each also read a skip tensor, then the size of the next finer level's skip tensors.
pub(super) struct UpBlock<W> {
    path: String,
    units: Vec<Unit<W>>,
    upsampler: Option<Conv2d<W>>,
}

impl<W> UpBlock<W> {
    /// `up_blocks.i`; 0 is the coarsest.
    pub fn build(b: &mut Builder<'_, W>, i: usize, config: &UnetConfig) -> Result<Self> {
        let (path, channels) = (format!("up_blocks.{i}"), &config.block_out_channels);
        let level = channels.len() - 1 - i;
        let outputs = channels[level];
        let coarser = channels[(level + 1).min(channels.len() - 1)];
        let finer = channels[level.saturating_sub(1)];
        let heads = config.up_blocks[i].then(|| config.heads[level]);
        let mut units = Vec::new();
        for j in 0..=config.layers_per_block {
            let before = if j == 0 { coarser } else { outputs };
            // the last skip of a level is the one that came into it
            let skip = if j == config.layers_per_block { finer } else { outputs };
            units.push(Unit::build(b, &path, j, [before + skip, outputs], heads, config)?);
        }
        let upsampler = match level > 0 {
            true => Some(Conv2d::build(b, format!("{path}.upsamplers.0.conv"), outputs, outputs)?),
            false => None,
        };
        Ok(Self { path, units, upsampler })
    }

    pub fn visit(&mut self, f: &mut dyn FnMut(Layer<'_, W>)) {
        self.units.iter_mut().for_each(|unit| unit.visit(f));
        self.upsampler.iter_mut().for_each(|conv| f(Layer::Conv(conv)));
    }
}

impl UpBlock<Weight> {
    /// Takes as many skips as there are units, last in first out.
    pub fn forward(
        &self,
        cx: &Cx<'_>,
        x: &Tensor,
        given: Conditions<'_>,
        skips: &mut Vec<Tensor>,
    ) -> Result<Tensor> {
        let mut x = x.clone();
        for unit in &self.units {
            // the constructors of down and up blocks see to it that there is one
            let Some(skip) = skips.pop() else { break };
            x = unit.forward(cx, &x, Some(&skip), given)?;
        }
        if let (Some(conv), Some(next)) = (&self.upsampler, skips.last()) {
            let large = upsample_nearest(cx.tape, &x, next.shape()[1], next.shape()[2])?;
            x = conv.forward(cx, &large, x.dtype())?;
            cx.tap_at(&self.path, "upsamplers.0", &x);
        }
        cx.tap(&self.path, &x);
        Ok(x)
    }
}
