//! The files of a folder of goldens: PyTorch's inputs, outputs, gradients and states of one pipeline.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// The files of tensors in a folder of goldens.
const FILES: [&str; 3] = ["goldens.safetensors", "goldens_act.safetensors", "goldens_train.safetensors"];
/// One that only some folders have.
const DORA: &str = "goldens_dora.safetensors";

/// What PyTorch was given, which there is nothing to compare with.
const INPUTS: [&str; 18] = [
    "clip.input_ids",
    "vae.image",
    "vae.noise",
    "vae.dec_latent",
    "unet.sample",
    "unet.odd.sample",
    "unet.context",
    "unet.mixed.timesteps",
    "sched.x0",
    "sched.noise",
    "sched.timesteps",
    "sched.step_noise",
    "pipe.latents",
    "train.latents",
    "train.noise",
    "lora.dora_sel.sample",
    "lora.dora_sel.timesteps",
    "lora.dora_sel.context",
];
/// More of them: of the training batches.
const BATCH_INPUTS: [&str; 2] = ["train.timesteps", "train.input_ids"];

/// One tensor, row-major, as PyTorch lays it out (N C H W). Integers are exact: all are below 2²⁴.
pub(crate) struct Golden {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// All goldens of a pipeline.
pub(crate) struct Goldens {
    folder: PathBuf,
    tensors: BTreeMap<String, Golden>,
    /// Relative L2 error of PyTorch's own f32.
    noise: BTreeMap<String, f64>,
    /// `tokens.json`.
    pub prompts: Vec<Prompt>,
    /// The texts of `meta.json`'s `prompts`.
    pub texts: Vec<String>,
}

/// A text and its ids.
#[derive(serde::Deserialize)]
pub(crate) struct Prompt {
    pub text: String,
    pub ids: Vec<u32>,
    pub ids_no_special: Vec<u32>,
}

impl Goldens {
    /// Reads every file of a folder of goldens.
    pub fn open(folder: &Path) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for file in FILES {
            read_tensors(&folder.join(file), &mut tensors)?;
        }
        if folder.join(DORA).exists() {
            read_tensors(&folder.join(DORA), &mut tensors)?;
        }
        let noise = |(name, columns): (String, Vec<Value>)| Some((name, columns.get(1)?.as_f64()?));
        let table: BTreeMap<String, Vec<Value>> = json(&folder.join("tolerances.json"))?;
        #[derive(serde::Deserialize)]
        struct Tokens {
            prompts: Vec<Prompt>,
        }
        #[derive(serde::Deserialize)]
        struct Meta {
            prompts: Vec<String>,
        }
        let tokens: Tokens = json(&folder.join("tokens.json"))?;
        let meta: Meta = json(&folder.join("meta.json"))?;
        ensure!(!tokens.prompts.is_empty(), "{}: no prompts", folder.join("tokens.json").display());
        Ok(Self {
            folder: folder.to_owned(),
            tensors,
            noise: table.into_iter().filter_map(noise).collect(),
            prompts: tokens.prompts,
            texts: meta.prompts,
        })
    }

    /// A tensor by name.
    pub fn get(&self, name: &str) -> Result<&Golden> {
        self.tensors.get(name).ok_or_else(|| anyhow!("{}: no golden {name}", self.folder.display()))
    }

    /// PyTorch's own f32 error of a golden, where there is one.
    pub fn noise(&self, name: &str) -> Option<f64> {
        self.noise.get(name).copied()
    }

    /// The names of all tensors that PyTorch computed.
    pub fn outputs(&self) -> impl Iterator<Item = &str> {
        let inputs = |name: &&str| !INPUTS.contains(name) && !BATCH_INPUTS.contains(name);
        self.tensors.keys().map(String::as_str).filter(inputs)
    }

    /// A tensor as integers.
    pub fn indices(&self, name: &str) -> Result<Vec<u32>> {
        Ok(self.get(name)?.values.iter().map(|v| *v as u32).collect())
    }
}

impl Golden {
    /// The sizes of the axes, where there are `N` of them.
    pub fn axes<const N: usize>(&self) -> Result<[usize; N]> {
        <[usize; N]>::try_from(self.shape.as_slice())
            .map_err(|_| anyhow!("a golden of shape {:?} where {N} axes were expected", self.shape))
    }

    /// Part `i` along the first axis.
    pub fn part(&self, i: usize) -> Result<Self> {
        ensure!(
            self.shape.first().is_some_and(|n| i < *n),
            "no part {i} in a golden of shape {:?}",
            self.shape
        );
        let (shape, size) = (self.shape[1..].to_vec(), self.values.len() / self.shape[0]);
        Ok(Self { shape, values: self.values[i * size..(i + 1) * size].to_vec() })
    }

    /// Values and shape as Strata lays images out: N H W C.
    pub fn nhwc(&self) -> Result<(Vec<f32>, [usize; 4])> {
        let [n, c, h, w] = self.axes()?;
        Ok((to_nhwc(&self.values, [n, c, h, w]), [n, h, w, c]))
    }
}

/// From N C H W to N H W C. `shape` is that of the argument.
pub(crate) fn to_nhwc(values: &[f32], [n, c, h, w]: [usize; 4]) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    for image in values.chunks_exact((c * h * w).max(1)).take(n) {
        out.extend((0..h * w).flat_map(|pixel| (0..c).map(move |channel| image[channel * h * w + pixel])));
    }
    out
}

/// From N H W C to N C H W. `shape` is that of the argument.
pub(crate) fn to_nchw(values: &[f32], [n, h, w, c]: [usize; 4]) -> Vec<f32> {
    // as an image of h·w channels and one row, this is the same turn
    to_nhwc(values, [n, h * w, 1, c])
}

fn read_tensors(path: &Path, tensors: &mut BTreeMap<String, Golden>) -> Result<()> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let file =
        SafeTensors::deserialize(&bytes).with_context(|| format!("{}: damaged file", path.display()))?;
    for (name, view) in file.tensors() {
        let data = view.data();
        let values = match view.dtype() {
            Dtype::F32 => data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::I64 => data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as f32).collect(),
            Dtype::U8 => data.iter().map(|b| f32::from(*b)).collect(),
            other => {
                bail!("{}: {name} is of type {other:?}; goldens are F32, I64 or U8", path.display())
            }
        };
        tensors.insert(name, Golden { shape: view.shape().to_vec(), values });
    }
    Ok(())
}

fn json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{}: not the JSON expected here", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_turn_and_turn_back() {
        let nchw: Vec<f32> = (0..24).map(|i| i as f32).collect();
        let nhwc = to_nhwc(&nchw, [2, 3, 2, 2]);
        assert_eq!(nhwc[..6], [0.0, 4.0, 8.0, 1.0, 5.0, 9.0]);
        assert_eq!(nhwc[12..15], [12.0, 16.0, 20.0]);
        assert_eq!(to_nchw(&nhwc, [2, 2, 2, 3]), nchw);
    }
}
