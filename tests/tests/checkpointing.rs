//! Gradient checkpointing changes memory and nothing else.

use std::cell::Cell;

use strata_engine::{DType, Gpu, Tensor};
use strata_kernels::{mse, tape};
use strata_model::{Cx, Error, Gates, LoraSet, RowGates, Rule, Selection, Unet, UnetConfig};
use strata_tests::{Random, Setup, gpu, skipped};

use crate::support::{predict, unet};

/// A LoRA of random numbers on the layers that a pattern selects, and a place for its gradients.
fn attach(gpu: &Gpu, dtype: DType, unet: &mut Unet, select: &str) -> (LoraSet, Tensor) {
    let rule = Rule { select: select.into(), rank: 3, alpha: 3.0, lr: None };
    let matches = Selection::new(&[rule]).unwrap().resolve(unet.layers()).unwrap();
    let set = LoraSet::init(gpu, dtype, &matches, |_, _, _| ()).unwrap();
    let values: Vec<f32> = Random::new("lora").normal(set.params().len()).iter().map(|v| 0.1 * v).collect();
    set.params().write(&values).unwrap();
    set.shadow().iter().for_each(|shadow| shadow.write(&values).unwrap());
    unet.detach_all();
    unet.attach(&set).unwrap();
    let grads = Tensor::zeros(gpu, set.params().shape(), DType::F32).unwrap();
    (set, grads)
}

/// What a pass there and back left.
struct Pass {
    out: Vec<u8>,
    grads: Vec<u8>,
    /// Bytes kept between the two ways, and at most at any time.
    kept: u64,
    peak: u64,
}

fn pass(gpu: &Gpu, dtype: DType, unet: &Unet, set: &LoraSet, grads: &Tensor) -> Pass {
    let tensor = |seed: &str, shape: &[usize], dtype| {
        let values = Random::new(seed).normal(shape.iter().product());
        Tensor::from_f32(gpu, &values, shape, dtype).unwrap()
    };
    grads.fill_zero();
    let (sample, target) =
        (tensor("sample", &[2, 16, 16, 4], DType::F32), tensor("target", &[2, 16, 16, 4], DType::F32));
    let (context, weights) =
        (tensor("context", &[2, 77, 32], dtype), Tensor::from_f32(gpu, &[1.0, 0.5], &[2], DType::F32));
    gpu.reset_peak();
    let before = gpu.stats().live_bytes;
    let tape = tape();
    set.track(&tape, grads).unwrap();
    // dropped before the way back, as a step does
    let gates = Gates::rows(vec![RowGates { samples: vec![1.0, 0.7], text: None, places: None }]);
    let cx = Cx { gates: &gates, ..Cx::new(&tape) };
    let out = predict(unet, &cx, &sample, &[10.0, 700.0], &context).unwrap();
    drop(gates);
    let kept = gpu.stats().live_bytes - before;
    let loss = mse(&tape, &out, &target, &weights.unwrap()).unwrap();
    let scale = Tensor::from_f32(gpu, &[1024.0], &[1], DType::F32).unwrap();
    tape.backward(&loss, scale).unwrap();
    let peak = gpu.stats().peak_bytes - before;
    Pass { out: out.to_bytes().unwrap(), grads: grads.to_bytes().unwrap(), kept, peak }
}

#[test]
fn gradients_have_the_same_bits_and_less_is_kept() {
    for (setup, dtype) in [(Setup::Lane, DType::F32), (Setup::Lane, DType::F16), (Setup::Tile, DType::F32)] {
        let gpu = gpu(setup);
        if dtype == DType::F16 && !gpu.caps().f16 {
            skipped(&format!("gradient checkpointing [f16, {setup:?}]: {} has no f16", gpu.caps().name));
            continue;
        }
        let mut unet = unet(&gpu, "sd15-tiny", dtype);
        // what reaches into every block, what reaches all of them at once, and what lies in the last block alone
        for (select, all) in [
            ("transformer, resnet, conv, conv_in", true),
            ("attn, time_embedding", true),
            ("up_blocks.3 attn", false),
        ] {
            let (set, grads) = attach(&gpu, dtype, &mut unet, select);
            let mut run = |on| {
                unet.set_gradient_checkpointing(on);
                pass(&gpu, dtype, &unet, &set, &grads)
            };
            let (plain, again) = (run(false), run(true));
            let what = format!("{select}, {dtype:?}, {setup:?}");
            assert!(plain.out == again.out, "the output has other bits: {what}");
            assert!(plain.grads == again.grads, "the gradients have other bits: {what}");
            assert!(plain.grads.iter().any(|byte| *byte != 0), "no gradient: {what}");
            let (share, part) = if all { (2, 3) } else { (1, 1) };
            assert!(
                again.kept * share < plain.kept && again.peak * part < plain.peak * share,
                "{} bytes kept, {} without; peak {}, {} without: {what}",
                again.kept,
                plain.kept,
                again.peak,
                plain.peak
            );
        }
    }
}

/// Convolutions wide enough to prepare their weights keep that in the layers, not in the copies that run again.
#[test]
fn weights_are_prepared_once() {
    let gpu = gpu(Setup::Lane);
    let config = UnetConfig {
        block_out_channels: vec![128, 128],
        down_blocks: vec![true, false],
        up_blocks: vec![false, true],
        layers_per_block: 1,
        heads: vec![4, 4],
        cross_attention_dim: 32,
        ..UnetConfig::sd15()
    };
    let mut unet = Unet::random(&gpu, &config, DType::F32, 1).unwrap();
    unet.set_gradient_checkpointing(true);
    let (set, grads) = attach(&gpu, DType::F32, &mut unet, "attn");
    let prepared = || {
        let ((), launches) = gpu
            .profile(|| {
                pass(&gpu, DType::F32, &unet, &set, &grads);
                Ok::<_, strata_engine::Error>(())
            })
            .unwrap();
        let count = |label| launches.iter().filter(|launch| launch.label == label).count();
        (count("winograd weights"), count("winograd output"))
    };
    let (first, outputs) = prepared();
    assert!(0 < first && first < outputs, "{first} of {outputs}");
    assert_eq!(prepared(), (0, outputs));
}

/// What goes wrong when a block runs again is the same error as when it ran the first time.
#[test]
fn errors_keep_their_kind() {
    let gpu = gpu(Setup::Lane);
    let x = Tensor::from_f32(&gpu, &[1.0], &[1], DType::F32).unwrap();
    let tape = tape();
    tape.track(&x);
    let (input, again) = (x.clone(), Cell::new(false));
    let block = move |tape: &strata_engine::Tape| match again.replace(true) {
        false => Ok::<_, Error>(strata_kernels::add(tape, &input, &input)?),
        true => Err(Error::Lora("no gate".into())),
    };
    let y = tape.recompute(block).unwrap();
    let failed = tape.backward(&y, x.clone()).err().expect("the block failed");
    assert_eq!(failed.to_string(), "LoRA: no gate");
    assert!(matches!(Error::from(failed), Error::Lora(message) if message == "no gate"));
    // the engine's own come back as they were
    let own = strata_engine::Error::from(Error::from(strata_engine::Error::op("add", "differ")));
    assert!(matches!(own, strata_engine::Error::Op { op: "add", .. }), "{own}");
}
