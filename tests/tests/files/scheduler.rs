//! The noise schedule and the samplers, against diffusers' numbers.

use serde_json::{Value, json};
use strata_model::config::Spacing;
use strata_model::{NoiseSchedule, Plan, SAMPLERS, Sampler, Sampling, SchedulerConfig, Sigmas};
use strata_tests::{compare, rms};
use tempfile::tempdir;

use crate::support::{MODELS, golden, golden_tensors, put, refused};

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

#[track_caller]
fn close(what: &str, got: &[f32], want: &[f32], tolerance: f64) {
    let want = wide(want);
    compare(what, &wide(got), &want, rms(&want), tolerance).unwrap();
}

fn config(text: &Value) -> SchedulerConfig {
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

fn named(name: &str) -> &'static Sampler {
    Sampler::named(name).unwrap()
}

/// The sampler's samples with a model that is a formula, after the start.
fn walk(plan: &Plan, x0: &[f32], noise: &[f32], fresh: &[f32]) -> Vec<f32> {
    let mut walk = plan.begin(x0, None).unwrap();
    let mut all = Vec::new();
    for i in 0..plan.calls().len() {
        let (t, shown) = walk.next_call().unwrap();
        assert_eq!(t, plan.calls()[i].timestep);
        let (a, b) = (0.3 + 0.05 * i as f32, 0.5 - 0.02 * i as f32);
        let output = shown.iter().zip(noise).map(|(x, n)| a * x + b * n).collect();
        walk.step(output, |k, out| out.copy_from_slice(&fresh[k * out.len()..][..out.len()])).unwrap();
        all.extend(walk.sample());
    }
    assert!(walk.next_call().is_none());
    refused(walk.step(noise.to_vec(), |_, _| ()), &["step"]);
    all
}

/// `tools/samplers.py`: every sampler, plain and Karras, spacings, both predictions, zero-terminal SNR.
#[test]
fn samplers_walk_as_diffusers_do() {
    let table: Value = serde_json::from_str(include_str!("../../goldens/samplers.json")).unwrap();
    fn numbers(value: &Value) -> Vec<f32> {
        match value {
            Value::Array(values) => values.iter().flat_map(numbers).collect(),
            number => vec![number.as_f64().unwrap() as f32],
        }
    }
    let [x0, noise, fresh] = ["x0", "noise", "fresh"].map(|key| numbers(&table[key]));
    let cases = table["cases"].as_array().unwrap();
    for case in cases {
        let name = format!("{} {}", case["sampler"], case["config"]);
        let config = config(&case["config"]);
        let schedule = NoiseSchedule::new(&config).unwrap();
        let (sampler, steps) =
            (named(case["sampler"].as_str().unwrap()), case["steps"].as_u64().unwrap() as usize);
        let plan =
            Plan::new(&schedule, &config, &Sampling { sampler, steps, ..Sampling::default() }).unwrap();
        let timesteps: Vec<f32> = plan.calls().iter().map(|call| call.timestep).collect();
        close(&name, &timesteps, &numbers(&case["timesteps"]), 1e-6);
        close(&name, &[plan.init_noise_sigma()], &numbers(&case["init_noise_sigma"]), 1e-6);
        let samples = walk(&plan, &x0, &noise, &fresh);
        // a start at σ = 4096, where zero-terminal SNR begins, is kept in f32 to 2e-4
        let tolerance = if plan.init_noise_sigma() > 100.0 { 1e-5 } else { 2e-6 };
        close(&name, &samples, &numbers(&case["samples"]), tolerance);
    }
    // each sampler is in this table or in the other goldens
    let walked: Vec<&str> = cases.iter().filter_map(|case| case["sampler"].as_str()).collect();
    assert!(SAMPLERS.iter().all(|sampler| walked.contains(&sampler.name)), "{walked:?}");
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let base = json!({ "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": false });
    let with = |key: &str, value: Value| {
        let mut changed = base.clone();
        changed[key] = value;
        config(&changed)
    };
    let good = config(&base);
    let schedule = NoiseSchedule::new(&good).unwrap();
    let plan = |sampling: Sampling| Plan::new(&schedule, &good, &sampling);
    let any = Sampling::default;
    let karras = Some(Sigmas::Karras);
    refused(plan(Sampling { steps: 0, ..any() }), &["0 steps", "1 to 1000"]);
    refused(plan(Sampling { steps: 1001, ..any() }), &["1001 steps"]);
    refused(plan(Sampling { sampler: named("lcm"), steps: 51, ..any() }), &["51 steps of lcm", "1 to 50"]);
    let leading = Some(Spacing::Leading);
    refused(
        plan(Sampling { sampler: named("unipc"), steps: 1000, spacing: leading, ..any() }),
        &["1000 steps with leading spacing"],
    );
    refused(plan(Sampling { eta: 1.5, ..any() }), &["eta is 1.5"]);
    refused(plan(Sampling { eta: 0.5, sampler: named("heun"), ..any() }), &["heun has no eta", "ddim"]);
    refused(plan(Sampling { sigmas: karras, ..any() }), &["ddim does not take Karras", "euler_a"]);
    refused(
        plan(Sampling { sampler: named("lcm"), spacing: leading, steps: 4, ..any() }),
        &["lcm has a spacing"],
    );
    for strength in [0.0, 1.5, f64::NAN] {
        refused(plan(Sampling { strength, ..any() }), &["strength is"]);
    }
    for key in ["clip_sample", "thresholding"] {
        refused(Plan::new(&schedule, &with(key, true.into()), &any()), &[key]);
    }
    refused(NoiseSchedule::new(&with("beta_end", 1.5.into())), &["beta"]);
    refused(NoiseSchedule::new(&with("trained_betas", json!([0.1, 0.2]))), &["2 trained_betas"]);
    refused(plan(any()).unwrap().begin(&[0.0], Some(&[0.0, 1.0])), &["2 values", "1 of noise"]);
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

/// The last of the steps, from a picture at their noise.
#[test]
fn strength_takes_the_last_steps() {
    let config = SchedulerConfig::sd15();
    let schedule = NoiseSchedule::new(&config).unwrap();
    for sampler in &SAMPLERS {
        let plan = |strength| {
            let sampling = Sampling { sampler, steps: 10, strength, ..Sampling::default() };
            Plan::new(&schedule, &config, &sampling).unwrap()
        };
        let (all, part) = (plan(1.0), plan(0.4));
        let timesteps = |plan: &Plan| {
            let mut visited: Vec<f32> = plan.calls().iter().map(|call| call.timestep).collect();
            visited.dedup();
            visited
        };
        let (all, left) = (timesteps(&all), timesteps(&part));
        assert!(all.ends_with(&left), "{sampler:?}: {left:?} of {all:?}");
        assert!(left.len() == if sampler.name == "dpmpp_sde" { 7 } else { 4 }, "{sampler:?}: {left:?}");
        // as noisy as the model expects it there
        let (walk, sigma) = (part.begin(&[1.0], Some(&[0.0])).unwrap(), part.calls()[0].sigma);
        let (_, shown) = walk.next_call().unwrap();
        assert!((shown[0] - sigma / (sigma * sigma + 1.0).sqrt()).abs() < 1e-5, "{sampler:?}: {shown:?}");
    }
}
