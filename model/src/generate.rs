//! From text to pictures: a sampler with classifier-free guidance.

use image::RgbImage;
use strata_engine::{DType, Tape, Tensor};

use crate::config::{SchedulerConfig, Spacing};
use crate::{
    Conditioning, Cx, Error, Pipeline, Plan, Result, SAMPLERS, Sampler, Sigmas, Takes, Together, UnetInput,
};

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
    /// The way from noise to a latent. Default DDIM.
    pub sampler: &'static Sampler,
    /// Steps of it. Default 30.
    pub steps: usize,
    /// How the noise falls. Default: as the model's configuration has it.
    pub sigmas: Option<Sigmas>,
    /// Which timesteps are visited. Default: as the model's configuration has it, else as the sampler is usually set.
    pub spacing: Option<Spacing>,
    /// How much fresh noise a sampler with η adds, 0 to 1. Default 0.
    pub eta: f64,
    /// How much of a picture that sampling starts from is made anew: the share of the steps that are taken. Default 1.
    pub strength: f64,
    /// How far to go from the unwanted towards the wanted: ε = ε_unwanted + guidance · (ε_wanted − ε_unwanted). At 1
    /// the unwanted has no influence and is not computed. Default 7.5.
    pub guidance: f32,
    /// How far guided outputs are brought back to the spread of the wanted ones, 0 to 1 (arXiv 2305.08891, equation 16): for
    /// models whose last timestep is pure noise. Default 0.
    pub rescale: f32,
    /// How several features in one picture act together. Default [`Together::Sum`].
    pub together: Together,
}

impl Sampling {
    /// How the noise falls with a model of this configuration.
    pub fn sigmas(&self, config: &SchedulerConfig) -> Sigmas {
        let karras = self.sampler.karras && config.use_karras_sigmas;
        self.sigmas.unwrap_or(if karras { Sigmas::Karras } else { Sigmas::Normal })
    }

    /// Whether the unwanted counts.
    pub fn guided(&self) -> bool {
        self.guidance != 1.0
    }
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            sampler: &SAMPLERS[0],
            steps: 30,
            sigmas: None,
            spacing: None,
            eta: 0.0,
            strength: 1.0,
            guidance: 7.5,
            rescale: 0.0,
            together: Together::Sum,
        }
    }
}

/// What a sampling starts from, of the latents' shape.
#[derive(Debug, Clone, Copy)]
pub struct Start<'a> {
    /// Standard normal.
    pub noise: &'a [f32],
    /// Latents of pictures to begin with.
    pub picture: Option<&'a [f32]>,
}

impl Pipeline {
    /// The calls of the model that `sampling` takes.
    ///
    /// # Errors
    /// [`Plan::new`]'s.
    pub fn plan(&self, sampling: &Sampling) -> Result<Plan> {
        Plan::new(&self.schedule, &self.scheduler, sampling)
    }

    /// Samples latents: `start`, [B, h, w, C], becomes a latent for each pair of prompts. At each call the model sees one
    /// batch, the `takes`; [`Wording::takes`](crate::Wording::takes) makes them from prompts and the same `sampling`.
    /// `fresh(k, noise)` fills in the `k`th standard normal noise of samplers that add some. `progress` is called with the
    /// number of calls done after each.
    ///
    /// # Errors
    /// Shapes do not fit, [`Plan::new`]'s, or the GPU fails.
    pub fn sample(
        &self,
        prompts: &Prompts,
        start: Start<'_>,
        shape: [usize; 4],
        takes: &Takes,
        sampling: &Sampling,
        mut fresh: impl FnMut(usize, &mut [f32]),
        mut progress: impl FnMut(usize),
    ) -> Result<Tensor> {
        let plan = self.plan(sampling)?;
        let count: usize = shape.iter().product();
        if start.noise.len() != count {
            return Err(Error::Input(format!(
                "{} values of noise for latents {shape:?}, which have {count}",
                start.noise.len()
            )));
        }
        let conditioning = conditioning(prompts, takes, shape[0])?;
        let gpu = conditioning.states.gpu();
        let tape = Tape::off();
        let cx = Cx { gates: &takes.gates, ..Cx::new(&tape) };
        let batch = [takes.len(), shape[1], shape[2], shape[3]];
        let mut walk = plan.begin(start.noise, start.picture)?;
        let mut calls = 0;
        while let Some((t, shown)) = walk.next_call() {
            let sample = Tensor::from_f32(gpu, &takes.latents(&shown), &batch, DType::F32)?;
            let timesteps = vec![t; batch[0]];
            let input = UnetInput { sample: &sample, timesteps: &timesteps, conditioning: &conditioning };
            let output = self.unet.forward(&cx, &input)?.to_f32()?;
            let (unwanted, wanted) = takes.outputs(&output, shape)?;
            let output = match unwanted.is_empty() {
                true => wanted,
                false => guide(&unwanted, &wanted, sampling, count / shape[0]),
            };
            walk.step(output, &mut fresh)?;
            calls += 1;
            if !walk.sample().iter().all(|v| v.is_finite()) {
                return Err(Error::Input(format!(
                    "step {calls} of sampling gave values that are not finite; use f32, or less guidance or LoRA"
                )));
            }
            progress(calls);
        }
        Ok(Tensor::from_f32(gpu, walk.sample(), &shape, DType::F32)?)
    }

    /// The latent of a picture, [h, w, C], for image to image: the mean of what the VAE says.
    ///
    /// # Errors
    /// Height or width is no multiple of the VAE's, or the GPU fails.
    pub fn encode(&self, picture: &RgbImage) -> Result<Vec<f32>> {
        let values: Vec<f32> = picture.as_raw().iter().map(|v| f32::from(*v) / 127.5 - 1.0).collect();
        let shape = [1, picture.height() as usize, picture.width() as usize, 3];
        let (gpu, tape) = (self.text.clip().gpu(), Tape::off());
        let image = Tensor::from_f32(gpu, &values, &shape, self.vae.dtype())?;
        let (mean, _) = self.vae.encode(&Cx::new(&tape), &image)?;
        let scale = self.vae.config().scaling_factor as f32;
        Ok(mean.to_f32()?.into_iter().map(|v| v * scale).collect())
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

/// What guidance makes of both outputs, whose samples have `size` values each.
fn guide(unwanted: &[f32], wanted: &[f32], sampling: &Sampling, size: usize) -> Vec<f32> {
    let Sampling { guidance, rescale, .. } = *sampling;
    let both = unwanted.iter().zip(wanted);
    let mut guided: Vec<f32> =
        both.map(|(unwanted, wanted)| unwanted + guidance * (wanted - unwanted)).collect();
    if rescale > 0.0 {
        for (guided, wanted) in guided.chunks_exact_mut(size).zip(wanted.chunks_exact(size)) {
            let ratio = spread(wanted) / spread(guided);
            // one that is the same everywhere has no spread to bring back
            if ratio.is_finite() {
                let factor = f64::from(rescale) * ratio + (1.0 - f64::from(rescale));
                guided.iter_mut().for_each(|v| *v = (f64::from(*v) * factor) as f32);
            }
        }
    }
    guided
}

/// The standard deviation of values.
fn spread(values: &[f32]) -> f64 {
    let count = values.len() as f64;
    let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / count;
    (values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / count).sqrt()
}

/// −1 to 1 as 0 to 255, to the nearest and halves to even, as numpy rounds.
fn byte(value: f32) -> u8 {
    ((value / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8
}

#[cfg(test)]
mod tests {
    use super::{Sampling, guide, spread};

    #[test]
    fn rescaling_brings_the_spread_back() {
        let (unwanted, wanted) = ([0.0, 1.0, 5.0, 5.0], [1.0, -1.0, 5.0, 5.0]);
        let with = |rescale| {
            guide(&unwanted, &wanted, &Sampling { guidance: 4.0, rescale, ..Sampling::default() }, 2)
        };
        assert_eq!(with(0.0), [4.0, -7.0, 5.0, 5.0]);
        assert!((spread(&with(1.0)[..2]) - spread(&wanted[..2])).abs() < 1e-6);
        assert!((spread(&with(0.5)[..2]) - (spread(&wanted[..2]) + 5.5) / 2.0).abs() < 1e-6);
        // without a spread there is nothing to bring back
        assert_eq!(with(1.0)[2..], [5.0, 5.0]);
    }
}
