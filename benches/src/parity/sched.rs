//! Noise schedule and DDIM, on the host.

use anyhow::{Result, ensure};
use strata_model::config::{BetaSchedule, Spacing};
use strata_model::{Ddim, NoiseSchedule, SchedulerConfig};

use super::check::Checker;

/// `sched.*` of what Strata has: ᾱ, noising, velocity, SNR, and ten DDIM steps with a made-up model in three settings.
pub(crate) fn schedulers(c: &mut Checker) -> Result<()> {
    let config = c.checkpoint.scheduler()?;
    // the schedulers of the goldens differ from the pipeline's in nothing but these
    let config = SchedulerConfig {
        beta_schedule: BetaSchedule::ScaledLinear,
        clip_sample: false,
        set_alpha_to_one: false,
        steps_offset: 1,
        timestep_spacing: Spacing::Leading,
        ..config
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

    let trailing = SchedulerConfig { timestep_spacing: Spacing::Trailing, ..config.clone() };
    for (name, config, eta) in
        [("ddim", &config, 0.0), ("ddim_trailing", &trailing, 0.0), ("ddim_eta1", &config, 1.0)]
    {
        let samples = c.goldens.get(&format!("sched.{name}.samples"))?;
        ensure!(samples.shape.first().is_some_and(|n| *n > 1), "sched.{name}.samples has no steps");
        let steps = samples.shape[0] - 1;
        let ddim = Ddim::new(&schedule, config, steps)?;
        let timesteps: Vec<f32> = ddim.timesteps().iter().map(|t| *t as f32).collect();
        let (mut x, mut all) = (x0.values.clone(), x0.values.clone());
        for i in 0..steps {
            let (a, b) = (0.3 + 0.05 * i as f32, 0.5 - 0.02 * i as f32);
            let output: Vec<f32> = x.iter().zip(&noise.values).map(|(x, n)| a * x + b * n).collect();
            let fresh = c.goldens.get("sched.step_noise")?.part(i)?;
            ddim.step(i, eta, &mut x, &output, Some(&fresh.values))?;
            all.extend(&x);
        }
        c.close(&format!("sched.{name}.timesteps"), &timesteps, 0.0);
        c.close(&format!("sched.{name}.samples"), &all, tolerance);
        // Strata's DDIM starts from plain noise
        c.close(&format!("sched.{name}.init_noise_sigma"), &[1.0], 0.0);
    }
    Ok(())
}
