//! The noise schedule and DDIM, against diffusers' numbers.

use strata_model::{Ddim, NoiseSchedule, SchedulerConfig};
use strata_tests::{compare, rms};
use tempfile::tempdir;

use crate::support::{MODELS, golden, golden_json, golden_tensors, put, refused};

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

#[track_caller]
fn close(what: &str, got: &[f32], want: &[f32], tolerance: f64) {
    let want = wide(want);
    compare(what, &wide(got), &want, rms(&want), tolerance).unwrap();
}

fn config(text: &serde_json::Value) -> SchedulerConfig {
    let folder = tempdir().unwrap();
    SchedulerConfig::open(&put(folder.path(), "scheduler_config.json", text.to_string())).unwrap()
}

#[test]
fn the_schedule_is_diffusers() {
    for model in MODELS {
        let schedule = SchedulerConfig::open(&golden(model, "scheduler/scheduler_config.json")).unwrap();
        let schedule = NoiseSchedule::new(&schedule).unwrap();
        let goldens = golden_tensors(model, "goldens.safetensors");
        let get = |name: &str| &goldens[name].1;
        let alphas: Vec<f32> = schedule.alphas_cumprod().iter().map(|a| *a as f32).collect();
        close("alphas_cumprod", &alphas, get("sched.alphas_cumprod"), 1e-6);
        let (x0, noise) = (get("sched.x0"), get("sched.noise"));
        // timesteps are I64, which the reader of weights does not take
        let timesteps = timesteps(model);
        let size = x0.len() / timesteps.len();
        let mixed = |mix: &dyn Fn(usize) -> strata_model::Mix| -> Vec<f32> {
            let sample = |(b, t): (usize, &usize)| {
                mix(*t).apply(&x0[b * size..][..size], &noise[b * size..][..size]).unwrap()
            };
            timesteps.iter().enumerate().flat_map(sample).collect()
        };
        close("add_noise", &mixed(&|t| schedule.add_noise(t).unwrap()), get("sched.add_noise"), 1e-6);
        close("velocity", &mixed(&|t| schedule.velocity(t).unwrap()), get("sched.velocity"), 1e-6);
        let snr: Vec<f32> = timesteps.iter().map(|t| schedule.snr(*t).unwrap() as f32).collect();
        close("snr", &snr, get("sched.snr"), 1e-5);
        refused(schedule.add_noise(1000), &["1000", "0 to 999"]);
    }
}

/// `sched.timesteps`.
fn timesteps(model: &str) -> Vec<usize> {
    let timesteps = &golden_tensors(model, "goldens.safetensors")["sched.timesteps"].1;
    timesteps.iter().map(|t| *t as usize).collect()
}

/// Ten steps of a model that is a formula.
#[test]
fn ddim_walks_as_diffusers_does() {
    for model in MODELS {
        let (goldens, meta) = (golden_tensors(model, "goldens.safetensors"), golden_json(model, "meta.json"));
        let get = |name: &str| &goldens[name].1;
        for name in ["ddim", "ddim_eta1", "ddim_trailing"] {
            let settings = &meta["schedulers"][name];
            let config = config(&settings["config"]);
            let schedule = NoiseSchedule::new(&config).unwrap();
            let ddim = Ddim::new(&schedule, &config, 10).unwrap();
            let steps: Vec<f32> = ddim.timesteps().iter().map(|t| *t as f32).collect();
            assert_eq!(&steps, get(&format!("sched.{name}.timesteps")), "{name}");
            let eta = settings["step_kwargs"]["eta"].as_f64().unwrap_or(0.0);
            let (samples, noise, fresh) =
                (get(&format!("sched.{name}.samples")), get("sched.noise"), get("sched.step_noise"));
            let size = noise.len();
            let mut x = get("sched.x0").clone();
            close("the start", &x, &samples[..size], 1e-6);
            for i in 0..10 {
                let (a, b) = (0.3 + 0.05 * i as f32, 0.5 - 0.02 * i as f32);
                let output: Vec<f32> = x.iter().zip(noise).map(|(x, n)| a * x + b * n).collect();
                ddim.step(i, eta, &mut x, &output, Some(&fresh[i * size..][..size])).unwrap();
                close(&format!("{model} {name} step {i}"), &x, &samples[(i + 1) * size..][..size], 5e-6);
            }
        }
    }
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let base = serde_json::json!({ "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": false });
    let with = |key: &str, value: serde_json::Value| {
        let mut changed = base.clone();
        changed[key] = value;
        config(&changed)
    };
    let good = config(&base);
    let schedule = NoiseSchedule::new(&good).unwrap();
    refused(Ddim::new(&schedule, &good, 0), &["0 steps", "1 to 1000"]);
    refused(Ddim::new(&schedule, &good, 1001), &["1001 steps"]);
    for key in ["clip_sample", "thresholding"] {
        refused(Ddim::new(&schedule, &with(key, true.into()), 10), &[key]);
    }
    refused(NoiseSchedule::new(&with("beta_end", 1.5.into())), &["beta"]);
    refused(NoiseSchedule::new(&with("trained_betas", serde_json::json!([0.1, 0.2]))), &["2 trained_betas"]);
    let ddim = Ddim::new(&schedule, &good, 10).unwrap();
    refused(ddim.coefficients(10, 0.0), &["step 10 of 10"]);
    refused(ddim.coefficients(0, 1.5), &["eta is 1.5"]);
    refused(ddim.step(0, 1.0, &mut [0.0], &[0.0], None), &["needs noise"]);
    refused(ddim.step(0, 0.0, &mut [0.0], &[0.0, 1.0], None), &["equally long"]);
    // an ε-model says nothing about pure noise, in training no more than at sampling
    let mut zero_snr = base.clone();
    zero_snr["rescale_betas_zero_snr"] = true.into();
    refused(
        NoiseSchedule::new(&config(&zero_snr)),
        &["timestep 999", "pure noise", "epsilon", "v_prediction"],
    );
    for prediction in ["v_prediction", "sample"] {
        zero_snr["prediction_type"] = prediction.into();
        let schedule = NoiseSchedule::new(&config(&zero_snr)).unwrap();
        assert_eq!(schedule.alpha_cumprod(999).unwrap(), 0.0);
    }
}
