//! Text to what the U-Net is conditioned on: one way for training, silence, preservation, the probe and generation.

use std::sync::Arc;

use strata_engine::{DType, Gpu, Tape, Tensor};
use strata_kernels::cast;

use crate::{Clip, ClipTokenizer, Cx, Error, Gates, LoraSet, LoraWeights, Prompt, Reading, Result, Tag};

/// A tokenizer and its text encoder.
pub struct TextEncoder {
    tokenizer: Arc<ClipTokenizer>,
    clip: Clip,
}

/// What the U-Net is told beside the noisy latents.
#[derive(Debug, Clone)]
pub struct Conditioning {
    /// Text states, [B, T, C].
    pub states: Tensor,
}

impl Conditioning {
    /// Text states [B, T, C] from the host.
    ///
    /// # Errors
    /// They do not fill the shape, or the GPU is out of memory.
    pub fn upload(gpu: &Gpu, states: &[f32], shape: &[usize], dtype: DType) -> Result<Self> {
        Ok(Self { states: Tensor::from_f32(gpu, states, shape, dtype)? })
    }

    /// Those of several batches as one batch.
    ///
    /// # Errors
    /// There is none, they differ in tokens, or the GPU's.
    pub(crate) fn together(mut all: Vec<Self>) -> Result<Self> {
        if all.len() == 1 {
            return Ok(all.remove(0));
        }
        let Some(&[_, tokens, channels]) = all.first().map(|one| one.states.shape()) else {
            return Err(Error::Input("no prompts".into()));
        };
        let values = all.iter().map(|one| one.states.to_f32()).collect::<Result<Vec<_>, _>>()?.concat();
        let states = &all[0].states;
        Self::upload(
            states.gpu(),
            &values,
            &[values.len() / (tokens * channels), tokens, channels],
            states.dtype(),
        )
    }

    /// The same in another type.
    ///
    /// # Errors
    /// The GPU's.
    pub fn cast(&self, dtype: DType) -> Result<Self> {
        Ok(Self { states: cast(&self.states, dtype)? })
    }
}

impl TextEncoder {
    pub(crate) fn new(tokenizer: Arc<ClipTokenizer>, clip: Clip) -> Self {
        Self { tokenizer, clip }
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Arc<ClipTokenizer> {
        &self.tokenizer
    }

    /// Puts a LoRA's modules of the text encoder on its layers, as those of the U-Net's LoRA set number `feature`, whose gate they
    /// share. Returns whether it has any.
    ///
    /// # Errors
    /// [`Error::Lora`] names modules that are not layers of the encoder, or are of another size; else the GPU is out of memory.
    pub fn attach(&mut self, lora: &LoraWeights, feature: usize) -> Result<bool> {
        let Some(set) = LoraSet::for_text(lora, &self.clip)? else { return Ok(false) };
        self.clip.attach(&set, feature);
        Ok(true)
    }

    /// The encoder by itself.
    pub fn clip(&self) -> &Clip {
        &self.clip
    }

    /// Reads texts, with the tags of features in them, and gives all equally many chunks.
    ///
    /// # Errors
    /// [`Prompt::read`]'s.
    pub fn read(&self, texts: &[&str], reading: Reading, tags: &[(usize, &Tag)]) -> Result<Vec<Prompt>> {
        let read = |text: &&str| Prompt::read(&self.tokenizer, text, tags, reading);
        let mut prompts = texts.iter().map(read).collect::<Result<Vec<_>>>()?;
        let chunks = prompts.iter().map(Prompt::chunks).max().unwrap_or(1);
        prompts.iter_mut().for_each(|prompt| prompt.pad(&self.tokenizer, chunks));
        Ok(prompts)
    }

    /// What the U-Net is told of prompts that are read and have equally many chunks. `skip` leaves out that many of the last
    /// layers: 0 is all of the encoder, 1 what many call "clip skip 2".
    ///
    /// # Errors
    /// There is no prompt, chunks differ in number, `skip` is more than there are layers, or the GPU fails.
    pub fn encode(&self, prompts: &[Prompt], skip: usize) -> Result<Conditioning> {
        self.encode_with(prompts, skip, Gates::none())
    }

    /// [`encode`](Self::encode) with the LoRAs that are attached.
    ///
    /// # Errors
    /// [`encode`](Self::encode)'s, or there are more LoRAs than gates.
    pub fn encode_with(&self, prompts: &[Prompt], skip: usize, gates: &Gates) -> Result<Conditioning> {
        let tokens = prompts.first().map_or(0, |prompt| prompt.ids().len());
        if let Some(other) = prompts.iter().find(|prompt| prompt.ids().len() != tokens) {
            let other = other.ids().len();
            return Err(Error::Input(format!(
                "prompts of {tokens} and of {other} tokens; pad them to one length"
            )));
        }
        let (chunk, gpu) = (self.tokenizer.max_length(), self.clip.gpu());
        let embedded = self.embed(prompts)?;
        let states = self.clip.encode(&Cx { gates, ..Cx::new(&Tape::off()) }, embedded, skip)?;
        let channels = states.last();
        let states = states.reshape(&[prompts.len(), tokens, channels])?;
        let weights: Vec<f32> = prompts.iter().flat_map(Prompt::weights).copied().collect();
        if weights.iter().all(|weight| *weight == 1.0) {
            return Ok(Conditioning { states });
        }
        let mut values = states.to_f32()?;
        for (values, weights) in values.chunks_exact_mut(chunk * channels).zip(weights.chunks_exact(chunk)) {
            emphasise(values, weights);
        }
        Conditioning::upload(gpu, &values, states.shape(), states.dtype())
    }

    /// What the tokens of prompts begin as, their chunks one after the other: [chunks, T, C], with the vectors of keys and of
    /// embeddings where those stand.
    ///
    /// # Errors
    /// There is no prompt, vectors are of another width, or the GPU fails.
    pub fn embed(&self, prompts: &[Prompt]) -> Result<Tensor> {
        let chunk = self.tokenizer.max_length();
        let ids: Vec<u32> = prompts.iter().flat_map(Prompt::ids).copied().collect();
        let ids = Tensor::from_u32(self.clip.gpu(), &ids, &[ids.len() / chunk, chunk])?;
        self.with_keys(self.clip.embed(&ids)?, prompts)
    }

    /// The embeddings of prompts, with the vectors of keys where those stand.
    fn with_keys(&self, embedded: Tensor, prompts: &[Prompt]) -> Result<Tensor> {
        if prompts.iter().all(|prompt| prompt.keys().is_empty()) {
            return Ok(embedded);
        }
        let (chunk, channels) = (self.tokenizer.max_length(), embedded.last());
        let (mut values, positions) = (embedded.to_f32()?, self.clip.position_vectors()?);
        for (prompt, values) in prompts.iter().zip(values.chunks_exact_mut(prompts[0].ids().len() * channels))
        {
            for (at, key) in prompt.keys() {
                if key.channels() != channels {
                    let of_key = key.channels();
                    return Err(Error::Lora(format!(
                        "a tag's word vectors have {of_key} channels, those of this model {channels}; they are of another \
                         kind of Stable Diffusion"
                    )));
                }
                let place = &mut values[at * channels..][..key.vectors().len()];
                let positions = &positions[at % chunk * channels..];
                for ((value, vector), position) in place.iter_mut().zip(key.vectors()).zip(positions) {
                    *value = vector + position;
                }
            }
        }
        Ok(Tensor::from_f32(embedded.gpu(), &values, embedded.shape(), embedded.dtype())?)
    }
}

/// Multiplies the states of one chunk by the weights of its tokens, and then all of them by what gives the chunk its
/// old mean again. A chunk without weights keeps its bits.
fn emphasise(values: &mut [f32], weights: &[f32]) {
    if weights.iter().all(|weight| *weight == 1.0) {
        return;
    }
    let sum = |values: &[f32]| values.iter().map(|v| f64::from(*v)).sum::<f64>();
    let before = sum(values);
    for (state, weight) in values.chunks_exact_mut(values.len() / weights.len()).zip(weights) {
        state.iter_mut().for_each(|v| *v *= weight);
    }
    let restore = (before / sum(values)) as f32;
    if restore.is_finite() {
        values.iter_mut().for_each(|v| *v *= restore);
    }
}

#[cfg(test)]
mod tests {
    use super::emphasise;

    #[test]
    fn weights_keep_the_mean() {
        let mut values = vec![1.0, 2.0, 3.0, 4.0];
        emphasise(&mut values, &[1.0, 1.0]);
        assert_eq!(values, [1.0, 2.0, 3.0, 4.0]);
        emphasise(&mut values, &[1.0, 2.0]);
        assert_eq!(values.iter().sum::<f32>(), 10.0);
        assert!((values[2] / values[0] - 6.0).abs() < 1e-6);
        // a mean of 0 cannot be restored
        let mut balanced = vec![1.0, -1.0];
        emphasise(&mut balanced, &[1.0, 1.0 / 0.9]);
        assert!(balanced.iter().all(|v| v.is_finite()));
    }
}
