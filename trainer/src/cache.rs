//! What the frozen VAE and CLIP say about the dataset, computed once before the U-Net is loaded.
//!
//! Latents are kept as the mean and standard deviation that the VAE gives, not as one sample of them, so that every
//! step draws its own. All numbers lie in host memory, in f32, latents as h × w × channels: 0.3 MB for a picture of
//! 512 × 512 and its caption. VAE and CLIP run in f32 whatever the run's number format is: they run once, and some
//! VAEs overflow f16.

use std::collections::BTreeMap;
use std::path::Path;

use strata_engine::{DType, Gpu, Tape, Tensor};
use strata_model::{Clip, ClipTokenizer, Cx, Vae};

use crate::dataset::{Dataset, mirror};
use crate::run::bar;
use crate::{Error, Result};

/// Latents and text states of a dataset.
#[derive(Debug, Clone)]
pub struct Cache {
    latents: Vec<Posterior>,
    /// Of the mirrored pictures; empty where none is asked for.
    mirrored: Vec<Posterior>,
    latent_shape: [usize; 3],
    scaling: f32,
    /// One per different caption, each tokens × channels; the empty caption is the first.
    texts: Vec<Vec<f32>>,
    text_shape: [usize; 2],
    /// By picture, which of `texts` is its caption's.
    caption: Vec<usize>,
    cut_captions: usize,
}

/// The normal distribution that the VAE gives for the latent of one picture.
#[derive(Debug, Clone)]
pub struct Posterior {
    mean: Vec<f32>,
    std: Vec<f32>,
}

impl Posterior {
    /// Of the two outputs of the VAE's encoder, which are equally long. std = exp(logvar / 2).
    pub fn new(mean: Vec<f32>, logvar: &[f32]) -> Self {
        // as diffusers clamps it, so that a wild prediction cannot become infinite
        let std = logvar.iter().map(|v| libm::expf(0.5 * v.clamp(-30.0, 20.0))).collect();
        Self { mean, std }
    }

    /// A latent: (mean + std · `normal`) · `scaling`, with one standard normal number for each of its values.
    pub fn sample(&self, normal: &[f32], scaling: f32) -> Vec<f32> {
        let pairs = self.mean.iter().zip(&self.std).zip(normal);
        pairs.map(|((mean, std), n)| (mean + std * n) * scaling).collect()
    }
}

impl Cache {
    /// Runs CLIP and VAE of the pipeline folder `model` over a dataset, and its mirrored pictures if `flip`.
    ///
    /// # Errors
    /// The model cannot be read, a picture is damaged, or the GPU fails.
    pub fn build(gpu: &Gpu, model: &Path, dataset: &Dataset, flip: bool) -> Result<Self> {
        let Texts { states: texts, shape: text_shape, caption, cut: cut_captions } =
            encode_captions(gpu, model, dataset)?;
        let vae = Vae::open(gpu, &model.join("vae"), DType::F32)?;
        let (mut latents, mut mirrored) = (Vec::new(), Vec::new());
        let mut latent_shape = [0; 3];
        let size = dataset.resolution();
        let (width, height) = (size.width as usize, size.height as usize);
        let progress = bar(dataset.len() as u64, "pictures");
        for i in 0..dataset.len() {
            let mut rgb = dataset.load_rgb(i)?;
            let (posterior, shape) = encode_picture(gpu, &vae, &rgb, height, width)?;
            latents.push(posterior);
            latent_shape = shape;
            if flip {
                mirror(&mut rgb, width);
                mirrored.push(encode_picture(gpu, &vae, &rgb, height, width)?.0);
            }
            progress.inc(1);
        }
        progress.finish_and_clear();
        let scaling = vae.config().scaling_factor as f32;
        Ok(Self { latents, mirrored, latent_shape, scaling, texts, text_shape, caption, cut_captions })
    }

    /// How many pictures there are.
    #[expect(clippy::len_without_is_empty, reason = "a dataset is never empty")]
    pub fn len(&self) -> usize {
        self.latents.len()
    }

    /// Height, width and channels of a latent.
    pub fn latent_shape(&self) -> [usize; 3] {
        self.latent_shape
    }

    /// Tokens and channels of a text state.
    pub fn text_shape(&self) -> [usize; 2] {
        self.text_shape
    }

    /// A latent of a picture, as [`Posterior::sample`] draws it. `flip` asks for the mirrored picture, and changes
    /// nothing where the cache has none.
    pub fn latent(&self, picture: usize, flip: bool, normal: &[f32]) -> Vec<f32> {
        let mirrored = self.mirrored.get(picture).filter(|_| flip);
        mirrored.unwrap_or(&self.latents[picture]).sample(normal, self.scaling)
    }

    /// Last hidden states of CLIP for the caption of a picture.
    pub fn text(&self, picture: usize) -> &[f32] {
        &self.texts[self.caption[picture]]
    }

    /// How many different captions are longer than CLIP can read; what is over is left out.
    pub fn cut_captions(&self) -> usize {
        self.cut_captions
    }

    /// Last hidden states of CLIP for the empty caption.
    pub fn empty_text(&self) -> &[f32] {
        &self.texts[0]
    }
}

/// What CLIP says about the captions of a dataset.
struct Texts {
    /// Of the empty caption, and then of every other one.
    states: Vec<Vec<f32>>,
    shape: [usize; 2],
    /// By picture, which of `states` is its caption's.
    caption: Vec<usize>,
    /// Different captions that are longer than CLIP's context.
    cut: usize,
}

fn encode_captions(gpu: &Gpu, model: &Path, dataset: &Dataset) -> Result<Texts> {
    let tokenizer = ClipTokenizer::open(&model.join("tokenizer"))?;
    let clip = Clip::open(gpu, &model.join("text_encoder"), DType::F32)?;
    let mut known = BTreeMap::from([("", 0)]);
    let mut captions = vec![""];
    let mut caption = Vec::new();
    for picture in dataset.pictures() {
        caption.push(*known.entry(&picture.caption).or_insert_with(|| {
            captions.push(&picture.caption);
            captions.len() - 1
        }));
    }
    let progress = bar(captions.len() as u64, "captions");
    let mut texts = Texts { states: Vec::new(), shape: [0; 2], caption, cut: 0 };
    for text in captions {
        // two more for BOS and EOS
        texts.cut += usize::from(tokenizer.ids(text)?.len() + 2 > tokenizer.max_length());
        let ids = tokenizer.encode(text)?;
        let ids = Tensor::from_u32(gpu, &ids, &[1, ids.len()])?;
        let hidden = clip.forward(&Cx::new(&Tape::off()), &ids, 0)?;
        texts.shape = [hidden.rows(), hidden.last()];
        texts.states.push(hidden.to_f32()?);
        progress.inc(1);
    }
    progress.finish_and_clear();
    Ok(texts)
}

/// What the VAE gives for one picture, H × W × 3 in [−1, 1], and height, width and channels of its latent.
pub(crate) fn encode_picture(
    gpu: &Gpu,
    vae: &Vae,
    rgb: &[f32],
    height: usize,
    width: usize,
) -> Result<(Posterior, [usize; 3])> {
    let image = Tensor::from_f32(gpu, rgb, &[1, height, width, 3], DType::F32)?;
    let (mean, logvar) = vae.encode(&Cx::new(&Tape::off()), &image)?;
    let &[_, h, w, channels] = mean.shape() else {
        return Err(Error::Dataset(format!(
            "the VAE gives latents of shape {:?}, not [1, h, w, c]",
            mean.shape()
        )));
    };
    Ok((Posterior::new(mean.to_f32()?, &logvar.to_f32()?), [h, w, channels]))
}
