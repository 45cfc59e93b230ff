//! Tuning: which body a product runs, and that nothing else changes.

use strata_engine::{DType, Gpu, Result, Tape, Tensor};
use strata_kernels::{LinearArgs, Tuning, Weight, linear, tune, tuning_name, use_tuning};
use strata_tests::{Setup, gpu};

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
    use_tuning(&gpu, &tuning("16×16"));
    assert_eq!(runs(&gpu), ("gemm_lane 16×16".into(), usual.1.clone()), "another body, the same bits");
    use_tuning(&gpu, &tuning("of a later version"));
    assert_eq!(runs(&gpu), usual);
    use_tuning(&gpu, &Tuning::default());
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
    use_tuning(&gpu, &Tuning::default());
}

#[test]
fn what_was_tuned_belongs_to_one_variant() {
    let name = tuning_name(&gpu(Setup::Lane));
    assert!(name.len() == 16 && name.bytes().all(|b| b.is_ascii_hexdigit()), "{name}");
    assert_eq!(name, tuning_name(&gpu(Setup::Lane)));
    assert_ne!(name, tuning_name(&gpu(Setup::Tile)));
}
