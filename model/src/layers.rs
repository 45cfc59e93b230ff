//! The layers that have weights. They are frozen; a [`Linear`] or [`Conv2d`] may carry LoRAs.

use strata_engine::{DType, Tensor};
use strata_kernels::{Act, ConvArgs, ConvShape, Gate, GroupNormArgs, LinearArgs, Lora, Padding, Weight};

use crate::build::Builder;
use crate::{Cx, Result, Rows};

/// y = x wᵀ + b + Σᵢ gateᵢ · scaleᵢ · (x downᵢᵀ) upᵢᵀ, on the last axis. A 1×1 convolution is one of these.
#[derive(Debug, Clone)]
pub struct Linear<W = Weight> {
    /// Diffusers' name.
    pub path: String,
    /// Size of the last axis of x.
    pub inputs: usize,
    /// Size of the last axis of y.
    pub outputs: usize,
    /// Whether files hold this layer as a 1×1 convolution, with four axes.
    pub conv: bool,
    /// What the rows of x are, in the U-Net.
    pub rows: Rows,
    /// Type of y, where nothing else decides it.
    pub compute: DType,
    /// [outputs, inputs].
    pub w: W,
    /// f32 `[outputs]`.
    pub b: Option<W>,
    /// The LoRAs attached to it.
    pub lora: Vec<LoraSlot>,
}

/// A LoRA at its layer.
#[derive(Debug, Clone)]
pub struct LoraSlot {
    /// Which attached [`LoraSet`](crate::LoraSet) it belongs to.
    pub feature: usize,
    /// [rank, inputs]; of a 3×3 convolution [rank, 3, 3, inputs].
    pub down: Tensor,
    /// [outputs, rank].
    pub up: Tensor,
    /// alpha / rank.
    pub scale: f32,
}

impl LoraSlot {
    fn branch(&self, gate: Gate) -> Lora<'_> {
        Lora { down: &self.down, up: &self.up, scale: self.scale, gate }
    }
}

impl<W> Linear<W> {
    pub(crate) fn build(
        b: &mut Builder<'_, W>,
        path: String,
        inputs: usize,
        outputs: usize,
        bias: bool,
    ) -> Result<Self> {
        let w = b.matrix(format!("{path}.weight"), [outputs, inputs])?;
        let bias = if bias { Some(b.vector(format!("{path}.bias"), outputs)?) } else { None };
        let rows = Rows::of(&path);
        let compute = b.compute();
        Ok(Self { path, inputs, outputs, conv: false, rows, compute, w, b: bias, lora: Vec::new() })
    }

    /// A 1×1 convolution.
    pub(crate) fn build_conv(
        b: &mut Builder<'_, W>,
        path: String,
        inputs: usize,
        outputs: usize,
    ) -> Result<Self> {
        let w = b.kernel(format!("{path}.weight"), [outputs, inputs], 1)?;
        let bias = Some(b.vector(format!("{path}.bias"), outputs)?);
        let rows = Rows::of(&path);
        let compute = b.compute();
        Ok(Self { path, inputs, outputs, conv: true, rows, compute, w, b: bias, lora: Vec::new() })
    }

    /// A layer with bias that is a linear layer or a 1×1 convolution under any of several names: `prefix.names[i]`.
    pub(crate) fn build_any(
        b: &mut Builder<'_, W>,
        prefix: &str,
        names: &[&str],
        channels: usize,
    ) -> Result<Self> {
        let all = |end: &str| names.iter().map(|name| format!("{prefix}.{name}.{end}")).collect();
        let w = b.matrix_any(all("weight"), [channels, channels])?;
        let bias = Some(b.vector_any(all("bias"), channels)?);
        let path = format!("{prefix}.{}", names[0]);
        let rows = Rows::of(&path);
        Ok(Self {
            path,
            inputs: channels,
            outputs: channels,
            conv: false,
            rows,
            compute: b.compute(),
            w,
            b: bias,
            lora: Vec::new(),
        })
    }

    pub(crate) fn info(&self) -> LayerInfo {
        let kind = if self.conv { LayerKind::Conv1x1 } else { LayerKind::Linear };
        LayerInfo { path: self.path.clone(), kind, inputs: self.inputs, outputs: self.outputs }
    }
}

impl Linear {
    /// x [.., inputs] to y [.., outputs], in the type that the model computes in.
    ///
    /// # Errors
    /// Shapes do not fit, or an attached LoRA has no gate.
    pub fn forward(&self, cx: &Cx<'_>, x: &Tensor) -> Result<Tensor> {
        self.run(cx, x, Act::None, None, None, None)
    }

    /// As [`forward`](Self::forward) on text, with the features that are kept to part `part` of the picture, if any;
    /// see [`Gates::mix`](crate::Gates).
    pub(crate) fn forward_in(&self, cx: &Cx<'_>, x: &Tensor, part: Option<usize>) -> Result<Tensor> {
        self.run(cx, x, Act::None, None, part, None)
    }

    /// As [`forward`](Self::forward), with y in a type of its own.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_as(&self, cx: &Cx<'_>, x: &Tensor, out: DType) -> Result<Tensor> {
        self.run(cx, x, Act::None, None, None, Some(out))
    }

    /// act(y) + residual in the same kernel, and in the residual's type.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_with(
        &self,
        cx: &Cx<'_>,
        x: &Tensor,
        act: Act,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        self.run(cx, x, act, residual, None, None)
    }

    fn run(
        &self,
        cx: &Cx<'_>,
        x: &Tensor,
        act: Act,
        residual: Option<&Tensor>,
        part: Option<usize>,
        out: Option<DType>,
    ) -> Result<Tensor> {
        let gate = |slot: &LoraSlot| cx.gates.of(slot.feature, self.rows, x, x.rows(), part);
        let loras = self.lora.iter().map(|slot| Ok(slot.branch(gate(slot)?))).collect::<Result<Vec<_>>>()?;
        let out = out.or(residual.map(Tensor::dtype)).unwrap_or(self.compute);
        let bias = self.b.as_ref().map(Weight::data);
        let args = LinearArgs { bias, residual, act, out: Some(out), loras: &loras };
        Ok(strata_kernels::linear(cx.tape, x, &self.w, &args)?)
    }
}

/// A 3×3 convolution: y = x ∗ w + b + Σᵢ gateᵢ · scaleᵢ · (x ∗ downᵢ) upᵢᵀ. Its rows are places, those of y.
#[derive(Debug, Clone)]
pub struct Conv2d<W = Weight> {
    /// Diffusers' name.
    pub path: String,
    /// Channels of x.
    pub inputs: usize,
    /// Channels of y.
    pub outputs: usize,
    /// [outputs, 3, 3, inputs].
    pub w: W,
    /// f32 `[outputs]`.
    pub b: W,
    /// The LoRAs attached to it.
    pub lora: Vec<LoraSlot>,
}

impl<W> Conv2d<W> {
    pub(crate) fn build(b: &mut Builder<'_, W>, path: String, inputs: usize, outputs: usize) -> Result<Self> {
        let w = b.kernel(format!("{path}.weight"), [outputs, inputs], 3)?;
        let bias = b.vector(format!("{path}.bias"), outputs)?;
        Ok(Self { path, inputs, outputs, w, b: bias, lora: Vec::new() })
    }

    pub(crate) fn info(&self) -> LayerInfo {
        LayerInfo {
            path: self.path.clone(),
            kind: LayerKind::Conv3x3,
            inputs: self.inputs,
            outputs: self.outputs,
        }
    }
}

impl Conv2d {
    /// x [B, H, W, inputs] to [B, H, W, outputs] of type `out`.
    ///
    /// # Errors
    /// Shapes do not fit.
    pub fn forward(&self, cx: &Cx<'_>, x: &Tensor, out: DType) -> Result<Tensor> {
        self.run(cx, x, 1, Padding::Same, None, out)
    }

    /// Plus a residual of the output's shape, and in its type.
    ///
    /// # Errors
    /// Shapes do not fit.
    pub fn forward_onto(&self, cx: &Cx<'_>, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.run(cx, x, 1, Padding::Same, Some(residual), residual.dtype())
    }

    /// Stride 2: x [B, H, W, inputs] to half the height and width, in x's type.
    ///
    /// # Errors
    /// Shapes do not fit.
    pub fn halve(&self, cx: &Cx<'_>, x: &Tensor, padding: Padding) -> Result<Tensor> {
        self.run(cx, x, 2, padding, None, x.dtype())
    }

    fn run(
        &self,
        cx: &Cx<'_>,
        x: &Tensor,
        stride: usize,
        padding: Padding,
        residual: Option<&Tensor>,
        out: DType,
    ) -> Result<Tensor> {
        let [height, width] = ConvShape::new(x.shape(), self.w.shape(), stride, padding)?.output;
        let places = x.shape()[0] * height * width;
        let gate = |slot: &LoraSlot| cx.gates.of(slot.feature, Rows::Place, x, places, None);
        let loras = self.lora.iter().map(|slot| Ok(slot.branch(gate(slot)?))).collect::<Result<Vec<_>>>()?;
        let bias = Some(self.b.data());
        let args = ConvArgs { stride, padding, bias, residual, out: Some(out), loras: &loras };
        Ok(strata_kernels::conv2d(cx.tape, x, &self.w, &args)?)
    }
}

/// Normalises groups of channels over all places of a sample.
#[derive(Debug, Clone)]
pub struct GroupNorm<W = Weight> {
    /// Diffusers' name.
    pub path: String,
    /// f32 `[C]`.
    pub gamma: W,
    /// f32 `[C]`.
    pub beta: W,
    /// How many groups the channels form.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
}

impl<W> GroupNorm<W> {
    pub(crate) fn build(
        b: &mut Builder<'_, W>,
        path: String,
        channels: usize,
        groups: usize,
        eps: f64,
    ) -> Result<Self> {
        let gamma = b.vector(format!("{path}.weight"), channels)?;
        let beta = b.vector(format!("{path}.bias"), channels)?;
        Ok(Self { path, gamma, beta, groups, eps: eps as f32 })
    }
}

impl GroupNorm {
    /// The norm of x [B, .., C], in type `out`.
    ///
    /// # Errors
    /// Shapes do not fit.
    pub fn forward(&self, cx: &Cx<'_>, x: &Tensor, out: DType) -> Result<Tensor> {
        self.run(cx, x, false, None, out)
    }

    /// silu(norm(x + add)) in type `out`, with `add` [B, C] the same for all places of a sample. An observer is shown the value
    /// before the SiLU, as it is diffusers' norm layer that carries this path.
    ///
    /// # Errors
    /// Shapes do not fit.
    pub fn forward_silu(&self, cx: &Cx<'_>, x: &Tensor, add: Option<&Tensor>, out: DType) -> Result<Tensor> {
        cx.tap_with(&self.path, |cx| self.run(cx, x, false, add, out))?;
        self.run(cx, x, true, add, out)
    }

    fn run(&self, cx: &Cx<'_>, x: &Tensor, silu: bool, add: Option<&Tensor>, out: DType) -> Result<Tensor> {
        let args = GroupNormArgs { groups: self.groups, eps: self.eps, silu, add, out: Some(out) };
        Ok(strata_kernels::group_norm(cx.tape, x, self.gamma.data(), self.beta.data(), &args)?)
    }
}

/// Normalises the channels of each token.
#[derive(Debug, Clone)]
pub struct LayerNorm<W = Weight> {
    /// Diffusers' name.
    pub path: String,
    /// f32 `[C]`.
    pub gamma: W,
    /// f32 `[C]`.
    pub beta: W,
    /// Added to the variance.
    pub eps: f32,
}

impl<W> LayerNorm<W> {
    pub(crate) fn build(b: &mut Builder<'_, W>, path: String, channels: usize, eps: f64) -> Result<Self> {
        let gamma = b.vector(format!("{path}.weight"), channels)?;
        let beta = b.vector(format!("{path}.bias"), channels)?;
        Ok(Self { path, gamma, beta, eps: eps as f32 })
    }
}

impl LayerNorm {
    /// The norm of x [.., C], in type `out`.
    ///
    /// # Errors
    /// Shapes do not fit.
    pub fn forward(&self, cx: &Cx<'_>, x: &Tensor, out: DType) -> Result<Tensor> {
        let (gamma, beta) = (self.gamma.data(), self.beta.data());
        let y = strata_kernels::layer_norm(cx.tape, x, gamma, beta, self.eps, out)?;
        cx.tap(&self.path, &y);
        Ok(y)
    }
}

/// One layer with a matrix or kernel, in a traversal.
pub enum Layer<'a, W = Weight> {
    /// A linear layer or 1×1 convolution.
    Linear(&'a mut Linear<W>),
    /// A 3×3 convolution.
    Conv(&'a mut Conv2d<W>),
}

impl<W> Layer<'_, W> {
    /// What the layer is.
    pub fn info(&self) -> LayerInfo {
        match self {
            Layer::Linear(layer) => layer.info(),
            Layer::Conv(layer) => layer.info(),
        }
    }

    /// Diffusers' name.
    pub fn path(&self) -> &str {
        match self {
            Layer::Linear(layer) => &layer.path,
            Layer::Conv(layer) => &layer.path,
        }
    }

    /// The LoRAs attached to it.
    pub fn lora_mut(&mut self) -> &mut Vec<LoraSlot> {
        match self {
            Layer::Linear(layer) => &mut layer.lora,
            Layer::Conv(layer) => &mut layer.lora,
        }
    }
}

/// A layer's name and size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerInfo {
    /// Diffusers' name.
    pub path: String,
    /// How files hold it.
    pub kind: LayerKind,
    /// Channels it reads.
    pub inputs: usize,
    /// Channels it writes.
    pub outputs: usize,
}

impl LayerInfo {
    /// Height and width of the kernel; 1 where each row of the output reads one row.
    pub fn side(&self) -> usize {
        if self.kind == LayerKind::Conv3x3 { 3 } else { 1 }
    }

    /// Inputs to one output: channels, times the area of the kernel.
    pub fn fan_in(&self) -> usize {
        self.inputs * self.side() * self.side()
    }

    /// Shapes of `down` and `up` of a LoRA of this rank in files: [r, in] and [out, r], or [r, in, k, k] and [out, r, 1, 1].
    pub(crate) fn lora_shapes(&self, rank: usize) -> (Vec<usize>, Vec<usize>) {
        let (mut down, mut up) = (vec![rank, self.inputs], vec![self.outputs, rank]);
        if self.kind != LayerKind::Linear {
            down.extend([self.side(); 2]);
            up.extend([1, 1]);
        }
        (down, up)
    }

    /// Numbers in a LoRA of this rank.
    pub fn parameters(&self, rank: usize) -> usize {
        rank * (self.fan_in() + self.outputs)
    }
}

/// Kinds of layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerKind {
    /// A matrix [outputs, inputs].
    Linear,
    /// A kernel [outputs, inputs, 1, 1]: a linear layer on channels.
    Conv1x1,
    /// A kernel [outputs, inputs, 3, 3].
    Conv3x3,
}
