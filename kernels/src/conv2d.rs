//! Frozen 2-D convolution as an implicit GEMM: no im2col buffer, K ordered (ky, kx, channel).
//! Nothing is saved for the way back, and there is no dW.

use strata_engine::{DType, Error, Result, Tape, Tensor};

use crate::gemm::{Conv, Gemm, Layout};
use crate::linear::pairs;

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
    /// Type of the output; default the residual's, and without one the weights'.
    pub out: Option<DType>,
}

impl Default for ConvArgs<'_> {
    fn default() -> Self {
        ConvArgs { stride: 1, padding: Padding::Same, bias: None, residual: None, out: None }
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
    pub fn new(x: &[usize], w: &[usize], stride: usize, padding: Padding) -> Result<ConvShape> {
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
        Ok(ConvShape { batch, input: [h, width], output, kernel: [kh, kw], channels: [c, o], stride, pad })
    }
}

/// `[B, H, W, C]` to `[B, OH, OW, O]` with frozen weights `[O, KH, KW, C]` (1×1 or 3×3).
///
/// # Errors
/// Shapes that do not fit.
pub fn conv2d(tape: &Tape, x: &Tensor, w: &Tensor, args: &ConvArgs<'_>) -> Result<Tensor> {
    let s = ConvShape::new(x.shape(), w.shape(), args.stride, args.padding)?;
    let shape = [s.batch, s.output[0], s.output[1], s.channels[1]];
    let out = args.out.or(args.residual.map(Tensor::dtype)).unwrap_or(w.dtype());
    if !pairs(x, w) || args.bias.is_some_and(|b| b.len() != s.channels[1]) {
        return Err(Error::op("conv2d", format!("x {x:?}, w {w:?}, bias {:?}", args.bias)));
    }
    if let Some(r) = args.residual.filter(|r| r.shape() != shape || r.dtype() != out) {
        let message = format!("residual {r:?} is added to an output {shape:?} {}", out.wgsl());
        return Err(Error::op("conv2d", message));
    }
    let pixels = move |[h, w]: [usize; 2]| s.batch * h * w;
    let conv = Conv {
        src: s.input,
        dst: s.output,
        kernel: s.kernel,
        stride: s.stride,
        pad: s.pad,
        transposed: false,
    };
    let y = Gemm {
        conv: Some(conv),
        bias: args.bias,
        residual: args.residual,
        out,
        ..Gemm::new(x, w, Layout::Nt, [pixels(s.output), s.channels[1], s.channels[0]])
    }
    .run("conv2d", &shape)?;

    let mut inputs = vec![x];
    inputs.extend(args.residual);
    if inputs.iter().any(|t| tape.tracks(t)) {
        let (id, x_shape, x_type) = (x.id(), x.shape().to_vec(), x.dtype());
        let (residual, w) = (args.residual.map(Tensor::id), w.clone());
        tape.record(&inputs, &y, move |grad_out, grads| {
            if let Some(residual) = residual.filter(|r| grads.wants(*r)) {
                grads.add_id(residual, grad_out.clone())?;
            }
            if grads.wants(id) {
                let back = Conv { src: s.output, dst: s.input, transposed: true, ..conv };
                let before = grads.take(id);
                let dx = Gemm {
                    conv: Some(back),
                    residual: before.as_ref(),
                    out: x_type,
                    ..Gemm::new(grad_out, &w, Layout::Nn, [pixels(s.input), s.channels[0], s.channels[1]])
                }
                .run("conv2d backward", &x_shape)?;
                grads.add_id(id, dx)?;
            }
            Ok(())
        });
    }
    Ok(y)
}

/// The specification.
pub fn reference(
    x: &[f64],
    w: &[f64],
    bias: Option<&[f64]>,
    residual: Option<&[f64]>,
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
    y
}
