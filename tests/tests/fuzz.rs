//! Random lives of tensors, held against what they should be on a CPU: shapes, offsets of views, writes, launches in and out of
//! place, drops that give memory to the next tensor, and memory that goes back to the driver.

use std::cell::RefCell;
use std::rc::Rc;

use half::f16;
use strata_engine::{DType, Gpu, Tape, Tensor};
use strata_kernels::{add, cast, copy};
use strata_tests::{Random, Setup, gpu};

use crate::toy::{Knobs, launch};

/// Tensors that are alive at once, at most.
const ALIVE: usize = 24;

/// A tensor, and what its memory should hold; views share that, from where they start.
struct Twin {
    tensor: Tensor,
    memory: Rc<RefCell<Vec<f32>>>,
    start: usize,
}

impl Twin {
    fn new(tensor: Tensor, values: Vec<f32>) -> Self {
        Self { tensor, memory: Rc::new(RefCell::new(values)), start: 0 }
    }

    fn values(&self) -> Vec<f32> {
        self.memory.borrow()[self.start..self.start + self.tensor.len()].to_vec()
    }

    fn set(&self, values: &[f32]) {
        self.memory.borrow_mut()[self.start..self.start + values.len()].copy_from_slice(values);
    }

    fn check(&self, what: &str) {
        let (is, should_be) = (self.tensor.to_f32().unwrap(), self.values());
        let differs =
            is.iter().zip(&should_be).position(|(is, should_be)| is.to_bits() != should_be.to_bits());
        if let Some(i) = differs {
            let (is, should_be) = (is[i], should_be[i]);
            panic!("{what}: element {i} of {:?} is {is}, not {should_be}", self.tensor);
        }
        assert_eq!(is.len(), should_be.len(), "{what}");
        assert!(
            self.tensor.guards_intact().unwrap(),
            "{what}: something was written behind {:?}",
            self.tensor
        );
    }
}

fn rounded(values: &[f32], dtype: DType) -> Vec<f32> {
    match dtype {
        DType::F16 => values.iter().map(|v| f16::from_f32(*v).to_f32()).collect(),
        _ => values.to_vec(),
    }
}

/// One to three axes, now and then of a size that fills a workgroup or a size class.
fn shape(random: &mut Random) -> Vec<usize> {
    let axis = |random: &mut Random| match random.below(4) {
        0 => [1, 2, 63, 64, 65, 128, 256][random.below(7)],
        _ => 1 + random.below(20),
    };
    (0..=random.below(3)).map(|_| axis(random)).collect()
}

/// So many random operations. `name` is the seed: a difference comes again.
fn live(gpu: &Gpu, name: &str, operations: usize) {
    let mut random = Random::new(name);
    let types = [DType::F32, if gpu.caps().f16 { DType::F16 } else { DType::F32 }];
    let mut alive: Vec<Twin> = Vec::new();
    for i in 0..operations {
        let what = format!("{name}, operation {i}");
        let fresh = alive.is_empty() || (alive.len() < ALIVE && random.below(4) == 0);
        if fresh {
            let (shape, dtype) = (shape(&mut random), types[random.below(2)]);
            let count = shape.iter().product();
            alive.push(match random.below(4) {
                0 => Twin::new(Tensor::zeros(gpu, &shape, dtype).unwrap(), vec![0.0; count]),
                _ => {
                    let values = random.normal(count);
                    let tensor = Tensor::from_f32(gpu, &values, &shape, dtype).unwrap();
                    Twin::new(tensor, rounded(&values, dtype))
                }
            });
            continue;
        }
        let at = random.below(alive.len());
        let twin = &alive[at];
        let (tensor, dtype, count) = (&twin.tensor, twin.tensor.dtype(), twin.tensor.len());
        let made = match random.below(12) {
            0 => {
                let values = random.normal(count);
                tensor.write(&values).unwrap();
                twin.set(&rounded(&values, dtype));
                None
            }
            1 => {
                tensor.fill_zero();
                twin.set(&vec![0.0; count]);
                None
            }
            2 => {
                let step = 256 / dtype.bytes() as usize;
                let start = step * random.below(count.div_ceil(step));
                // whole words: halves are written two at a time
                let left = (count - start) / 2 * 2;
                let part = 2 * (1 + random.below(left.max(2) / 2));
                (part <= left).then(|| Twin {
                    tensor: tensor.view(start, &[part]).unwrap(),
                    memory: twin.memory.clone(),
                    start: twin.start + start,
                })
            }
            3 => {
                let divisors: Vec<usize> = (1..=count).filter(|n| count.is_multiple_of(*n)).collect();
                let rows = divisors[random.below(divisors.len())];
                let tensor = tensor.reshape(&[rows, count / rows]).unwrap();
                Some(Twin { tensor, memory: twin.memory.clone(), start: twin.start })
            }
            4 => Some(Twin::new(copy(tensor).unwrap(), twin.values())),
            5 => {
                let other = types[random.below(2)];
                let values = rounded(&twin.values(), other);
                (other != dtype).then(|| Twin::new(cast(tensor, other).unwrap(), values))
            }
            6 => {
                let sum: Vec<f32> = twin.values().iter().map(|v| v + v).collect();
                Some(Twin::new(add(&Tape::off(), tensor, tensor).unwrap(), rounded(&sum, dtype)))
            }
            // into memory that is there; a launch may not read what it writes
            7 | 8 => {
                let fits = |to: &&Twin| {
                    to.tensor.len() == count
                        && to.tensor.dtype() == dtype
                        && !Rc::ptr_eq(&to.memory, &twin.memory)
                };
                if let Some(to) = alive.iter().find(fits) {
                    let one = Tensor::from_f32(gpu, &[1.0], &[1], dtype).unwrap();
                    launch(tensor, &one, &to.tensor, Knobs { factor: 0.5, ..Knobs::default() }).unwrap();
                    let half: Vec<f32> = twin.values().iter().map(|v| 0.5 * v).collect();
                    to.set(&rounded(&half, dtype));
                }
                None
            }
            9 => {
                twin.check(&what);
                None
            }
            10 => {
                match random.below(8) {
                    0 => gpu.trim().unwrap(),
                    1 => gpu.wait().unwrap(),
                    _ => gpu.flush(),
                }
                assert!(tensor.write(&vec![0.0; count + 1]).is_err() && tensor.view(1, &[count]).is_err());
                None
            }
            _ => {
                alive.swap_remove(at).check(&what);
                None
            }
        };
        alive.extend(made);
        if alive.len() > ALIVE {
            drop(alive.swap_remove(random.below(ALIVE)));
        }
    }
    alive.iter().for_each(|twin| twin.check(&format!("{name}, at its end")));
}

#[test]
fn random_lives_of_tensors_are_those_of_a_cpu() {
    for setup in [Setup::Lane, Setup::Arena, Setup::Minimal] {
        let gpu = gpu(setup);
        let before = gpu.stats().live_bytes;
        for round in 0..4 {
            live(&gpu, &format!("{setup:?} {round}"), 1500);
        }
        assert_eq!(gpu.stats().live_bytes, before, "{setup:?}: memory is lost");
    }
}

#[test]
#[ignore = "takes an hour"]
fn many_random_lives_of_tensors_are_those_of_a_cpu() {
    let (gpu, started) = (gpu(Setup::Lane), std::time::Instant::now());
    let mut rounds = 0;
    while started.elapsed().as_secs() < 3600 {
        live(&gpu, &format!("long {rounds}"), 5000);
        rounds += 1;
    }
    println!("{rounds} rounds of 5000 operations");
}
