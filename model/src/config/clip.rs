//! The text encoder's configuration.

use std::path::Path;

use serde_json::json;

use super::fields::{Fields, positive};
use crate::Result;

/// The activation of CLIP's feed-forward layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Act {
    /// x · sigmoid(1.702 x), SD1.
    QuickGelu,
    /// x · Φ(x) with the exact error function, SD2.
    Gelu,
}

/// What a `CLIPTextModel` looks like.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipConfig {
    /// Token ids.
    pub vocab_size: usize,
    /// Channels of a state.
    pub hidden_size: usize,
    /// Channels within the feed-forward layers.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads of the attention.
    pub num_attention_heads: usize,
    /// Activation of the feed-forward layers.
    pub hidden_act: Act,
    /// Added to the variance in the norms.
    pub layer_norm_eps: f64,
    /// The most tokens of a text.
    pub max_position_embeddings: usize,
    /// The end token by this file; old files are wrong about it, see [`pooled_index`].
    pub eos_token_id: u32,
    /// What of the file was not used, and why: a sentence each.
    pub notes: Vec<String>,
}

impl ClipConfig {
    /// Reads a `CLIPTextModel`'s config.json.
    ///
    /// # Errors
    /// Those of [`UnetConfig::open`](super::UnetConfig::open).
    pub fn open(path: &Path) -> Result<Self> {
        let mut f = Fields::open(path)?;
        f.only("model_type", &[json!("clip_text_model")])?;
        // Dropout and initialisation belong to CLIP's own training; bos and pad ids to the tokenizer; the rest is
        // what transformers writes into any model's file.
        f.skip(&[
            "dropout",
            "attention_dropout",
            "initializer_factor",
            "initializer_range",
            "bos_token_id",
            "pad_token_id",
            "projection_dim",
            "architectures",
            "torch_dtype",
            "dtype",
            "transformers_version",
            "use_cache",
            "return_dict",
            "chunk_size_feed_forward",
            "id2label",
            "label2id",
            "tie_word_embeddings",
            "gradient_checkpointing",
        ]);
        let config = Self {
            vocab_size: f.count("vocab_size", 49408)?,
            hidden_size: f.count("hidden_size", 512)?,
            intermediate_size: f.count("intermediate_size", 2048)?,
            num_hidden_layers: f.count("num_hidden_layers", 12)?,
            num_attention_heads: f.count("num_attention_heads", 8)?,
            hidden_act: f.or("hidden_act", Act::QuickGelu)?,
            layer_norm_eps: positive(&mut f, "layer_norm_eps", 1e-5)?,
            max_position_embeddings: f.count("max_position_embeddings", 77)?,
            eos_token_id: f.or("eos_token_id", 49407)?,
            notes: f.finish()?,
        };
        if !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            let message = format!("must divide hidden_size {}", config.hidden_size);
            return Err(f.refuse("num_attention_heads", &json!(config.num_attention_heads), message));
        }
        Ok(config)
    }

    /// That of CLIP ViT-L/14, which Stable Diffusion 1.5 reads texts with.
    pub fn sd15() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            hidden_act: Act::QuickGelu,
            layer_norm_eps: 1e-5,
            max_position_embeddings: 77,
            eos_token_id: 49407,
            notes: Vec::new(),
        }
    }

    /// That of OpenCLIP ViT-H/14 without its last layer, which Stable Diffusion 2 reads texts with.
    pub fn sd2() -> Self {
        Self {
            hidden_size: 1024,
            intermediate_size: 4096,
            num_hidden_layers: 23,
            num_attention_heads: 16,
            hidden_act: Act::Gelu,
            ..Self::sd15()
        }
    }
}

/// Which token's state is CLIP's pooled output: the first `eos_token_id`, or the first of the highest id where the
/// file carries the old, wrong eos id 2. Position 0 if there is none, as in transformers.
pub fn pooled_index(ids: &[u32], config: &ClipConfig) -> usize {
    let wanted = match config.eos_token_id {
        2 => ids.iter().copied().max().unwrap_or_default(),
        eos => eos,
    };
    ids.iter().position(|&id| id == wanted).unwrap_or(0)
}
