//! Which body is fastest for which product on a GPU adapter: found out by timing them, and only among those that give the same
//! bits, so that results do not depend on what was tuned.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use strata_engine::{Gpu, Result, Tensor};

use super::{Body, Gemm, IO, LANE, Layout, TILE, coop};
use crate::bodies::chosen;

/// Seconds that the runs of one timing take together, and how many timings the fastest is taken of.
const SECONDS: f64 = 0.02;
const TIMINGS: usize = 3;
/// A body is chosen over the usual one if it takes at most this share of its time.
const GAIN: f64 = 0.97;

/// Bodies that were found to be faster than the usual ones, by product.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tuning(BTreeMap<String, String>);

/// What timing the bodies of one product found.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The product: layout, types, m × n × k, taps, rank, and how many where it is several.
    pub product: String,
    /// The body that would run otherwise.
    pub usual: &'static str,
    /// The body that will run.
    pub body: &'static str,
    /// Time of the usual one / time of the chosen one.
    pub speedup: f64,
}

/// What a GPU adapter's GEMMs know of tuning.
#[derive(Default)]
struct State {
    bodies: HashMap<String, Body>,
    /// While products are being tuned: what was found so far.
    found: Option<Vec<Choice>>,
}

fn state(gpu: &Gpu) -> Arc<Mutex<State>> {
    gpu.once(|_| Arc::new(Mutex::new(State::default())))
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A name for what was tuned here: of the adapter, its driver, the bodies, and the text of the kernels.
///
/// # Errors
/// Those of [`bodies`](crate::bodies).
pub fn tuning_name(gpu: &Gpu) -> Result<String> {
    let caps = gpu.caps();
    let mut hash = Sha256::new();
    let texts = [LANE.source, TILE.source, coop::COOP.source, IO.1];
    for part in [&caps.backend, &caps.name, &caps.driver, chosen(gpu)?.name()].into_iter().chain(texts) {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    Ok(hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Lets the GEMMs of an adapter run the bodies that were found faster there. Names of bodies that do not exist are passed over.
///
/// # Errors
/// Those of [`bodies`](crate::bodies).
pub fn use_tuning(gpu: &Gpu, tuning: &Tuning) -> Result<()> {
    let all = Body::all(gpu)?;
    let body = |name: &String| all.iter().find(|body| body.name == *name).cloned();
    lock(&state(gpu)).bodies =
        tuning.0.iter().filter_map(|(product, name)| Some((product.clone(), body(name)?))).collect();
    Ok(())
}

/// Does `work`, and for every product in it that was not tuned yet finds the fastest body; from then on that one runs.
///
/// # Errors
/// Those of `work`.
pub fn tune<E: From<strata_engine::Error>>(
    gpu: &Gpu,
    tuning: &mut Tuning,
    work: impl FnOnce() -> std::result::Result<(), E>,
) -> std::result::Result<Vec<Choice>, E> {
    let state = state(gpu);
    lock(&state).found = Some(Vec::new());
    let done = work();
    let found = lock(&state).found.take().unwrap_or_default();
    done?;
    tuning.0.extend(found.iter().map(|choice| (choice.product.clone(), choice.body.to_string())));
    Ok(found)
}

/// The body for a product.
pub(super) fn body(gemm: &Gemm<'_>, op: &'static str, shape: &[usize]) -> Result<Body> {
    let gpu = gemm.a.gpu();
    let usual = Body::new(gpu, gemm.b.dtype(), gemm.layout, [(gemm.m / gemm.planes) as u32, gemm.n as u32])?;
    let state = state(gpu);
    {
        let state = lock(&state);
        if state.bodies.is_empty() && state.found.is_none() {
            return Ok(usual);
        }
        if let Some(body) = state.bodies.get(&name(gemm)) {
            return Ok(body.clone());
        }
        if state.found.is_none() {
            return Ok(usual);
        }
    }
    let (body, speedup) = fastest(gemm, &usual, op, shape)?;
    let mut state = lock(&state);
    let choice = Choice { product: name(gemm), usual: usual.name, body: body.name, speedup };
    state.bodies.insert(choice.product.clone(), body.clone());
    state.found.iter_mut().for_each(|found| found.push(choice.clone()));
    Ok(body)
}

/// What the choice of a body may depend on.
fn name(gemm: &Gemm<'_>) -> String {
    let layout = match (gemm.layout, gemm.conv.is_some()) {
        (Layout::Nt, false) => "nt",
        (Layout::Nn, false) => "nn",
        (Layout::Nt, true) => "conv",
        (Layout::Nn, true) => "conv back",
    };
    let [a, b, out] = [gemm.a.dtype(), gemm.b.dtype(), gemm.out].map(strata_engine::DType::wgsl);
    let [kh, kw] = gemm.conv.map_or([1, 1], |conv| conv.kernel);
    let rank = gemm.ext.map_or(0, |ext| ext.s.last());
    let planes = if gemm.planes > 1 { format!(" planes {}", gemm.planes) } else { String::new() };
    let taps = kh * kw;
    format!("{layout} {a} {b} {out} {}×{}×{} taps {taps} rank {rank}{planes}", gemm.m, gemm.n, gemm.c)
}

/// The fastest of the bodies that give the bits of the usual one, and how much faster it is.
fn fastest(gemm: &Gemm<'_>, usual: &Body, op: &'static str, shape: &[usize]) -> Result<(Body, f64)> {
    let gpu = gemm.a.gpu();
    let run = |body: &Body| -> Result<Tensor> { Gemm { body: Some(body.clone()), ..*gemm }.run(op, shape) };
    let expected = run(usual)?.to_bytes()?;
    let usual_seconds = seconds(gpu, || run(usual))?;
    let mut best = (usual.clone(), usual_seconds);
    for body in Body::all(gpu)?
        .into_iter()
        .filter(|body| body.name != usual.name && body.shader.name == usual.shader.name)
        .filter(|body| body.keeps_planes_apart(gemm))
    {
        if run(&body)?.to_bytes()? != expected {
            continue;
        }
        let seconds = seconds(gpu, || run(&body))?;
        if seconds < best.1.min(GAIN * usual_seconds) {
            best = (body, seconds);
        }
    }
    Ok((best.0, usual_seconds / best.1))
}

/// The shortest time of a run, by the GPU's clock where it has one. The first run was before.
fn seconds(gpu: &Gpu, run: impl Fn() -> Result<Tensor>) -> Result<f64> {
    let time = |count: u32| -> Result<f64> {
        let start = Instant::now();
        let ((), seconds) = gpu.time(|| (0..count).try_for_each(|_| run().map(drop)))?;
        Ok(seconds.unwrap_or(start.elapsed().as_secs_f64()) / f64::from(count))
    };
    let count = (SECONDS / time(1)?).ceil().clamp(1.0, 100.0) as u32;
    (0..TIMINGS).try_fold(f64::INFINITY, |best, _| Ok(best.min(time(count)?)))
}
