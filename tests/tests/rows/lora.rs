//! Linear layers with LoRA branches.

use strata_engine::{DType, Gpu, Tensor};
use strata_kernels::{Act, Gate, LinearArgs, Lora, Weight, linear, reference, tape};
use strata_tests::{Random, Row, Setup, gpu};

use super::hold;

#[derive(Clone, Copy)]
pub(super) enum GateKind {
    Scalar(f32),
    /// So many gates, of which one is 0.
    Rows(usize),
}

#[derive(Clone, Copy)]
pub(super) struct Branch {
    pub rank: usize,
    pub scale: f32,
    pub gate: GateKind,
}

/// `down`, `up`, and scale · gate by row.
type Factors<'a> = (&'a [f64], &'a [f64], Box<dyn Fn(usize) -> f64 + 'a>);

impl Branch {
    /// Adds the branch's tensors to a row: `down` of this shape and scale, `up` to `out` channels, gates.
    pub fn inputs(&self, row: Row, down: &[usize], out: usize, scale: f64) -> Row {
        let up = [out, self.rank];
        let row = match self.gate {
            // a branch that is off is not launched, so its factors have no gradient
            GateKind::Scalar(0.0) => row.frozen("down", down).frozen("up", &up),
            _ => row.parameter("down", down).scale(scale).parameter("up", &up),
        };
        match self.gate {
            GateKind::Rows(count) => {
                row.frozen_f32("gate", &[count]).map(|i, v| if i == 1 { 0.0 } else { v })
            }
            GateKind::Scalar(_) => row,
        }
    }

    /// The branch of the tensors that come next: down, up, and gates where there are any.
    pub fn lora<'a>(&self, rest: &mut impl Iterator<Item = &'a Tensor>) -> Lora<'a> {
        let mut next = || rest.next().expect("a row has inputs for each branch");
        let (down, up) = (next(), next());
        let gate = match self.gate {
            GateKind::Scalar(factor) => Gate::Scalar(factor),
            GateKind::Rows(_) => Gate::Rows(next().clone()),
        };
        Lora { down, up, scale: self.scale, gate }
    }

    /// The same of values, for `m` rows; none where the branch is off: not even NaN in its factors comes through.
    pub fn factors<'a>(&self, rest: &mut impl Iterator<Item = &'a [f64]>, m: usize) -> Option<Factors<'a>> {
        let mut next = || rest.next().expect("a row has inputs for each branch");
        let (down, up, scale) = (next(), next(), f64::from(self.scale));
        match self.gate {
            GateKind::Scalar(0.0) => None,
            GateKind::Scalar(factor) => Some((down, up, Box::new(move |_| scale * f64::from(factor)))),
            GateKind::Rows(count) => {
                let gates = next();
                Some((down, up, Box::new(move |i| scale * gates[i / (m / count)])))
            }
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Epilogue {
    residual: bool,
    act: Act,
    /// What flows in and out is f32, beside weights and factors in f16, in rows of f16.
    stream: bool,
}

const PLAIN: Epilogue = Epilogue { residual: false, act: Act::None, stream: false };

fn row(
    name: &str,
    lead: &[usize],
    k: usize,
    n: usize,
    epilogue: Epilogue,
    branches: &'static [Branch],
) -> Row {
    let with = |last: usize| [lead, &[last]].concat();
    let m: usize = lead.iter().product();
    let Epilogue { residual, act, stream } = epilogue;
    let ranks: Vec<usize> = branches.iter().map(|b| b.rank).collect();
    let name = format!(
        "linear {:?} → {n}, LoRA {ranks:?}, residual {residual}, {act:?}, stream {stream}, {name}",
        with(k)
    );
    let longest = m.max(n).max(k) + ranks.iter().sum::<usize>();
    let mut row = Row::new(name, &with(n), longest).input("x", &with(k));
    row = row.frozen("w", &[n, k]).scale(1.0 / (k as f64).sqrt()).frozen_f32("bias", &[n]);
    if residual {
        row = row.input("residual", &with(n));
    }
    for branch in branches {
        row = branch.inputs(row, &[branch.rank, k], n, 1.0 / (k as f64).sqrt());
    }
    if stream {
        row = row.stream();
    }
    row.run(move |tape, t| {
        let mut rest = t[3..].iter();
        let residual = if residual { rest.next() } else { None };
        let loras: Vec<Lora<'_>> = branches.iter().map(|branch| branch.lora(&mut rest)).collect();
        linear(
            tape,
            &t[0],
            &Weight::new(t[1].clone())?,
            &LinearArgs {
                bias: Some(&t[2]),
                residual,
                act,
                out: stream.then_some(DType::F32),
                loras: &loras,
            },
        )
    })
    .reference(move |v| {
        let mut rest = v[3..].iter().map(Vec::as_slice);
        let residual = if residual { rest.next() } else { None };
        let factors: Vec<_> = branches.iter().filter_map(|branch| branch.factors(&mut rest, m)).collect();
        let loras: Vec<reference::LoraFactors<'_>> =
            factors.iter().map(|(down, up, scale)| (*down, *up, scale.as_ref())).collect();
        reference::linear(&v[0], &v[1], Some(&v[2]), residual, act, &loras, [m, n, k])
    })
}

#[test]
fn lora_ranks() {
    const ON: GateKind = GateKind::Scalar(1.0);
    const RANKS: [[Branch; 1]; 5] = [
        [Branch { rank: 1, scale: 2.0, gate: ON }],
        [Branch { rank: 2, scale: 0.5, gate: ON }],
        [Branch { rank: 3, scale: 1.0, gate: ON }],
        [Branch { rank: 4, scale: 1.0, gate: ON }],
        [Branch { rank: 8, scale: 0.25, gate: ON }],
    ];
    hold([
        row("", &[3], 5, 7, PLAIN, &RANKS[0]),
        row("", &[1], 1, 1, PLAIN, &RANKS[1]),
        row("", &[2, 17], 20, 33, PLAIN, &RANKS[2]),
        row("", &[77], 32, 40, PLAIN, &RANKS[3]),
        row("", &[2, 33], 13, 20, PLAIN, &RANKS[4]),
        row("", &[65], 64, 64, PLAIN, &RANKS[4]),
    ]);
}

/// More rows than one invocation sums for dA and dB.
#[test]
fn lora_over_many_tokens() {
    const ONE: [Branch; 1] = [Branch { rank: 4, scale: 1.0, gate: GateKind::Scalar(1.0) }];
    hold([row("", &[3, 431], 8, 5, PLAIN, &ONE)]);
}

#[test]
fn lora_gates() {
    static CASES: [[Branch; 1]; 5] = [
        [Branch { rank: 3, scale: 0.75, gate: GateKind::Scalar(0.6) }],
        [Branch { rank: 3, scale: 0.75, gate: GateKind::Scalar(0.0) }],
        [Branch { rank: 4, scale: 0.75, gate: GateKind::Rows(3) }],
        [Branch { rank: 2, scale: 0.75, gate: GateKind::Rows(39) }],
        [Branch { rank: 8, scale: 0.75, gate: GateKind::Rows(1) }],
    ];
    hold([
        row("gate 0.6", &[13], 10, 12, PLAIN, &CASES[0]),
        row("gate 0", &[13], 10, 12, PLAIN, &CASES[1]),
        row("gate per sample", &[3, 13], 12, 8, PLAIN, &CASES[2]),
        row("gate per token", &[3, 13], 7, 9, PLAIN, &CASES[3]),
        row("one gate for all", &[3, 5], 16, 16, PLAIN, &CASES[4]),
    ]);
}

#[test]
fn several_loras_and_epilogues() {
    use GateKind::{Rows, Scalar};
    static TWO: [Branch; 2] =
        [Branch { rank: 4, scale: 0.5, gate: Scalar(1.0) }, Branch { rank: 3, scale: 1.5, gate: Rows(2) }];
    static FOUR: [Branch; 4] = [
        Branch { rank: 1, scale: 1.0, gate: Rows(14) },
        Branch { rank: 8, scale: 1.0, gate: Scalar(0.0) },
        Branch { rank: 2, scale: -1.0, gate: Scalar(0.6) },
        Branch { rank: 4, scale: 1.0, gate: Scalar(1.0) },
    ];
    let case = |residual, act| Epilogue { residual, act, stream: false };
    hold([
        row("two", &[2, 7], 12, 20, PLAIN, &TWO),
        row("two", &[2, 7], 12, 20, case(true, Act::None), &TWO),
        row("two", &[2, 7], 5, 13, case(true, Act::Gelu), &TWO),
        row("four, one off", &[2, 7], 20, 12, case(true, Act::None), &FOUR),
        row("one", &[2, 7], 16, 8, case(true, Act::Silu), &TWO[..1]),
        row("one", &[130], 12, 13, case(true, Act::None), &TWO[..1]),
        row("two", &[2, 7], 12, 16, Epilogue { stream: true, ..case(true, Act::None) }, &TWO),
        row("one", &[2, 5], 7, 9, Epilogue { stream: true, ..PLAIN }, &TWO[..1]),
    ]);
}

fn random(gpu: &Gpu, seed: &str, shape: &[usize], dtype: DType) -> Tensor {
    let values = Random::new(seed).normal(shape.iter().product());
    Tensor::from_f32(gpu, &values, shape, dtype).unwrap()
}

/// With every gate at 0 the output has the bits of the frozen layer, and no kernel more runs.
#[test]
fn a_gate_of_zero_is_the_base_model() {
    for (setup, dtype) in [(Setup::Lane, DType::F16), (Setup::Tile, DType::F32)] {
        let gpu = gpu(setup);
        let x = random(&gpu, "x", &[13, 20], dtype);
        let w = Weight::new(random(&gpu, "w", &[12, 20], dtype)).unwrap();
        let (down, up) = (random(&gpu, "down", &[4, 20], dtype), random(&gpu, "up", &[12, 4], dtype));
        let run = |gates: &[Gate]| {
            let tape = tape();
            tape.track(&down);
            tape.track(&up);
            let before = gpu.stats().launches;
            let lora = |gate: &Gate| Lora { down: &down, up: &up, scale: 1.0, gate: gate.clone() };
            let loras: Vec<Lora<'_>> = gates.iter().map(lora).collect();
            let y = linear(&tape, &x, &w, &LinearArgs { loras: &loras, ..LinearArgs::default() }).unwrap();
            (y.to_bytes().unwrap(), gpu.stats().launches - before, tape.len())
        };
        let base = run(&[]);
        assert_eq!(base.2, 0);
        assert!(run(&[Gate::Scalar(0.0), Gate::Scalar(0.0)]) == base, "{setup:?}");
        assert!(run(&[Gate::Scalar(0.1)]) != base, "{setup:?}");
        // rows that are off have the base's bits, beside rows that are on
        let mut gates = vec![0.0; 13];
        gates[5] = 1.0;
        let gates = Tensor::from_f32(&gpu, &gates, &[13], DType::F32).unwrap();
        let (gated, bytes) = (run(&[Gate::Rows(gates)]).0, 12 * dtype.bytes() as usize);
        for (i, (a, b)) in gated.chunks_exact(bytes).zip(base.0.chunks_exact(bytes)).enumerate() {
            assert_eq!(a == b, i != 5, "row {i}, {setup:?}");
        }
    }
}

/// Factors and sinks on parts of one flat buffer, as a set of LoRAs keeps them.
#[test]
fn factors_may_be_views() {
    for setup in [Setup::Lane, Setup::Tile] {
        let gpu = gpu(setup);
        let (k, n, r, m) = (10, 7, 3, 5);
        let x = random(&gpu, "x", &[m, k], DType::F32);
        let w = Weight::new(random(&gpu, "w", &[n, k], DType::F32)).unwrap();
        let upstream = random(&gpu, "upstream", &[m, n], DType::F32);
        let run = |down: &Tensor, up: &Tensor, sinks: [&Tensor; 2]| {
            let tape = tape();
            tape.track_into(down, sinks[0]);
            tape.track_into(up, sinks[1]);
            let lora = Lora { down, up, scale: 0.5, gate: Gate::Scalar(1.0) };
            let y = linear(&tape, &x, &w, &LinearArgs { loras: &[lora], ..LinearArgs::default() }).unwrap();
            tape.backward(&y, upstream.clone()).unwrap();
            (y.to_f32().unwrap(), sinks.map(|s| s.to_f32().unwrap()))
        };
        let zeros = |shape: &[usize]| Tensor::zeros(&gpu, shape, DType::F32).unwrap();
        let (down, up) = (random(&gpu, "down", &[r, k], DType::F32), random(&gpu, "up", &[n, r], DType::F32));
        let own = run(&down, &up, [&zeros(&[r, k]), &zeros(&[n, r])]);
        let mut values = vec![f32::NAN; 128];
        values[..r * k].copy_from_slice(&down.to_f32().unwrap());
        values[64..64 + n * r].copy_from_slice(&up.to_f32().unwrap());
        let (flat, grads) = (Tensor::from_f32(&gpu, &values, &[128], DType::F32).unwrap(), zeros(&[128]));
        let parts = |t: &Tensor| (t.view(0, &[r, k]).unwrap(), t.view(64, &[n, r]).unwrap());
        let (sinks, factors) = (parts(&grads), parts(&flat));
        assert_eq!(run(&factors.0, &factors.1, [&sinks.0, &sinks.1]), own, "{setup:?}");
        let all = grads.to_f32().unwrap();
        assert!(
            all[r * k..64].iter().chain(&all[64 + n * r..]).all(|v| *v == 0.0),
            "written between the views"
        );
        assert!(grads.guards_intact().unwrap());
    }
}
