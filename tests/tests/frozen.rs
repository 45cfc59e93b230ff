//! What is frozen costs nothing on the way back.

use strata_engine::{DType, Gpu, Tape, Tensor};
use strata_kernels::{ConvArgs, LinearArgs, Storage, Weight, conv2d, linear, tape};
use strata_model::{Cx, Gates, LoraSet, Rule, Selection, Taps, Unet};
use strata_tests::{Random, Setup, gpu, skipped};

use crate::support::{predict, unet};

fn random(gpu: &Gpu, seed: &str, shape: &[usize]) -> Tensor {
    Tensor::from_f32(gpu, &Random::new(seed).normal(shape.iter().product()), shape, DType::F32).unwrap()
}

/// A linear layer or convolution on the way to a LoRA keeps nothing but its frozen weights.
#[test]
fn frozen_layers_keep_no_input() {
    let gpu = gpu(Setup::Lane);
    let weight = |seed, shape: &[usize]| Weight::new(random(&gpu, seed, shape)).unwrap();
    let (weights, kernel) = (weight("w", &[12, 20]), weight("kernel", &[12, 3, 3, 20]));
    type Op<'a> = &'a dyn Fn(&Tape, &Tensor) -> Tensor;
    let dense: Op<'_> = &|tape, x| linear(tape, x, &weights, &LinearArgs::default()).unwrap();
    let convolution: Op<'_> = &|tape, x| conv2d(tape, x, &kernel, &ConvArgs::default()).unwrap();
    for (name, op) in [("linear", dense), ("conv2d", convolution)] {
        let tape = tape();
        let before = gpu.stats().live_bytes;
        let x = random(&gpu, "x", &[1, 13, 22, 20]);
        tape.track(&x);
        let y = op(&tape, &x);
        assert_eq!(tape.len(), 1, "{name}");
        drop(x);
        let kept = gpu.stats().live_bytes - before;
        let twin = Tensor::empty(&gpu, y.shape(), y.dtype()).unwrap();
        let own = gpu.stats().live_bytes - before - kept;
        drop(twin);
        assert_eq!(kept, own, "{name} keeps more than its output");
    }
}

/// What a pass through the U-Net left: closures, bytes kept, and which of the observed activations are tracked.
struct Pass {
    closures: usize,
    kept: u64,
    tracked: Vec<String>,
    frozen: Vec<String>,
}

fn pass(gpu: &Gpu, unet: &Unet, lora: Option<(&LoraSet, &Tensor)>) -> Pass {
    let taps = Taps::new(|path| path.matches('.').count() < 4);
    let sample = random(gpu, "sample", &[2, 16, 16, 4]);
    let context = random(gpu, "context", &[2, 77, 32]);
    let before = gpu.stats().live_bytes;
    let tape = tape();
    if let Some((lora, grads)) = lora {
        lora.track(&tape, grads).unwrap();
    }
    let on = Gates::scalars(&[1.0]);
    let gates = if lora.is_some() { &on } else { Gates::none() };
    let cx = Cx { tape: &tape, gates, taps: Some(&taps) };
    let out = predict(unet, &cx, &sample, &[10.0, 700.0], &context).unwrap();
    let (tracked, frozen) = taps.take().into_iter().partition::<Vec<_>, _>(|(_, t)| tape.tracks(t));
    let names = |list: Vec<(String, Tensor)>| list.into_iter().map(|(path, _)| path).collect();
    let (tracked, frozen) = (names(tracked), names(frozen));
    assert_eq!(tape.tracks(&out), lora.is_some());
    assert!(!tape.tracks(&sample) && !tape.tracks(&context));
    Pass { closures: tape.len(), kept: gpu.stats().live_bytes - before, tracked, frozen }
}

fn select(gpu: &Gpu, unet: &mut Unet, select: &str) -> (LoraSet, Tensor) {
    let rule = Rule { select: select.into(), rank: 4, alpha: 4.0, lr: None };
    let matches = Selection::new(&[rule]).unwrap().resolve(unet.layers()).unwrap();
    let lora = LoraSet::init(gpu, DType::F32, &matches, |_, _, down| down.fill(0.1)).unwrap();
    unet.detach_all();
    unet.attach(&lora).unwrap();
    let grads = Tensor::zeros(gpu, lora.params().shape(), DType::F32).unwrap();
    (lora, grads)
}

#[test]
fn layers_before_the_first_lora_record_nothing() {
    let gpu = gpu(Setup::Lane);
    let mut unet = unet(&gpu, "sd15-tiny", DType::F32);
    let base = pass(&gpu, &unet, None);
    assert_eq!((base.closures, base.tracked.len()), (0, 0));

    let (lora, grads) = select(&gpu, &mut unet, "up_blocks.3");
    let last = pass(&gpu, &unet, Some((&lora, &grads)));
    let (lora, grads) = select(&gpu, &mut unet, "transformer, resnet, conv");
    let all = pass(&gpu, &unet, Some((&lora, &grads)));

    for path in ["conv_in", "down_blocks.0.resnets.0", "mid_block", "up_blocks.2"] {
        assert!(last.frozen.iter().any(|p| p.starts_with(path)), "{path} is tracked or was not seen");
    }
    let early: Vec<_> =
        last.tracked.iter().filter(|p| !p.starts_with("up_blocks.3") && !p.starts_with("conv_")).collect();
    assert!(early.is_empty(), "tracked before the first LoRA: {early:?}");
    assert!(last.tracked.iter().any(|p| p.starts_with("up_blocks.3")));
    assert!(all.tracked.len() > 3 * last.tracked.len());
    assert!(
        4 * last.closures < all.closures,
        "{} closures, {} with LoRA everywhere",
        last.closures,
        all.closures
    );
    // the output and its like are there in any case
    let (some, many) = (last.kept - base.kept, all.kept - base.kept);
    assert!(2 * some < many, "{some} bytes kept, {many} with LoRA everywhere");
}

/// How weights are stored says nothing about what is computed in.
#[test]
fn outputs_have_the_type_of_what_flows() {
    let gpu = gpu(Setup::Lane);
    if !gpu.caps().f16 {
        return skipped(&format!("weights in f16 beside a stream in f32: {} has no f16", gpu.caps().name));
    }
    let x = random(&gpu, "x", &[1, 4, 5, 8]);
    let weight = |shape: &[usize]| {
        let values = Random::new("w").normal(shape.iter().product());
        Weight::from_f32(&gpu, &values, shape, Storage::F16).unwrap()
    };
    let (matrix, kernel, off) = (weight(&[12, 8]), weight(&[12, 3, 3, 8]), Tape::off());
    for residual in [None, Some(&random(&gpu, "residual", &[1, 4, 5, 12]))] {
        let dense = LinearArgs { residual, ..LinearArgs::default() };
        assert_eq!(linear(&off, &x, &matrix, &dense).unwrap().dtype(), DType::F32);
        let args = ConvArgs { residual, ..ConvArgs::default() };
        assert_eq!(conv2d(&off, &x, &kernel, &args).unwrap().dtype(), DType::F32);
    }
    assert!(Weight::new(Tensor::from_u32(&gpu, &[1], &[1]).unwrap()).is_err());
}
