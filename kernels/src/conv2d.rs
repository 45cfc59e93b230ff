//! Frozen 2-D convolution with LoRA branches, as an implicit GEMM: no im2col buffer, K ordered (ky, kx, channel).
//! `y = x ∗ w + b + Σᵢ gateᵢ · scaleᵢ · (x ∗ downᵢ) upᵢᵀ + residual`: a LoRA's `down` is a convolution with the same kernel
//! size, stride and padding into r channels, and its `up` one of 1×1.

use strata_engine::{DType, Error, Result, Tape, Tensor};

use crate::frozen::{Lora, LoraFactors, Product, frozen};
use crate::gemm::Conv;
use crate::linear::LinearArgs;
use crate::winograd::Winograd;
use crate::{Act, Weight};

/// Where zeros surround the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Padding {
    /// (k − 1) / 2 on every side.
    #[default]
    Same,
    /// One column on the right and one row at the bottom: the VAE encoder's (0, 1, 0, 1).
    BottomRight,
}

/// What a convolution does besides x ∗ w.
#[derive(Clone, Copy, Debug)]
pub struct ConvArgs<'a> {
    /// 1 or 2, both ways.
    pub stride: usize,
    /// Zeros around the image.
    pub padding: Padding,
    /// f32 `[O]`, frozen.
    pub bias: Option<&'a Tensor>,
    /// Added last; of the output's shape and type.
    pub residual: Option<&'a Tensor>,
    /// Type of the output; default the residual's, and without one x's.
    pub out: Option<DType>,
    /// Branches; those whose gate is [`Gate::Scalar`](crate::Gate) 0 are skipped.
    pub loras: &'a [Lora<'a>],
}

impl Default for ConvArgs<'_> {
    fn default() -> Self {
        ConvArgs { stride: 1, padding: Padding::Same, bias: None, residual: None, out: None, loras: &[] }
    }
}

/// Sizes of a convolution.
#[derive(Clone, Copy, Debug)]
pub struct ConvShape {
    /// Samples.
    pub batch: usize,
    /// Input height and width.
    pub input: [usize; 2],
    /// Output height and width.
    pub output: [usize; 2],
    /// Kernel height and width.
    pub kernel: [usize; 2],
    /// Input and output channels.
    pub channels: [usize; 2],
    /// Step of the kernel.
    pub stride: usize,
    /// Rows and columns of zeros above and left.
    pub pad: usize,
}

impl ConvShape {
    /// Sizes for x `[B, H, W, C]` and w `[O, KH, KW, C]`.
    ///
    /// # Errors
    /// Shapes or a stride that do not fit.
    pub fn new(x: &[usize], w: &[usize], stride: usize, padding: Padding) -> Result<Self> {
        let (&[batch, h, width, c], &[o, kh, kw, wc]) = (x, w) else {
            return Err(Error::op(
                "conv2d",
                format!("x {x:?} must be [B, H, W, C] and w {w:?} [O, KH, KW, C]"),
            ));
        };
        if c != wc || kh != kw || !matches!(kh, 1 | 3) || !matches!(stride, 1 | 2) {
            let message = format!(
                "x {x:?}, w {w:?}, stride {stride}: kernels are 1×1 or 3×3 over {c} channels, stride 1 or 2"
            );
            return Err(Error::op("conv2d", message));
        }
        let (pad, zeros) = match padding {
            Padding::Same => ((kh - 1) / 2, kh - 1),
            Padding::BottomRight => (0, 1),
        };
        if h + zeros < kh || width + zeros < kw {
            return Err(Error::op(
                "conv2d",
                format!("image {h}×{width} is smaller than the kernel {kh}×{kw}"),
            ));
        }
        let output = [(h + zeros - kh) / stride + 1, (width + zeros - kw) / stride + 1];
        Ok(Self { batch, input: [h, width], output, kernel: [kh, kw], channels: [c, o], stride, pad })
    }
}

/// `[B, H, W, C]` to `[B, OH, OW, O]` with frozen weights `[O, KH, KW, C]` (1×1 or 3×3).
///
/// # Errors
/// Shapes that do not fit.
pub fn conv2d(tape: &Tape, x: &Tensor, w: &Weight, args: &ConvArgs<'_>) -> Result<Tensor> {
    let s = ConvShape::new(x.shape(), w.shape(), args.stride, args.padding)?;
    let shape = [s.batch, s.output[0], s.output[1], s.channels[1]];
    let &ConvArgs { bias, residual, out, loras, .. } = args;
    let out = out.or(residual.map(Tensor::dtype)).unwrap_or(x.dtype());
    let conv = Conv {
        src: s.input,
        dst: s.output,
        kernel: s.kernel,
        stride: s.stride,
        pad: s.pad,
        transposed: false,
    };
    let rows = [s.input, s.output].map(|[h, w]| s.batch * h * w);
    let product = Product {
        op: "conv2d",
        rows,
        channels: s.channels,
        conv: Some(conv),
        winograd: Winograd::new(x, w, &conv)?,
    };
    let args = LinearArgs { bias, residual, act: Act::None, out: Some(out), loras };
    frozen(tape, x, w, product, &args, &shape, out)
}

/// The specification.
pub fn reference(
    x: &[f64],
    w: &[f64],
    bias: Option<&[f64]>,
    residual: Option<&[f64]>,
    loras: &[LoraFactors<'_>],
    s: &ConvShape,
) -> Vec<f64> {
    let ([h, width], [oh, ow], [kh, kw], [c, o]) = (s.input, s.output, s.kernel, s.channels);
    let mut y = vec![0.0; s.batch * oh * ow * o];
    for (i, out) in y.iter_mut().enumerate() {
        let (channel, ox, oy, b) = (i % o, i / o % ow, i / o / ow % oh, i / o / ow / oh);
        *out = bias.map_or(0.0, |v| v[channel]) + residual.map_or(0.0, |v| v[i]);
        for ky in 0..kh {
            for kx in 0..kw {
                let (iy, ix) =
                    ((oy * s.stride + ky).wrapping_sub(s.pad), (ox * s.stride + kx).wrapping_sub(s.pad));
                if iy < h && ix < width {
                    let (px, tap) = (((b * h + iy) * width + ix) * c, ((channel * kh + ky) * kw + kx) * c);
                    *out += (0..c).map(|q| x[px + q] * w[tap + q]).sum::<f64>();
                }
            }
        }
    }
    for (down, up, scale) in loras {
        let r = down.len() / (kh * kw * c);
        let low = reference(x, down, None, None, &[], &ConvShape { channels: [c, r], ..*s });
        for (i, out) in y.iter_mut().enumerate() {
            let (pixel, channel) = (i / o, i % o);
            *out += (0..r).map(|q| scale(pixel) * low[pixel * r + q] * up[channel * r + q]).sum::<f64>();
        }
    }
    y
}
