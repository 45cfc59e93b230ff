//! The samplers: a file for each family, which writes a [`Plan`], and a line for each here.

mod ddim;
mod ddpm;
mod dpmpp_2m;
mod dpmpp_sde;
mod euler;
mod heun;
mod lcm;
mod pndm;
mod unipc;

use std::fmt;

use super::{NoiseSchedule, Plan, Sigmas};
use crate::config::{SchedulerConfig, Spacing};
use crate::{Error, Result, Sampling};

/// A way from noise to a latent.
pub struct Sampler {
    /// Its name in commands.
    pub name: &'static str,
    /// The name that people know it by.
    pub title: &'static str,
    /// A line about it.
    pub about: &'static str,
    /// Whether it takes [`Sigmas::Karras`].
    pub karras: bool,
    /// Whether η means something to it: 0 is deterministic, 1 as much fresh noise as in training.
    pub eta: bool,
    /// How it spaces its timesteps where nobody says; `None` if it has timesteps of its own.
    spacing: Option<Spacing>,
    plan: fn(&Way<'_>) -> Result<Plan>,
}

/// All samplers; the first is the default. Each spaces its timesteps as diffusers' does by default.
pub static SAMPLERS: [Sampler; 11] = [
    row("ddim", "DDIM", "deterministic, or with fresh noise by eta", Some(Spacing::Leading), ddim::plan)
        .eta(),
    row(
        "ddpm",
        "DDPM",
        "training turned around; fresh noise, many steps",
        Some(Spacing::Leading),
        ddpm::plan,
    ),
    row("euler", "Euler", "first order, deterministic", Some(Spacing::Linspace), euler::plan).karras(),
    row("euler_a", "Euler a", "first order, fresh noise", Some(Spacing::Linspace), euler::ancestral).karras(),
    row("heun", "Heun", "second order, two calls a step", Some(Spacing::Linspace), heun::plan).karras(),
    row("dpmpp_2m", "DPM++ 2M", "second order from two steps", Some(Spacing::Linspace), dpmpp_2m::plan)
        .karras(),
    row("dpmpp_2m_sde", "DPM++ 2M SDE", "the same, fresh noise", Some(Spacing::Linspace), dpmpp_2m::sde)
        .karras(),
    row("dpmpp_sde", "DPM++ SDE", "fresh noise, two calls a step", Some(Spacing::Linspace), dpmpp_sde::plan)
        .karras(),
    row("pndm", "PLMS", "fourth order from four steps", Some(Spacing::Leading), pndm::plan),
    row("lcm", "LCM", "4 to 8 steps of a model distilled for it", None, lcm::plan),
    row("unipc", "UniPC", "second order, predicts and corrects", Some(Spacing::Linspace), unipc::plan)
        .karras(),
];

const fn row(
    name: &'static str,
    title: &'static str,
    about: &'static str,
    spacing: Option<Spacing>,
    plan: fn(&Way<'_>) -> Result<Plan>,
) -> Sampler {
    Sampler { name, title, about, karras: false, eta: false, spacing, plan }
}

impl Sampler {
    const fn karras(self) -> Self {
        Self { karras: true, ..self }
    }

    const fn eta(self) -> Self {
        Self { eta: true, ..self }
    }

    /// The sampler of a name.
    pub fn named(name: &str) -> Option<&'static Self> {
        SAMPLERS.iter().find(|sampler| sampler.name == name)
    }
}

/// Names are unique.
impl PartialEq for Sampler {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl fmt::Debug for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// What a sampler's plan depends on.
#[derive(Clone, Copy)]
pub(super) struct Way<'a> {
    pub schedule: &'a NoiseSchedule,
    pub config: &'a SchedulerConfig,
    /// Steps of the whole way.
    pub steps: usize,
    /// Those at the beginning that image to image leaves out.
    pub begin: usize,
    pub spacing: Spacing,
    pub sigmas: Sigmas,
    pub eta: f64,
}

impl Plan {
    /// The way that `sampling` asks for; what it leaves open is as the configuration has it, and else as the sampler is usually
    /// set. Of a picture to begin with only the last `strength` of the steps are taken.
    ///
    /// # Errors
    /// `steps` is 0 or more than there are training timesteps or the sampler can take; timesteps leave that range; the sampler
    /// does not know a setting; or the configuration asks for clipping or thresholding, which are for pixels and not for latents.
    pub fn new(schedule: &NoiseSchedule, config: &SchedulerConfig, sampling: &Sampling) -> Result<Self> {
        let Sampling { sampler, steps, sigmas, spacing, eta, strength, .. } = *sampling;
        let fail = |message: String| Err(Error::Scheduler(message));
        for (key, on) in [("clip_sample", config.clip_sample), ("thresholding", config.thresholding)] {
            if on {
                return fail(format!(
                    "{key} is true, which distorts latents; set it to false in scheduler_config.json"
                ));
            }
        }
        let (total, name) = (schedule.timesteps(), sampler.name);
        if steps == 0 || steps > total {
            return fail(format!("{steps} steps; choose 1 to {total}"));
        }
        if !(0.0..=1.0).contains(&eta) {
            return fail(format!("eta is {eta}; choose 0 (deterministic) to 1"));
        }
        if eta != 0.0 && !sampler.eta {
            return fail(format!("{name} has no eta; it belongs to {}", names(|sampler| sampler.eta)));
        }
        if sigmas == Some(Sigmas::Karras) && !sampler.karras {
            return fail(format!(
                "{name} does not take Karras sigmas; {} do",
                names(|sampler| sampler.karras)
            ));
        }
        if spacing.is_some() && (sampler.spacing.is_none() || sigmas == Some(Sigmas::Karras)) {
            let whose = if sampler.spacing.is_none() { name } else { "Karras sigmas" };
            return fail(format!("{whose} has a spacing of its own; leave spacing out"));
        }
        if !(strength > 0.0 && strength <= 1.0) {
            return fail(format!(
                "strength is {strength}; choose more than 0 (the picture itself) up to 1 (all new)"
            ));
        }
        let way = Way {
            schedule,
            config,
            steps,
            begin: steps - ((steps as f64 * strength) as usize).clamp(1, steps),
            spacing: spacing.or(config.timestep_spacing).or(sampler.spacing).unwrap_or(Spacing::Leading),
            sigmas: sampling.sigmas(config),
            eta,
        };
        (sampler.plan)(&way)
    }
}

fn names(which: impl Fn(&Sampler) -> bool) -> String {
    SAMPLERS
        .iter()
        .filter(|sampler| which(sampler))
        .map(|sampler| sampler.name)
        .collect::<Vec<_>>()
        .join(", ")
}
