//! The residual block of U-Net and VAE.

use strata_engine::{DType, Tensor};
use strata_kernels::Weight;

use crate::build::Builder;
use crate::layers::{Conv2d, GroupNorm, Layer, Linear};
use crate::{Cx, Result};

/// conv2(silu(norm2(conv1(silu(norm1 x)) + time_emb_proj(silu temb)))) + shortcut(x). The VAE's has no time embedding.
#[derive(Clone)]
pub(crate) struct Resnet<W> {
    path: String,
    /// Type of what lies between the sums.
    compute: DType,
    norm1: GroupNorm<W>,
    conv1: Conv2d<W>,
    time_emb_proj: Option<Linear<W>>,
    norm2: GroupNorm<W>,
    conv2: Conv2d<W>,
    /// Where the number of channels changes.
    conv_shortcut: Option<Linear<W>>,
}

/// What all residual blocks of a model have in common.
#[derive(Clone, Copy)]
pub(crate) struct ResnetArgs {
    /// Channels of the time embedding.
    pub temb: Option<usize>,
    pub groups: usize,
    pub eps: f64,
}

impl<W> Resnet<W> {
    pub fn build(
        b: &mut Builder<'_, W>,
        path: String,
        inputs: usize,
        outputs: usize,
        args: ResnetArgs,
    ) -> Result<Self> {
        let ResnetArgs { temb, groups, eps } = args;
        let at = |name: &str| format!("{path}.{name}");
        let norm1 = GroupNorm::build(b, at("norm1"), inputs, groups, eps)?;
        let conv1 = Conv2d::build(b, at("conv1"), inputs, outputs)?;
        let time_emb_proj = match temb {
            Some(temb) => Some(Linear::build(b, at("time_emb_proj"), temb, outputs, true)?),
            None => None,
        };
        let norm2 = GroupNorm::build(b, at("norm2"), outputs, groups, eps)?;
        let conv2 = Conv2d::build(b, at("conv2"), outputs, outputs)?;
        let conv_shortcut = match inputs == outputs {
            true => None,
            false => Some(Linear::build_conv(b, at("conv_shortcut"), inputs, outputs)?),
        };
        Ok(Self { path, compute: b.compute(), norm1, conv1, time_emb_proj, norm2, conv2, conv_shortcut })
    }

    pub fn visit(&mut self, f: &mut dyn FnMut(Layer<'_, W>)) {
        f(Layer::Conv(&mut self.conv1));
        self.time_emb_proj.iter_mut().for_each(|layer| f(Layer::Linear(layer)));
        f(Layer::Conv(&mut self.conv2));
        self.conv_shortcut.iter_mut().for_each(|layer| f(Layer::Linear(layer)));
    }
}

impl Resnet<Weight> {
    /// x [B, H, W, inputs], `silu_temb` [B, temb] to [B, H, W, outputs] in x's type; what lies between has the model's.
    pub fn forward(&self, cx: &Cx<'_>, x: &Tensor, silu_temb: Option<&Tensor>) -> Result<Tensor> {
        let inner = self.compute;
        // one name, so that each tensor is freed as soon as the next is there
        let mut h = self.norm1.forward_silu(cx, x, None, inner)?;
        h = self.conv1.forward(cx, &h, inner)?;
        cx.tap(&self.conv1.path, &h);
        let time = match (&self.time_emb_proj, silu_temb) {
            (Some(layer), Some(silu_temb)) => {
                let time = layer.forward(cx, silu_temb)?;
                cx.tap(&layer.path, &time);
                Some(time)
            }
            _ => None,
        };
        h = self.norm2.forward_silu(cx, &h, time.as_ref(), inner)?;
        let shortcut = match &self.conv_shortcut {
            Some(layer) => layer.forward_as(cx, x, x.dtype())?,
            None => x.clone(),
        };
        let y = self.conv2.forward_onto(cx, &h, &shortcut)?;
        cx.tap(&self.path, &y);
        Ok(y)
    }
}
