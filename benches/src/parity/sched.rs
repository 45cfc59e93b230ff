//! Noise schedule and samplers, on the host.

use anyhow::{Context, Result, ensure};
use strata_model::config::{BetaSchedule, Spacing};
use strata_model::{NoiseSchedule, Plan, Sampler, Sampling, SchedulerConfig, Sigmas};

use super::check::Checker;

/// A series of the goldens: its name, the sampler, and what differs from the sampler's own settings.
type Series = (&'static str, &'static str, Option<Spacing>, Option<Sigmas>, f64);

const SERIES: [Series; 13] = [
    ("ddim", "ddim", None, None, 0.0),
    ("ddim_trailing", "ddim", Some(Spacing::Trailing), None, 0.0),
    ("ddim_eta1", "ddim", None, None, 1.0),
    ("ddpm", "ddpm", None, None, 0.0),
    ("pndm", "pndm", None, None, 0.0),
    ("euler", "euler", None, None, 0.0),
    ("euler_leading", "euler", Some(Spacing::Leading), None, 0.0),
    ("euler_karras", "euler", None, Some(Sigmas::Karras), 0.0),
    ("euler_a", "euler_a", None, None, 0.0),
    ("dpmpp_2m", "dpmpp_2m", None, None, 0.0),
    ("dpmpp_2m_leading", "dpmpp_2m", Some(Spacing::Leading), None, 0.0),
    ("dpmpp_2m_karras", "dpmpp_2m", None, Some(Sigmas::Karras), 0.0),
    ("dpmpp_2m_sde_karras", "dpmpp_2m_sde", None, Some(Sigmas::Karras), 0.0),
];

/// `sched.*`: ᾱ, noising, velocity, SNR, and ten steps of every sampler with a made-up model.
pub(crate) fn schedulers(c: &mut Checker) -> Result<()> {
    // the schedulers of the goldens differ from the pipeline's in nothing but these
    let config = SchedulerConfig {
        beta_schedule: BetaSchedule::ScaledLinear,
        clip_sample: false,
        set_alpha_to_one: false,
        steps_offset: 1,
        timestep_spacing: None,
        ..c.checkpoint.scheduler()?
    };
    let schedule = NoiseSchedule::new(&config)?;
    let tolerance = c.tolerances.host;
    let alphas: Vec<f32> = schedule.alphas_cumprod().iter().map(|a| *a as f32).collect();
    c.close("sched.alphas_cumprod", &alphas, tolerance);

    let (x0, noise) = (c.goldens.get("sched.x0")?, c.goldens.get("sched.noise")?);
    let (mut noisy, mut velocity, mut snr) = (Vec::new(), Vec::new(), Vec::new());
    for (i, t) in c.goldens.indices("sched.timesteps")?.into_iter().enumerate() {
        let (x0, noise) = (x0.part(i)?.values, noise.part(i)?.values);
        noisy.extend(schedule.add_noise(t as usize)?.apply(&x0, &noise)?);
        velocity.extend(schedule.velocity(t as usize)?.apply(&x0, &noise)?);
        snr.push(schedule.snr(t as usize)? as f32);
    }
    c.close("sched.add_noise", &noisy, tolerance);
    c.close("sched.velocity", &velocity, tolerance);
    c.close("sched.snr", &snr, tolerance);

    for series in SERIES {
        walk(c, &schedule, &config, series).with_context(|| format!("sched.{}", series.0))?;
    }
    Ok(())
}

/// One series: its timesteps, its sigmas where it has some, and every sample.
fn walk(c: &mut Checker, schedule: &NoiseSchedule, config: &SchedulerConfig, series: Series) -> Result<()> {
    let (name, sampler, spacing, sigmas, eta) = series;
    let sampler = Sampler::named(sampler).with_context(|| format!("no sampler {sampler}"))?;
    // that series alone was made without the offset
    let config = &SchedulerConfig {
        steps_offset: if name == "ddpm" { 0 } else { config.steps_offset },
        ..config.clone()
    };
    let samples = c.goldens.get(&format!("sched.{name}.samples"))?;
    ensure!(samples.shape.first().is_some_and(|n| *n > 1), "no steps");
    let (calls, tolerance) = (samples.shape[0] - 1, c.tolerances.sampler);
    // PNDM calls one timestep twice
    let steps = if sampler.name == "pndm" { calls - 1 } else { calls };
    let sampling = Sampling { sampler, steps, sigmas, spacing, eta, ..Sampling::default() };
    let plan = Plan::new(schedule, config, &sampling)?;
    ensure!(plan.calls().len() == calls, "{} calls of the model, not {calls}", plan.calls().len());
    let timesteps: Vec<f32> = plan.calls().iter().map(|call| call.timestep).collect();

    let noise = &c.goldens.get("sched.noise")?.values;
    let mut walk = plan.begin(&c.goldens.get("sched.x0")?.values, None)?;
    let mut all = walk.sample().to_vec();
    let fresh = c.goldens.get("sched.step_noise")?;
    while let Some((_, shown)) = walk.next_call() {
        let i = all.len() / noise.len() - 1;
        let (a, b) = (0.3 + 0.05 * i as f32, 0.5 - 0.02 * i as f32);
        let output = shown.iter().zip(noise).map(|(x, n)| a * x + b * n).collect();
        let values = |k: usize| &fresh.values[k * noise.len()..][..noise.len()];
        walk.step(output, |k, out| out.copy_from_slice(values(k)))?;
        all.extend(walk.sample());
    }
    // those of Karras' sigmas lie between the model's own, and what starts from a sigma is as near as the sigma
    let between = if sigmas == Some(Sigmas::Karras) { tolerance } else { 0.0 };
    c.close(&format!("sched.{name}.timesteps"), &timesteps, between);
    c.close(&format!("sched.{name}.samples"), &all, tolerance);
    let golden = format!("sched.{name}.sigmas");
    let has_sigmas = c.goldens.get(&golden).is_ok();
    if has_sigmas {
        let called = plan.calls().iter().map(|call| call.sigma);
        c.close(&golden, &called.chain([0.0]).collect::<Vec<f32>>(), tolerance);
    }
    let start = if has_sigmas { tolerance } else { 0.0 };
    c.close(&format!("sched.{name}.init_noise_sigma"), &[plan.init_noise_sigma()], start);
    Ok(())
}
