//! What the frozen VAE says about pictures, computed once before the U-Net is loaded.
//!
//! Latents are kept as the mean and standard deviation that the VAE gives, not as one sample of them, so that every
//! step draws its own. All numbers lie in host memory, in f32, latents as h × w × channels: 0.3 MB for a picture of
//! 512 × 512 and its caption. The VAE runs in f32 whatever the run's number format is: it runs once, and some overflow f16.

use strata_engine::{DType, Gpu, Tape, Tensor};
use strata_model::{Cx, Vae};

use crate::data::dataset::{Dataset, mirror};
use crate::{Error, Result};
use strata_model::progress::bar;

/// Latents of a dataset.
#[derive(Debug, Clone)]
pub struct Latents {
    latents: Vec<Posterior>,
    /// Of the mirrored pictures; empty where none is asked for.
    mirrored: Vec<Posterior>,
    shape: [usize; 3],
    scaling: f32,
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

    fn is_finite(&self) -> bool {
        self.mean.iter().chain(&self.std).all(|v| v.is_finite())
    }

    /// A latent: (mean + std · `normal`) · `scaling`, with one standard normal number for each of its values.
    pub fn sample(&self, normal: &[f32], scaling: f32) -> Vec<f32> {
        let pairs = self.mean.iter().zip(&self.std).zip(normal);
        pairs.map(|((mean, std), n)| (mean + std * n) * scaling).collect()
    }
}

impl Latents {
    /// Of distributions that are there, all of one shape: height, width and channels.
    pub fn new(latents: Vec<Posterior>, shape: [usize; 3], scaling: f32) -> Self {
        Self { latents, mirrored: Vec::new(), shape, scaling }
    }

    /// Runs the VAE over a dataset, and its mirrored pictures if `flip`.
    ///
    /// # Errors
    /// A picture is damaged, or the GPU fails.
    pub fn encode(gpu: &Gpu, vae: &Vae, dataset: &Dataset, flip: bool) -> Result<Self> {
        let (mut latents, mut mirrored, mut shape) = (Vec::new(), Vec::new(), [0; 3]);
        let size = dataset.resolution();
        let (width, height) = (size.width as usize, size.height as usize);
        let progress = bar(dataset.len() as u64, "pictures");
        for i in 0..dataset.len() {
            let mut rgb = dataset.load_rgb(i)?;
            let (posterior, its_shape) = encode_picture(gpu, vae, &rgb, height, width)?;
            if !posterior.is_finite() {
                return Err(Error::Dataset(format!(
                    "the VAE gives a latent that is not finite for {}; its weights are damaged",
                    dataset.pictures()[i].path.display()
                )));
            }
            latents.push(posterior);
            shape = its_shape;
            if flip {
                mirror(&mut rgb, width);
                mirrored.push(encode_picture(gpu, vae, &rgb, height, width)?.0);
            }
            progress.inc(1);
        }
        progress.finish_and_clear();
        Ok(Self { latents, mirrored, shape, scaling: vae.config().scaling_factor as f32 })
    }

    /// How many pictures there are.
    #[expect(clippy::len_without_is_empty, reason = "a dataset is never empty")]
    pub fn len(&self) -> usize {
        self.latents.len()
    }

    /// Height, width and channels of a latent.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// A latent of a picture, as [`Posterior::sample`] draws it. `flip` asks for the mirrored picture, and changes
    /// nothing where there is none.
    pub fn sample(&self, picture: usize, flip: bool, normal: &[f32]) -> Vec<f32> {
        let mirrored = self.mirrored.get(picture).filter(|_| flip);
        mirrored.unwrap_or(&self.latents[picture]).sample(normal, self.scaling)
    }
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
