//! Noisy latents and timesteps that every prompt is tried on.

use std::ops::Range;

use strata_model::NoiseSchedule;
use strata_model::noise::Bits;

use crate::noise::{self, Stream};
use crate::{Error, Result};

/// Into how many bands of equal width the timesteps are cut.
pub(super) const BANDS: usize = 4;

/// A noisy latent and its timestep.
#[derive(Debug, Clone, PartialEq)]
pub struct Draw {
    /// t.
    pub timestep: usize,
    /// z_t = √ᾱ_t z_0 + √(1−ᾱ_t) ε: h · w · channels.
    pub noisy: Vec<f32>,
}

/// The same number of draws for each band of timesteps, band after band.
#[derive(Debug, Clone, PartialEq)]
pub struct Draws {
    draws: Vec<Draw>,
    bands: Vec<Range<usize>>,
    samples: usize,
    shape: [usize; 3],
}

impl Draws {
    /// Draws `samples` times in each of four equal bands of the schedule's timesteps. `shape` is height, width and
    /// channels of the latents z_0, which the draws take in turn; where there are none, z_0 is standard normal.
    ///
    /// Sample s of band b is a function of the seed, b and s alone: t is uniform in its band, ε standard normal. So more
    /// samples keep those that there were.
    ///
    /// # Errors
    /// There is nothing to draw, a latent is of another shape, or the schedule has fewer timesteps than bands.
    pub fn new(
        schedule: &NoiseSchedule,
        shape: [usize; 3],
        seed: u64,
        samples: usize,
        latents: &[Vec<f32>],
    ) -> Result<Self> {
        let (count, total) = (shape.iter().product(), schedule.timesteps());
        if samples == 0 || count == 0 || total < BANDS {
            return Err(Error::Probe(format!(
                "{samples} samples of latents {shape:?} in {BANDS} bands of {total} timesteps: each must be at least 1"
            )));
        }
        if let Some(latent) = latents.iter().find(|latent| latent.len() != count) {
            return Err(Error::Probe(format!(
                "a latent of {} values is not {shape:?}, which has {count}; encode the pictures at the size to probe",
                latent.len()
            )));
        }
        let bands: Vec<_> = (0..BANDS).map(|b| total * b / BANDS..total * (b + 1) / BANDS).collect();
        let mut draws = Vec::new();
        for (b, band) in bands.iter().enumerate() {
            for s in 0..samples {
                let [clean, noise, time] = [0, 1, 2].map(|what| (3 * b + what) as u64);
                let normal = |step: u64| {
                    let mut values = vec![0.0; count];
                    noise::normal(seed, Stream::Probe, step, s as u64, &mut values);
                    values
                };
                let uniform = Bits::new(seed, Stream::Probe, time, s as u64).uniform();
                let timestep = band.start + (uniform * band.len() as f64) as usize;
                let mix = schedule.add_noise(timestep)?;
                let noisy = match latents {
                    [] => mix.apply(&normal(clean), &normal(noise))?,
                    _ => mix.apply(&latents[(b * samples + s) % latents.len()], &normal(noise))?,
                };
                draws.push(Draw { timestep, noisy });
            }
        }
        Ok(Self { draws, bands, samples, shape })
    }

    /// All of them.
    pub fn draws(&self) -> &[Draw] {
        &self.draws
    }

    /// The timesteps of each band.
    pub fn bands(&self) -> &[Range<usize>] {
        &self.bands
    }

    /// How many there are in each band.
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// Height, width and channels.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// Numbers in a latent.
    pub(super) fn values(&self) -> usize {
        self.shape.iter().product()
    }
}
