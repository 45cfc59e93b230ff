//! The U-Net's attention: diffusers' `Transformer2DModel` with one `BasicTransformerBlock`.

use strata_engine::Tensor;
use strata_kernels::{Act, AttentionArgs, Weight, attention, geglu};

use crate::build::Builder;
use crate::config::UnetConfig;
use crate::layers::{GroupNorm, Layer, LayerNorm, Linear};
use crate::{Cx, Result, Rows};

/// Of the norm before `proj_in`; unlike the residual blocks' it is no setting.
const NORM_EPS: f64 = 1e-6;
/// Of the norms within the block.
const LAYER_NORM_EPS: f64 = 1e-5;

/// x + proj_out(block(proj_in(norm x))), with all places of an image as tokens.
#[derive(Clone)]
pub(super) struct Transformer<W> {
    path: String,
    norm: GroupNorm<W>,
    proj_in: Linear<W>,
    block: Block<W>,
    proj_out: Linear<W>,
}

/// h + attn1(norm1 h), then + attn2(norm2 h, context), then + ff(norm3 h).
#[derive(Clone)]
struct Block<W> {
    path: String,
    norm1: LayerNorm<W>,
    attn1: Attention<W>,
    norm2: LayerNorm<W>,
    attn2: Attention<W>,
    norm3: LayerNorm<W>,
    ff: FeedForward<W>,
}

/// to_out(softmax(q kᵀ / √d) v), q of x, k and v of the context; in self-attention the context is x.
#[derive(Clone)]
struct Attention<W> {
    path: String,
    heads: usize,
    to_q: Linear<W>,
    to_k: Linear<W>,
    to_v: Linear<W>,
    to_out: Linear<W>,
}

/// out(a · gelu(g)), where (a, g) are the halves of proj(x).
#[derive(Clone)]
struct FeedForward<W> {
    path: String,
    proj: Linear<W>,
    out: Linear<W>,
}

impl<W> Transformer<W> {
    pub fn build(
        b: &mut Builder<'_, W>,
        path: String,
        channels: usize,
        heads: usize,
        config: &UnetConfig,
    ) -> Result<Self> {
        let project = |b: &mut Builder<'_, W>, name: &str| match config.use_linear_projection {
            true => Linear::build(b, format!("{path}.{name}"), channels, channels, true),
            false => Linear::build_conv(b, format!("{path}.{name}"), channels, channels),
        };
        Ok(Self {
            norm: GroupNorm::build(b, format!("{path}.norm"), channels, config.norm_num_groups, NORM_EPS)?,
            proj_in: project(b, "proj_in")?,
            block: Block::build(
                b,
                format!("{path}.transformer_blocks.0"),
                channels,
                config.cross_attention_dim,
                heads,
            )?,
            proj_out: project(b, "proj_out")?,
            path,
        })
    }

    pub fn visit(&mut self, f: &mut dyn FnMut(Layer<'_, W>)) {
        f(Layer::Linear(&mut self.proj_in));
        for attention in [&mut self.block.attn1, &mut self.block.attn2] {
            for layer in
                [&mut attention.to_q, &mut attention.to_k, &mut attention.to_v, &mut attention.to_out]
            {
                f(Layer::Linear(layer));
            }
        }
        f(Layer::Linear(&mut self.block.ff.proj));
        f(Layer::Linear(&mut self.block.ff.out));
        f(Layer::Linear(&mut self.proj_out));
    }
}

impl Transformer<Weight> {
    /// x [B, H, W, C], context [B, T, Cc] to [B, H, W, C].
    pub fn forward(&self, cx: &Cx<'_>, x: &Tensor, context: &Tensor) -> Result<Tensor> {
        let mut h = self.norm.forward(cx, x, self.proj_in.compute)?;
        cx.tap(&self.norm.path, &h);
        h = self.proj_in.forward_as(cx, &h, x.dtype())?;
        cx.tap(&self.proj_in.path, &h);
        let tokens = x.rows() / x.shape()[0];
        h = h.reshape(&[x.shape()[0], tokens, x.last()])?;
        h = self.block.forward(cx, &h, context)?.reshape(x.shape())?;
        let y = self.proj_out.forward_with(cx, &h, Act::None, Some(x))?;
        cx.tap(&self.path, &y);
        Ok(y)
    }
}

impl<W> Block<W> {
    fn build(
        b: &mut Builder<'_, W>,
        path: String,
        channels: usize,
        context: usize,
        heads: usize,
    ) -> Result<Self> {
        let at = |name: &str| format!("{path}.{name}");
        let norm =
            |b: &mut Builder<'_, W>, name: &str| LayerNorm::build(b, at(name), channels, LAYER_NORM_EPS);
        Ok(Self {
            norm1: norm(b, "norm1")?,
            attn1: Attention::build(b, at("attn1"), channels, channels, heads)?,
            norm2: norm(b, "norm2")?,
            attn2: Attention::build(b, at("attn2"), channels, context, heads)?,
            norm3: norm(b, "norm3")?,
            ff: FeedForward::build(b, at("ff"), channels)?,
            path,
        })
    }
}

impl Block<Weight> {
    fn forward(&self, cx: &Cx<'_>, h: &Tensor, context: &Tensor) -> Result<Tensor> {
        let inner = self.attn1.to_q.compute;
        let mut n = self.norm1.forward(cx, h, inner)?;
        let mut h = self.attn1.forward(cx, &n, &n, h)?;
        n = self.norm2.forward(cx, &h, inner)?;
        h = self.attn2.forward(cx, &n, context, &h)?;
        n = self.norm3.forward(cx, &h, inner)?;
        h = self.ff.forward(cx, &n, &h)?;
        cx.tap(&self.path, &h);
        Ok(h)
    }
}

impl<W> Attention<W> {
    fn build(
        b: &mut Builder<'_, W>,
        path: String,
        channels: usize,
        context: usize,
        heads: usize,
    ) -> Result<Self> {
        Ok(Self {
            to_q: Linear::build(b, format!("{path}.to_q"), channels, channels, false)?,
            to_k: Linear::build(b, format!("{path}.to_k"), context, channels, false)?,
            to_v: Linear::build(b, format!("{path}.to_v"), context, channels, false)?,
            to_out: Linear::build(b, format!("{path}.to_out.0"), channels, channels, true)?,
            path,
            heads,
        })
    }
}

impl Attention<Weight> {
    fn forward(&self, cx: &Cx<'_>, x: &Tensor, context: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let q = self.to_q.forward(cx, x)?;
        let a = self.attend(cx, &q, context)?;
        cx.tap_with(&self.path, |cx| self.to_out.forward(cx, &a))?;
        self.to_out.forward_with(cx, &a, Act::None, Some(residual))
    }

    /// softmax(q kᵀ / √d) v. The LoRAs of `to_k` and `to_v` cannot be kept to a part of the picture where the context is
    /// a text, so with such features the whole of this is mixed, place by place.
    fn attend(&self, cx: &Cx<'_>, q: &Tensor, context: &Tensor) -> Result<Tensor> {
        let within = |part: Option<usize>| -> Result<Tensor> {
            let k = self.to_k.forward_in(cx, context, part)?;
            let v = self.to_v.forward_in(cx, context, part)?;
            Ok(attention(cx.tape, q, &k, &v, &AttentionArgs { heads: self.heads, causal: false })?)
        };
        let whole = within(None)?;
        if self.to_k.rows != Rows::Text {
            return Ok(whole);
        }
        let carried = self.to_k.lora.iter().chain(&self.to_v.lora).map(|slot| slot.feature).collect();
        cx.gates.mix(cx.tape, &carried, whole, |part| within(Some(part)))
    }
}

impl<W> FeedForward<W> {
    fn build(b: &mut Builder<'_, W>, path: String, channels: usize) -> Result<Self> {
        Ok(Self {
            proj: Linear::build(b, format!("{path}.net.0.proj"), channels, 8 * channels, true)?,
            out: Linear::build(b, format!("{path}.net.2"), 4 * channels, channels, true)?,
            path,
        })
    }
}

impl FeedForward<Weight> {
    fn forward(&self, cx: &Cx<'_>, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let h = geglu(cx.tape, &self.proj.forward(cx, x)?)?;
        cx.tap_at(&self.path, "net.0", &h);
        cx.tap_with(&self.path, |cx| self.out.forward(cx, &h))?;
        self.out.forward_with(cx, &h, Act::None, Some(residual))
    }
}
