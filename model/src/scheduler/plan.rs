//! What a sampler does, as numbers: every call of the model, and what the sample becomes after it.
//!
//! All samplers are linear in samples, in what the model said about them, and in noise. So a sampler is a function that writes
//! a [`Plan`] with sums of these, in f64, once; and one loop takes every plan's steps.

use std::collections::BTreeMap;
use std::ops::{Add, Mul, Sub};

use super::Mix;
use crate::config::PredictionType;
use crate::{Error, Result};

/// What a step can be made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    /// The sample before call i.
    Sample(usize),
    /// What the model said in call i.
    Output(usize),
    /// Fresh noise number k.
    Noise(usize),
}

/// A weighted sum.
#[derive(Debug, Clone, Default)]
pub(super) struct Sum(BTreeMap<Source, f64>);

impl Sum {
    fn of(source: Source) -> Self {
        Self(BTreeMap::from([(source, 1.0)]))
    }

    /// Fresh standard normal noise, the `k`th of a plan.
    pub fn noise(k: usize) -> Self {
        Self::of(Source::Noise(k))
    }
}

impl Add for Sum {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        for (source, weight) in other.0 {
            *self.0.entry(source).or_default() += weight;
        }
        self
    }
}

impl Sub for Sum {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self + other * -1.0
    }
}

impl Mul<f64> for Sum {
    type Output = Self;

    fn mul(mut self, factor: f64) -> Self {
        self.0.values_mut().for_each(|weight| *weight *= factor);
        self
    }
}

impl Mul<f64> for &Sum {
    type Output = Sum;

    fn mul(self, factor: f64) -> Sum {
        self.clone() * factor
    }
}

/// How much of a noisy sample is picture and how much is noise: `signal` · x₀ + `noise` · ε, with squares that add up to 1.
#[derive(Debug, Clone, Copy)]
pub(super) struct Level {
    pub signal: f64,
    pub noise: f64,
}

impl Level {
    /// Of ᾱ.
    pub fn of_alpha(alpha: f64) -> Self {
        Self { signal: alpha.sqrt(), noise: (1.0 - alpha).sqrt() }
    }

    /// Of σ, the noise for a signal of 1.
    pub fn of_sigma(sigma: f64) -> Self {
        let signal = 1.0 / (sigma * sigma + 1.0).sqrt();
        Self { signal, noise: sigma * signal }
    }

    /// λ = ln(signal / noise); infinite without noise.
    pub fn lambda(self) -> f64 {
        self.signal.ln() - self.noise.ln()
    }

    /// x₀ and ε as a model that was shown `x` and said `output` implies them.
    pub fn split(self, prediction: PredictionType, x: &Sum, output: &Sum) -> (Sum, Sum) {
        let Self { signal, noise } = self;
        match prediction {
            PredictionType::Epsilon => (x * (1.0 / signal) + output * (-noise / signal), output.clone()),
            PredictionType::VPrediction => (x * signal + output * -noise, x * noise + output * signal),
            PredictionType::Sample => (output.clone(), x * (1.0 / noise) + output * (-signal / noise)),
        }
    }
}

/// One call of the model.
#[derive(Debug, Clone)]
pub struct Call {
    /// Where it is called; between training timesteps with sigmas of one's own.
    pub timestep: f32,
    /// What the sample is multiplied by for it.
    scale: f32,
    /// Noise for a signal of 1 in what the model is shown.
    pub sigma: f32,
    next: Vec<(Source, f32)>,
}

/// Every call of the model on the way from noise to a latent.
#[derive(Debug, Clone)]
pub struct Plan {
    calls: Vec<Call>,
    /// What plain noise is multiplied by to begin.
    init: f32,
    /// What begins in a picture's latent and noise.
    from: Mix,
    /// The last call whose step needs a source.
    last_use: BTreeMap<Source, usize>,
}

/// What is known in a call.
pub(super) struct Told {
    /// The sample before it.
    pub x: Sum,
    /// What the model said.
    pub output: Sum,
    /// The clean latent that it implies.
    pub x0: Sum,
    /// The noise that it implies.
    pub eps: Sum,
}

/// Writes a plan, call by call.
pub(super) struct Planner {
    prediction: PredictionType,
    calls: Vec<(Call, Sum)>,
}

impl Planner {
    pub fn new(prediction: PredictionType) -> Self {
        Self { prediction, calls: Vec::new() }
    }

    /// The model is called on `scale` times the sample, which then is of `level`.
    pub fn call(&mut self, timestep: f64, level: Level, scale: f64) -> Told {
        let i = self.calls.len();
        let (x, output) = (self.sample(i), Sum::of(Source::Output(i)));
        let (x0, eps) = level.split(self.prediction, &(&x * scale), &output);
        let (timestep, scale) = (timestep as f32, scale as f32);
        let call = Call { timestep, scale, sigma: (level.noise / level.signal) as f32, next: Vec::new() };
        self.calls.push((call, Sum::default()));
        Told { x, output, x0, eps }
    }

    /// The sample before call `i`.
    pub fn sample(&self, i: usize) -> Sum {
        Sum::of(Source::Sample(i))
    }

    /// What the sample is after the last call.
    pub fn land(&mut self, next: Sum) {
        if let Some((_, sum)) = self.calls.last_mut() {
            *sum = next;
        }
    }

    /// The plan: `init` is what plain noise is multiplied by to begin, `from` of what a picture's latent and noise are mixed.
    pub fn finish(self, init: f64, from: Mix) -> Plan {
        let mut last_use = BTreeMap::new();
        let mut calls = Vec::with_capacity(self.calls.len());
        for (i, (mut call, sum)) in self.calls.into_iter().enumerate() {
            let next: Vec<_> = sum.0.into_iter().filter(|(_, weight)| *weight != 0.0).collect();
            last_use.extend(next.iter().map(|(source, _)| (*source, i)));
            call.next = next.into_iter().map(|(source, weight)| (source, weight as f32)).collect();
            calls.push(call);
        }
        Plan { calls, init: init as f32, from, last_use }
    }
}

impl Plan {
    /// Every call, the noisiest first.
    pub fn calls(&self) -> &[Call] {
        &self.calls
    }

    /// What plain noise is multiplied by to begin.
    pub fn init_noise_sigma(&self) -> f32 {
        self.init
    }

    /// Begins with standard normal noise, and in image to image with the picture's latent.
    ///
    /// # Errors
    /// Latent and noise differ in length.
    pub fn begin(&self, noise: &[f32], picture: Option<&[f32]>) -> Result<Walk<'_>> {
        let sample = match picture {
            Some(latent) => self.from.apply(latent, noise)?,
            None => noise.iter().map(|n| self.init * n).collect(),
        };
        Ok(Walk { plan: self, at: 0, sample, known: BTreeMap::new() })
    }
}

/// On the way of a [`Plan`].
#[derive(Debug)]
pub struct Walk<'a> {
    plan: &'a Plan,
    at: usize,
    sample: Vec<f32>,
    /// What later steps need.
    known: BTreeMap<Source, Vec<f32>>,
}

impl Walk<'_> {
    /// The timestep of the next call and what the model is shown; `None` at the end.
    pub fn next_call(&self) -> Option<(f32, Vec<f32>)> {
        let call = self.plan.calls.get(self.at)?;
        let shown = match call.scale {
            1.0 => self.sample.clone(),
            scale => self.sample.iter().map(|x| scale * x).collect(),
        };
        Some((call.timestep, shown))
    }

    /// Takes the step after a call in which the model said `output`. `fresh(k, noise)` fills in standard normal noise, the
    /// `k`th of the way; each is asked for at most once, and only where the sampler adds noise.
    ///
    /// # Errors
    /// The way is at its end, or `output` is not as long as the sample.
    pub fn step(&mut self, output: Vec<f32>, mut fresh: impl FnMut(usize, &mut [f32])) -> Result<()> {
        let i = self.at;
        let Some(call) = self.plan.calls.get(i) else {
            return Err(Error::Scheduler(format!("step {i} of {}", self.plan.calls.len())));
        };
        if output.len() != self.sample.len() {
            return Err(Error::Scheduler(format!(
                "sample and output must be equally long, not {} and {}",
                self.sample.len(),
                output.len()
            )));
        }
        let length = self.sample.len();
        self.known.insert(Source::Sample(i), std::mem::take(&mut self.sample));
        self.known.insert(Source::Output(i), output);
        let mut next: Option<Vec<f32>> = None;
        for (source, weight) in &call.next {
            let values = self.known.entry(*source).or_insert_with(|| {
                let mut noise = vec![0.0; length];
                if let Source::Noise(k) = source {
                    fresh(*k, &mut noise);
                }
                noise
            });
            match &mut next {
                None => next = Some(values.iter().map(|v| weight * v).collect()),
                Some(sum) => sum.iter_mut().zip(values).for_each(|(sum, v)| *sum += weight * *v),
            }
        }
        self.sample = next.unwrap_or_else(|| vec![0.0; length]);
        self.known.retain(|source, _| self.plan.last_use.get(source).is_some_and(|last| *last > i));
        self.at += 1;
        Ok(())
    }

    /// The sample as it is now; the latent at the end.
    pub fn sample(&self) -> &[f32] {
        &self.sample
    }
}
