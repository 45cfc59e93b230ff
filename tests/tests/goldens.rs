//! PyTorch's numbers: outputs, activations, gradients, states, whole pictures.

use strata_benches::parity;
use strata_engine::DType;
use strata_tests::{Setup, coop, gpu, skipped};

use crate::support::golden;

fn compare(model: &str, dtype: DType, setup: Setup) {
    let gpu = gpu(setup);
    if dtype == DType::F16 && !gpu.caps().f16 {
        skipped(&format!("{model} [f16, {setup:?}]: {} has no f16", gpu.caps().name));
        return;
    }
    let report = parity::run(&golden(model, ""), None, dtype, &gpu).unwrap();
    let above = report.rows.iter().filter(|row| !row.pass);
    let above: Vec<String> = above
        .map(|row| format!("{}: {:e} is above {:e} {}", row.name, row.error, row.tolerance, row.note))
        .collect();
    let problems = &report.problems;
    assert!(report.pass(), "{model} {dtype:?} {setup:?}:\n{}\n{}", above.join("\n"), problems.join("\n"));
    assert!(report.covered > 1600, "only {} goldens of {} were compared", report.covered, report.total);
}

#[test]
fn sd15_f32() {
    compare("sd15-tiny", DType::F32, Setup::Lane);
}

#[test]
fn sd15_f16() {
    compare("sd15-tiny", DType::F16, Setup::Lane);
}

#[test]
fn sd2_f32() {
    compare("sd2-tiny", DType::F32, Setup::Lane);
}

#[test]
fn sd2_f16() {
    compare("sd2-tiny", DType::F16, Setup::Lane);
}

#[test]
fn sd15_f16_tile() {
    compare("sd15-tiny", DType::F16, Setup::Tile);
}

#[test]
fn sd15_f16_coop() {
    match coop() {
        Some(_) => compare("sd15-tiny", DType::F16, Setup::Coop),
        None => skipped("sd15-tiny on cooperative matrices: the GPU adapter has none"),
    }
}

#[test]
fn sd2_f32_tile() {
    compare("sd2-tiny", DType::F32, Setup::Tile);
}
