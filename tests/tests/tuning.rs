//! Which bodies kernels run with; tuning: which of them a product runs, and that nothing else changes.

use strata_engine::{DType, Gpu, Result, Tape, Tensor};
use strata_kernels::{Bodies, LinearArgs, Tuning, Weight, linear, tune, tuning_name, use_bodies, use_tuning};
use strata_tests::{Setup, gpu};

use crate::cli::command;

const PRODUCT: &str = "nt f32 f32 f32 33×20×48 taps 1 rank 0";

fn product(gpu: &Gpu) -> Result<Tensor> {
    let matrix = |rows: usize| {
        let values: Vec<f32> = (0..rows * 48).map(|i| (i * 7919 % 1009) as f32 / 504.0 - 1.0).collect();
        Tensor::from_f32(gpu, &values, &[rows, 48], DType::F32)
    };
    linear(&Tape::off(), &matrix(33)?, &Weight::new(matrix(20)?)?, &LinearArgs::default())
}

/// What runs, and what it gives.
fn runs(gpu: &Gpu) -> (String, Vec<u8>) {
    let (y, launches) = gpu.profile(|| product(gpu)).unwrap();
    assert_eq!(launches.len(), 1);
    (launches[0].label.clone(), y.to_bytes().unwrap())
}

#[test]
fn a_tuned_product_runs_the_body_that_was_found() {
    let gpu = gpu(Setup::Lane);
    let usual = runs(&gpu);
    assert_eq!(usual.0, "gemm_lane 32×16");
    let tuning =
        |body: &str| serde_json::from_str::<Tuning>(&format!("{{\"{PRODUCT}\": \"{body}\"}}")).unwrap();
    use_tuning(&gpu, &tuning("16×16")).unwrap();
    assert_eq!(runs(&gpu), ("gemm_lane 16×16".into(), usual.1.clone()), "another body, the same bits");
    use_tuning(&gpu, &tuning("of a later version")).unwrap();
    assert_eq!(runs(&gpu), usual);
    use_tuning(&gpu, &Tuning::default()).unwrap();
    assert_eq!(runs(&gpu), usual);
}

#[test]
fn tuning_finds_each_product_once() {
    let gpu = gpu(Setup::Lane);
    let usual = runs(&gpu);
    let mut tuning = Tuning::default();
    let found = tune(&gpu, &mut tuning, || {
        product(&gpu)?;
        product(&gpu).map(drop)
    })
    .unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].product.as_str(), found[0].usual), (PRODUCT, "32×16"));
    assert!(found[0].speedup >= 1.0 && (found[0].body != found[0].usual || found[0].speedup == 1.0));
    assert_eq!(serde_json::to_string(&tuning).unwrap(), format!("{{\"{PRODUCT}\":\"{}\"}}", found[0].body));
    assert_eq!(runs(&gpu), (format!("gemm_lane {}", found[0].body), usual.1));
    // what is known is not looked for again
    assert_eq!(tune(&gpu, &mut tuning, || product(&gpu).map(drop)).unwrap(), []);
    use_tuning(&gpu, &Tuning::default()).unwrap();
}

#[test]
fn what_was_tuned_belongs_to_one_variant() {
    let name = tuning_name(&gpu(Setup::Lane)).unwrap();
    assert!(name.len() == 16 && name.bytes().all(|b| b.is_ascii_hexdigit()), "{name}");
    assert_eq!(name, tuning_name(&gpu(Setup::Lane)).unwrap());
    assert_ne!(name, tuning_name(&gpu(Setup::Tile)).unwrap());
}

#[test]
fn bodies_are_chosen_before_the_first_kernel() {
    let gpu = gpu(Setup::Tile);
    use_bodies(&gpu, Bodies::Tile).unwrap();
    let refused = use_bodies(&gpu, Bodies::Lane).unwrap_err().to_string();
    assert!(refused.contains("tile already") && refused.contains("lane"), "{refused}");
}

#[test]
fn a_misspelt_choice_is_refused() {
    let run = |name: &str| command().args(["devices"]).env("STRATA_GEMM", name).output().unwrap();
    let wrong = run("tiel");
    let err = String::from_utf8(wrong.stderr).unwrap();
    assert_eq!(wrong.status.code(), Some(1), "{err}");
    assert!(err.contains("STRATA_GEMM: `tiel`") && err.contains("lane, tile, coop8, coop16"), "{err}");
    let right = run("tile");
    assert!(String::from_utf8(right.stdout).unwrap().contains("GEMM variant tile"));
}
