//! From text to pictures: DDIM with classifier-free guidance.

use image::RgbImage;
use strata_engine::{DType, Tape, Tensor};

use crate::{Conditioning, Cx, Ddim, Error, Pipeline, Result, Takes, Together, UnetInput};

/// What a batch of pictures is conditioned on.
#[derive(Debug, Clone)]
pub struct Prompts {
    /// Of what each picture should show.
    pub wanted: Conditioning,
    /// Of what it should not.
    pub unwanted: Conditioning,
}

/// How to sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Times that the model is run. Default 30.
    pub steps: usize,
    /// How far to go from the unwanted towards the wanted: ε = ε_unwanted + guidance · (ε_wanted − ε_unwanted). At 1
    /// the unwanted has no influence and is not computed. Default 7.5.
    pub guidance: f32,
    /// How several features in one picture act together. Default [`Together::Sum`].
    pub together: Together,
}

impl Sampling {
    /// Whether the unwanted counts.
    pub fn guided(&self) -> bool {
        self.guidance != 1.0
    }
}

impl Default for Sampling {
    fn default() -> Self {
        Self { steps: 30, guidance: 7.5, together: Together::Sum }
    }
}

impl Pipeline {
    /// Samples latents: `noise`, standard normal [B, h, w, C], becomes a latent for each pair of prompts. At each step the
    /// model sees one batch, the `takes`; [`Wording::takes`](crate::Wording::takes) makes them from prompts and the same
    /// `sampling`. `progress` is called with the number of steps done after each.
    ///
    /// # Errors
    /// Shapes do not fit, the scheduler cannot take so many steps, or the GPU fails.
    pub fn sample(
        &self,
        prompts: &Prompts,
        noise: &[f32],
        shape: [usize; 4],
        takes: &Takes,
        sampling: &Sampling,
        mut progress: impl FnMut(usize),
    ) -> Result<Tensor> {
        let ddim = Ddim::new(&self.schedule, &self.scheduler, sampling.steps)?;
        let count: usize = shape.iter().product();
        if noise.len() != count {
            return Err(Error::Input(format!(
                "{} values of noise for latents {shape:?}, which have {count}",
                noise.len()
            )));
        }
        let conditioning = conditioning(prompts, takes, shape[0])?;
        let gpu = conditioning.states.gpu();
        let tape = Tape::off();
        let cx = Cx { gates: &takes.gates, ..Cx::new(&tape) };
        let batch = [takes.len(), shape[1], shape[2], shape[3]];
        let mut latents = noise.to_vec();
        for (i, &t) in ddim.timesteps().iter().enumerate() {
            let sample = Tensor::from_f32(gpu, &takes.latents(&latents), &batch, DType::F32)?;
            let timesteps = vec![t as f32; batch[0]];
            let input = UnetInput { sample: &sample, timesteps: &timesteps, conditioning: &conditioning };
            let output = self.unet.forward(&cx, &input)?.to_f32()?;
            let (unwanted, wanted) = takes.outputs(&output, shape)?;
            let output = match unwanted.is_empty() {
                true => wanted,
                false => guide(&unwanted, &wanted, sampling.guidance),
            };
            ddim.step(i, 0.0, &mut latents, &output, None)?;
            if !latents.iter().all(|v| v.is_finite()) {
                let message = format!(
                    "step {} of sampling gave values that are not finite; use f32, or less guidance or LoRA",
                    i + 1
                );
                return Err(Error::Input(message));
            }
            progress(i + 1);
        }
        Ok(Tensor::from_f32(gpu, &latents, &shape, DType::F32)?)
    }

    /// The pictures of latents [B, h, w, C], one after the other so that memory is enough for large ones.
    ///
    /// # Errors
    /// The shape does not fit, the VAE's weights make values that are not finite, or the GPU fails.
    pub fn decode(&self, latents: &Tensor) -> Result<Vec<RgbImage>> {
        let (&[_, h, w, c], false) = (latents.shape(), latents.is_empty()) else {
            return Err(Error::Input(format!("latents {:?} are not [B, h, w, C]", latents.shape())));
        };
        let scale = 1.0 / self.vae.config().scaling_factor as f32;
        let values = latents.to_f32()?;
        let tape = Tape::off();
        let picture = |latent: &[f32]| -> Result<RgbImage> {
            let latent: Vec<f32> = latent.iter().map(|v| v * scale).collect();
            let latent = Tensor::from_f32(latents.gpu(), &latent, &[1, h, w, c], self.vae.dtype())?;
            let decoded = self.vae.decode(&Cx::new(&tape), &latent)?;
            let (height, width) = (decoded.shape()[1] as u32, decoded.shape()[2] as u32);
            let values = decoded.to_f32()?;
            let bad = values.iter().filter(|value| !value.is_finite()).count();
            if bad > 0 {
                let largest = latent.to_f32()?.iter().fold(0.0_f32, |most, v| most.max(v.abs()));
                let message = format!(
                    "the VAE made a picture of which {bad} of {} values are not finite, of latents up to {largest:.1e}: where \
                     that is far above 10, take less guidance or LoRA; else its weights (`vae`) are damaged: fetch them again",
                    values.len()
                );
                return Err(Error::Input(message));
            }
            let bytes = values.into_iter().map(byte).collect();
            RgbImage::from_raw(width, height, bytes).ok_or_else(|| {
                Error::Input(format!("decoded {:?} is no picture of three colours", decoded.shape()))
            })
        };
        values.chunks_exact(h * w * c).map(picture).collect()
    }
}

/// What the model is told of every take.
fn conditioning(prompts: &Prompts, takes: &Takes, pictures: usize) -> Result<Conditioning> {
    let Prompts { wanted: Conditioning { states: wanted }, unwanted: Conditioning { states: unwanted } } =
        prompts;
    let &[given, tokens, width] = wanted.shape() else {
        return Err(Error::Input(format!("wanted prompts {:?} must be [B, T, C]", wanted.shape())));
    };
    if wanted.shape() != unwanted.shape() || given != pictures || given != takes.pictures() {
        return Err(Error::Input(format!(
            "wanted prompts {:?} and unwanted ones {:?} for {pictures} latents and takes of {} pictures: all must be as many",
            wanted.shape(),
            unwanted.shape(),
            takes.pictures()
        )));
    }
    let values = takes.context(&wanted.to_f32()?, &unwanted.to_f32()?);
    Conditioning::upload(wanted.gpu(), &values, &[takes.len(), tokens, width], wanted.dtype())
}

fn guide(unwanted: &[f32], wanted: &[f32], guidance: f32) -> Vec<f32> {
    unwanted.iter().zip(wanted).map(|(unwanted, wanted)| unwanted + guidance * (wanted - unwanted)).collect()
}

/// −1 to 1 as 0 to 255, to the nearest and halves to even, as numpy rounds.
fn byte(value: f32) -> u8 {
    ((value / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8
}
