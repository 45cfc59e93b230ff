//! The text encoder: transformers' `CLIPTextModel`, a pre-norm transformer whose tokens see only those before them.

use strata_engine::{DType, Gpu, Tensor};
use strata_kernels::{Act, AttentionArgs, Weight, attention, embedding};

use crate::build::{Builder, Plan, load, load_random};
use crate::config::{self, ClipConfig, pooled_index};
use crate::layers::{LayerInfo, LayerNorm, Linear};
use crate::lora::LoraSet;
use crate::weights::Weights;
use crate::{Cx, Error, Result};

/// Turns token ids into states; frozen.
pub struct Clip<W = Weight> {
    config: ClipConfig,
    /// [vocabulary, C].
    tokens: W,
    /// [positions, C].
    positions: W,
    layers: Vec<EncoderLayer<W>>,
    final_norm: LayerNorm<W>,
}

/// h + out(attention(q, k, v of norm1 h)), then + fc2(act(fc1(norm2 h))).
struct EncoderLayer<W> {
    norm1: LayerNorm<W>,
    q: Linear<W>,
    k: Linear<W>,
    v: Linear<W>,
    out: Linear<W>,
    norm2: LayerNorm<W>,
    fc1: Linear<W>,
    fc2: Linear<W>,
}

impl Plan for ClipConfig {
    type Model<W> = Clip<W>;

    fn build<W>(&self, b: &mut Builder<'_, W>) -> Result<Clip<W>> {
        let channels = self.hidden_size;
        let table = |b: &mut Builder<'_, W>, name: &str, rows| {
            b.matrix(format!("embeddings.{name}.weight"), [rows, channels])
        };
        Ok(Clip {
            config: self.clone(),
            tokens: table(b, "token_embedding", self.vocab_size)?,
            positions: table(b, "position_embedding", self.max_position_embeddings)?,
            layers: (0..self.num_hidden_layers)
                .map(|i| EncoderLayer::build(b, i, self))
                .collect::<Result<_>>()?,
            final_norm: LayerNorm::build(b, "final_layer_norm".into(), channels, self.layer_norm_eps)?,
        })
    }
}

impl<W> EncoderLayer<W> {
    fn build(b: &mut Builder<'_, W>, i: usize, config: &ClipConfig) -> Result<Self> {
        let (channels, inner, eps) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        let at = |name: &str| format!("encoder.layers.{i}.{name}");
        let linear = |b: &mut Builder<'_, W>, name: &str, inputs, outputs| {
            Linear::build(b, at(name), inputs, outputs, true)
        };
        Ok(Self {
            norm1: LayerNorm::build(b, at("layer_norm1"), channels, eps)?,
            q: linear(b, "self_attn.q_proj", channels, channels)?,
            k: linear(b, "self_attn.k_proj", channels, channels)?,
            v: linear(b, "self_attn.v_proj", channels, channels)?,
            out: linear(b, "self_attn.out_proj", channels, channels)?,
            norm2: LayerNorm::build(b, at("layer_norm2"), channels, eps)?,
            fc1: linear(b, "mlp.fc1", channels, inner)?,
            fc2: linear(b, "mlp.fc2", inner, channels)?,
        })
    }
}

impl EncoderLayer<Weight> {
    fn linears(&self) -> [&Linear; 6] {
        [&self.q, &self.k, &self.v, &self.out, &self.fc1, &self.fc2]
    }

    fn linears_mut(&mut self) -> [&mut Linear; 6] {
        [&mut self.q, &mut self.k, &mut self.v, &mut self.out, &mut self.fc1, &mut self.fc2]
    }

    fn forward(&self, cx: &Cx<'_>, h: &Tensor, config: &ClipConfig) -> Result<Tensor> {
        let n = self.norm1.forward(cx, h, h.dtype())?;
        let (q, k, v) = (self.q.forward(cx, &n)?, self.k.forward(cx, &n)?, self.v.forward(cx, &n)?);
        let args = AttentionArgs { heads: config.num_attention_heads, causal: true };
        let a = attention(cx.tape, &q, &k, &v, &args)?;
        let h = self.out.forward_with(cx, &a, Act::None, Some(h))?;
        let n = self.norm2.forward(cx, &h, h.dtype())?;
        let act = match config.hidden_act {
            config::Act::QuickGelu => Act::QuickGelu,
            config::Act::Gelu => Act::Gelu,
        };
        let n = self.fc1.forward_with(cx, &n, act, None)?;
        self.fc2.forward_with(cx, &n, Act::None, Some(&h))
    }
}

/// What the names of layers begin with, in some files and in every LoRA.
pub(crate) const PREFIX: &str = "text_model.";

/// Names without the prefix that some files have.
pub(crate) fn named(mut weights: Weights) -> Result<Weights> {
    weights.strip_prefix(PREFIX)?;
    Ok(weights)
}

impl Clip {
    /// Of a configuration and its weights, whose names may or may not begin with `text_model.`.
    ///
    /// # Errors
    /// The weights do not fit, or the GPU is out of memory.
    pub(crate) fn load(gpu: &Gpu, config: &ClipConfig, weights: Weights, dtype: DType) -> Result<Self> {
        let mut weights = named(weights)?;
        // 0, 1, 2, …, which old versions of transformers stored
        weights.ignore("embeddings.position_ids");
        load(config, weights, gpu, dtype)
    }

    /// The vectors that tokens begin as, [vocabulary, C] and row-major.
    ///
    /// # Errors
    /// There is no such table.
    pub(crate) fn token_vectors(config: &ClipConfig, weights: Weights) -> Result<Vec<f32>> {
        named(weights)?.take("embeddings.token_embedding.weight", &[config.vocab_size, config.hidden_size])
    }

    /// One of random weights, see [`random_weights`](crate::random_weights).
    ///
    /// # Errors
    /// The GPU is out of memory.
    pub fn random(gpu: &Gpu, config: &ClipConfig, dtype: DType, seed: u64) -> Result<Self> {
        load_random(config, gpu, dtype, seed)
    }

    /// What the model looks like.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// The GPU adapter that it is on.
    pub fn gpu(&self) -> &Gpu {
        self.tokens.data().gpu()
    }

    /// What it computes in.
    pub(crate) fn dtype(&self) -> DType {
        self.tokens.data().dtype()
    }

    /// The linear layers, by the names that LoRAs have for them.
    pub(crate) fn layers(&self) -> Vec<LayerInfo> {
        let named = |layer: &Linear| LayerInfo { path: format!("{PREFIX}{}", layer.path), ..layer.info() };
        self.layers.iter().flat_map(EncoderLayer::linears).map(named).collect()
    }

    /// The matrix of a layer. Waits for the GPU.
    pub(crate) fn matrix(&self, path: &str) -> Result<Vec<f32>> {
        let own = |layer: &&Linear| path.strip_prefix(PREFIX) == Some(&layer.path);
        match self.layers.iter().flat_map(EncoderLayer::linears).find(own) {
            Some(layer) => Ok(layer.w.data().to_f32()?),
            None => Err(Error::Lora(format!("this text encoder has no layer {path}"))),
        }
    }

    /// Whether any LoRA is on a layer.
    pub(crate) fn has_lora(&self) -> bool {
        self.layers.iter().flat_map(EncoderLayer::linears).any(|layer| !layer.lora.is_empty())
    }

    /// Puts the LoRAs of a set made for this encoder on its layers, as those of feature number `feature`.
    pub(crate) fn attach(&mut self, set: &LoraSet, feature: usize) {
        let slots: Vec<_> = set.slots(feature).collect();
        for layer in self.layers.iter_mut().flat_map(EncoderLayer::linears_mut) {
            let slot = slots.iter().find(|(entry, _)| entry.path.strip_prefix(PREFIX) == Some(&layer.path));
            layer.lora.extend(slot.map(|(_, slot)| slot.clone()));
        }
    }

    /// The states of tokens [B, T] (u32): [`embed`](Self::embed), then [`encode`](Self::encode).
    ///
    /// # Errors
    /// As those.
    pub fn forward(&self, cx: &Cx<'_>, ids: &Tensor, skip: usize) -> Result<Tensor> {
        self.encode(cx, self.embed(ids)?, skip)
    }

    /// What tokens [B, T] (u32) begin as: word vector plus position vector, [B, T, C].
    ///
    /// # Errors
    /// There are more tokens than positions, or the GPU fails.
    pub fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        let positions = self.config.max_position_embeddings;
        if !matches!(ids.shape(), [b, t] if *b > 0 && (1..=positions).contains(t))
            || ids.dtype() != DType::U32
        {
            let message =
                format!("CLIP: got token ids {ids:?}; it needs u32 [B, T] with T from 1 to {positions}");
            return Err(Error::Input(message));
        }
        Ok(embedding(ids, self.tokens.data(), self.positions.data())?)
    }

    /// The vectors that are added by position, row-major [positions, C]. Waits for the GPU.
    ///
    /// # Errors
    /// The GPU fails.
    pub fn position_vectors(&self) -> Result<Vec<f32>> {
        Ok(self.positions.data().to_f32()?)
    }

    /// The states of embedded tokens, after the final norm: [B, T, C]. `skip` leaves out that many of the last layers: 0 is
    /// all of the model, 1 what many call "clip skip 2". An observer sees `hidden.0`, the embeddings, and `hidden.i`, what
    /// comes out of layer i before the final norm. The tape may track the embeddings.
    ///
    /// # Errors
    /// There are fewer layers than `skip`, or the GPU fails.
    pub fn encode(&self, cx: &Cx<'_>, embedded: Tensor, skip: usize) -> Result<Tensor> {
        let layers = self.layers.len();
        let Some(used) = layers.checked_sub(skip) else {
            return Err(Error::Input(format!("CLIP: cannot skip {skip} layers of {layers}")));
        };
        let mut h = embedded;
        cx.tap("hidden.0", &h);
        for (i, layer) in self.layers[..used].iter().enumerate() {
            h = layer.forward(cx, &h, &self.config)?;
            if cx.taps.is_some() {
                cx.tap(&format!("hidden.{}", i + 1), &h);
            }
        }
        self.final_norm.forward(cx, &h, h.dtype())
    }

    /// One state for each text, [B, C]: that of its end token, of what [`forward`](Self::forward) gave for `ids`.
    /// Waits for the GPU.
    ///
    /// # Errors
    /// `ids` are not those of `hidden`, or the GPU fails.
    pub fn pooled(&self, hidden: &Tensor, ids: &[Vec<u32>]) -> Result<Tensor> {
        let fits = match hidden.shape() {
            &[batch, tokens, _] => {
                batch > 0 && batch == ids.len() && ids.iter().all(|ids| ids.len() == tokens)
            }
            _ => false,
        };
        if !fits {
            let message = format!(
                "CLIP: {} lists of token ids do not belong to states {:?}",
                ids.len(),
                hidden.shape()
            );
            return Err(Error::Input(message));
        }
        let (values, channels) = (hidden.to_f32()?, hidden.last());
        let mut pooled = Vec::with_capacity(ids.len() * channels);
        for (text, ids) in values.chunks_exact(ids[0].len() * channels).zip(ids) {
            pooled.extend(&text[pooled_index(ids, &self.config) * channels..][..channels]);
        }
        Ok(Tensor::from_f32(hidden.gpu(), &pooled, &[ids.len(), channels], hidden.dtype())?)
    }
}
