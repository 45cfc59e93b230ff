//! From gradients to an update.

use half::f16;
use strata_engine::{DType, Gpu, Tensor};
use strata_kernels::{AdamW, adamw, grad_norm, reference};
use strata_tests::{Random, Setup, compare, gpu, rms, tolerance};

fn vector(gpu: &Gpu, values: &[f32]) -> Tensor {
    Tensor::from_f32(gpu, values, &[values.len()], DType::F32).unwrap()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

#[test]
fn norms_of_gradients() {
    for setup in [Setup::Lane, Setup::Tile] {
        let gpu = gpu(setup);
        for count in [1, 3, 130, 1023, 1024, 1025, 5000] {
            let values = Random::new(&format!("norm {count}")).normal(count);
            let grads = vector(&gpu, &values);
            let norm = grad_norm(&grads).unwrap();
            assert_eq!(norm.shape(), [1]);
            let want = wide(&values).iter().map(|v| v * v).sum::<f64>().sqrt();
            compare("norm", &wide(&norm.to_f32().unwrap()), &[want], 0.0, tolerance(DType::F32, count))
                .unwrap();
            assert!(norm.guards_intact().unwrap());
            assert_eq!(
                norm.to_bytes().unwrap(),
                grad_norm(&grads).unwrap().to_bytes().unwrap(),
                "other bits"
            );
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for at in [0, count / 2, count - 1] {
                    let mut values = values.clone();
                    values[at] = bad;
                    let norm = grad_norm(&vector(&gpu, &values)).unwrap().to_f32().unwrap();
                    assert!(!norm[0].is_finite(), "{bad} at {at} of {count} gives {norm:?}");
                }
            }
        }
        assert_eq!(grad_norm(&vector(&gpu, &[0.0; 5])).unwrap().to_f32().unwrap(), [0.0]);
    }
}

/// The state of an optimizer on the GPU.
struct State {
    weights: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    shadow: Option<Tensor>,
}

impl State {
    fn new(gpu: &Gpu, weights: &[f32], shadow: bool) -> Self {
        let zeros = vec![0.0; weights.len()];
        let shadow = shadow.then(|| Tensor::from_f32(gpu, weights, &[weights.len()], DType::F16).unwrap());
        Self {
            weights: vector(gpu, weights),
            exp_avg: vector(gpu, &zeros),
            exp_avg_sq: vector(gpu, &zeros),
            shadow,
        }
    }

    fn update(&self, grads: &Tensor, args: &AdamW) {
        let norm = grad_norm(grads).unwrap();
        adamw(&self.weights, &self.exp_avg, &self.exp_avg_sq, grads, &norm, self.shadow.as_ref(), args)
            .unwrap();
    }

    fn all(&self) -> Vec<&Tensor> {
        [&self.weights, &self.exp_avg, &self.exp_avg_sq].into_iter().chain(&self.shadow).collect()
    }

    fn bytes(&self) -> Vec<Vec<u8>> {
        self.all().iter().map(|t| t.to_bytes().unwrap()).collect()
    }
}

const ARGS: AdamW = AdamW {
    lr: 1e-2,
    beta1: 0.9,
    beta2: 0.999,
    eps: 1e-8,
    weight_decay: 0.01,
    step: 1,
    grad_scale: 1.0,
    max_norm: 0.0,
};

#[test]
fn adamw_steps() {
    // name, settings, and what gradients are multiplied with
    let cases = [
        ("plain", ARGS, 1.0),
        ("tiny gradients", ARGS, 1e-6),
        ("scaled loss", AdamW { grad_scale: 1.0 / 1024.0, ..ARGS }, 1024.0),
        ("clipped", AdamW { max_norm: 1.0, ..ARGS }, 1.0),
        (
            "scaled and clipped",
            AdamW { grad_scale: 1.0 / 1024.0, max_norm: 0.5, weight_decay: 0.1, ..ARGS },
            1024.0,
        ),
        ("too short to clip", AdamW { max_norm: 1e3, ..ARGS }, 1.0),
        ("other decays", AdamW { beta1: 0.0, beta2: 0.9, eps: 1e-3, ..ARGS }, 1.0),
    ];
    for setup in [Setup::Lane, Setup::Tile, Setup::Arena] {
        let gpu = gpu(setup);
        for (name, args, size) in cases {
            for (count, shadow) in [(1, false), (7, true), (130, true), (1033, false)] {
                let mut random = Random::new(&format!("adamw {name} {count}"));
                let weights = random.normal(count);
                let state = State::new(&gpu, &weights, shadow);
                let mut want = [wide(&weights), vec![0.0; count], vec![0.0; count]];
                for step in 1..=6 {
                    let grads: Vec<f32> = random.normal(count).iter().map(|g| g * size).collect();
                    state.update(&vector(&gpu, &grads), &AdamW { step, ..args });
                    let grads = wide(&grads);
                    let norm = grads.iter().map(|g| g * g).sum::<f64>().sqrt();
                    let [w, m, v] = &mut want;
                    reference::adamw([w, m, v], &grads, norm, &AdamW { step, ..args });
                }
                for (what, (got, want)) in
                    ["weights", "exp_avg", "exp_avg_sq"].iter().zip(state.all().iter().zip(&want))
                {
                    let what = format!("{what} of {count} after 6 steps, {name}, {setup:?}");
                    // six steps of rounding, and the norm's sum
                    compare(
                        &what,
                        &wide(&got.to_f32().unwrap()),
                        want,
                        rms(want),
                        tolerance(DType::F32, 36 + count),
                    )
                    .unwrap();
                    assert!(got.guards_intact().unwrap(), "{what}: guard words");
                }
                if let Some(shadow) = &state.shadow {
                    let weights = state.weights.to_f32().unwrap();
                    let rounded: Vec<f32> = weights.iter().map(|w| f16::from_f32(*w).to_f32()).collect();
                    assert_eq!(shadow.to_f32().unwrap(), rounded, "the f16 copy, {name}");
                    assert!(shadow.guards_intact().unwrap());
                }
            }
        }
    }
}

#[test]
fn a_step_with_gradients_that_are_not_finite_changes_nothing() {
    for setup in [Setup::Lane, Setup::Tile] {
        let gpu = gpu(setup);
        let weights = Random::new("skipped").normal(77);
        let state = State::new(&gpu, &weights, true);
        let good = vector(&gpu, &Random::new("good").normal(77));
        state.update(&good, &AdamW { max_norm: 1.0, ..ARGS });
        let before = state.bytes();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut grads = Random::new("bad").normal(77);
            grads[40] = bad;
            for max_norm in [0.0, 1.0] {
                state.update(&vector(&gpu, &grads), &AdamW { step: 2, max_norm, ..ARGS });
                assert!(state.bytes() == before, "{bad}, {setup:?}");
            }
        }
        state.update(&good, &AdamW { step: 2, ..ARGS });
        assert!(state.bytes() != before, "a good step still counts");
    }
}

#[test]
fn lengths_that_differ_are_refused() {
    let gpu = gpu(Setup::Lane);
    let (three, four, norm) = (vector(&gpu, &[0.0; 3]), vector(&gpu, &[0.0; 4]), vector(&gpu, &[1.0]));
    assert!(adamw(&three, &three, &three, &four, &norm, None, &ARGS).is_err());
    assert!(adamw(&three, &three, &three, &three, &norm, Some(&three), &ARGS).is_err(), "a copy in f32");
    assert!(grad_norm(&Tensor::zeros(&gpu, &[3], DType::F16).unwrap()).is_err());
}
