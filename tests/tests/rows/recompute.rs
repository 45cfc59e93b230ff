//! Recomputing a block instead of keeping what it saves.

use strata_engine::{DType, Gpu, Result, Tape, Tensor};
use strata_kernels::{Gate, LinearArgs, Lora, Weight, geglu, layer_norm, linear, tape};
use strata_tests::{Random, Setup, gpu};

const C: usize = 20;
const RANK: usize = 4;

/// The feed-forward block of a transformer, with a LoRA on its first layer.
#[derive(Clone)]
struct Block {
    gamma: Tensor,
    beta: Tensor,
    first: Weight,
    second: Weight,
    down: Tensor,
    up: Tensor,
}

impl Block {
    fn new(gpu: &Gpu, dtype: DType) -> Self {
        let mut random = Random::new("block");
        let mut tensor = |shape: &[usize], dtype| {
            let values: Vec<f32> = random.normal(shape.iter().product()).iter().map(|v| 0.3 * v).collect();
            Tensor::from_f32(gpu, &values, shape, dtype).unwrap()
        };
        Self {
            gamma: tensor(&[C], DType::F32),
            beta: tensor(&[C], DType::F32),
            first: Weight::new(tensor(&[8 * C, C], dtype)).unwrap(),
            second: Weight::new(tensor(&[C, 4 * C], dtype)).unwrap(),
            down: tensor(&[RANK, C], dtype),
            up: tensor(&[8 * C, RANK], dtype),
        }
    }

    fn forward(&self, tape: &Tape, x: &Tensor) -> Result<Tensor> {
        let lora = Lora { down: &self.down, up: &self.up, scale: 1.0, gate: Gate::Scalar(1.0) };
        let h = layer_norm(tape, x, &self.gamma, &self.beta, 1e-5, x.dtype())?;
        let h = linear(tape, &h, &self.first, &LinearArgs { loras: &[lora], ..LinearArgs::default() })?;
        let h = geglu(tape, &h)?;
        linear(tape, &h, &self.second, &LinearArgs { residual: Some(x), ..LinearArgs::default() })
    }
}

/// What a pass through two blocks left: output, gradient of x, the sinks, and the bytes kept between the two ways.
type Left = (Vec<u8>, Option<Vec<u8>>, [Vec<u8>; 2], u64);

fn pass(gpu: &Gpu, dtype: DType, track_x: bool, recompute: bool) -> Left {
    let block = Block::new(gpu, dtype);
    let shape = [2, 33, C];
    let values = |seed: &str| Random::new(seed).normal(shape.iter().product());
    let x = Tensor::from_f32(gpu, &values("x"), &shape, dtype).unwrap();
    let upstream = Tensor::from_f32(gpu, &values("upstream"), &shape, dtype).unwrap();
    let sinks = [&block.down, &block.up].map(|p| Tensor::zeros(gpu, p.shape(), DType::F32).unwrap());
    let before = gpu.stats().live_bytes;
    let tape = tape();
    tape.track_into(&block.down, &sinks[0]);
    tape.track_into(&block.up, &sinks[1]);
    if track_x {
        tape.track(&x);
    }
    let mut y = x.clone();
    // the second block's input is tracked through the first
    for _ in 0..2 {
        let (block, input) = (block.clone(), y.clone());
        y = match recompute {
            true => tape.recompute(move |tape| block.forward(tape, &input)).unwrap(),
            false => block.forward(&tape, &y).unwrap(),
        };
    }
    let kept = gpu.stats().live_bytes - before;
    let grads = tape.backward(&y, upstream).unwrap();
    let dx = grads.get(&x).map(|dx| dx.to_bytes().unwrap());
    assert!(sinks.iter().all(|s| s.guards_intact().unwrap()));
    (y.to_bytes().unwrap(), dx, sinks.map(|s| s.to_bytes().unwrap()), kept)
}

#[test]
fn recomputing_gives_the_same_bits_and_keeps_less() {
    for setup in [Setup::Lane, Setup::Tile] {
        let gpu = gpu(setup);
        for dtype in [DType::F32, DType::F16] {
            for track_x in [true, false] {
                let (plain, again) = (pass(&gpu, dtype, track_x, false), pass(&gpu, dtype, track_x, true));
                let what = format!("{setup:?}, {dtype:?}, x tracked {track_x}");
                assert!(plain.0 == again.0, "the output has other bits: {what}");
                assert_eq!(plain.1.is_some(), track_x);
                assert!(plain.1 == again.1, "the gradient of x has other bits: {what}");
                assert!(plain.2 == again.2, "the gradients of the LoRA have other bits: {what}");
                assert!(plain.2.iter().all(|g| g.iter().any(|b| *b != 0)), "no gradient: {what}");
                assert!(
                    again.3 * 3 < plain.3,
                    "{} bytes kept, {} without recomputing: {what}",
                    again.3,
                    plain.3
                );
            }
        }
    }
}
