//! Arrays, launches, the pool and the tape, without any of the real ops.

use strata_engine::{DType, Error, Gpu, GpuOptions, Launch, Result, Shader, Tape, Tensor, fold_grid};
use strata_tests::{Setup, gpu};

use crate::toy::{Knobs, launch, scaled};

/// Sums on the host: what a tape needs, from no kernel.
fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let sum: Vec<f32> = a.to_f32()?.iter().zip(b.to_f32()?).map(|(a, b)| a + b).collect();
    Tensor::from_f32(a.gpu(), &sum, a.shape(), a.dtype())
}

fn message<T>(result: Result<T>) -> String {
    result.map(|_| ()).expect_err("should be refused").to_string()
}

fn vector(gpu: &Gpu, values: &[f32]) -> Tensor {
    Tensor::from_f32(gpu, values, &[values.len()], DType::F32).unwrap()
}

#[test]
fn values_come_back_as_they_went() {
    let gpu = gpu(Setup::Lane);
    let values = [1.0, -2.5, 1.0 / 3.0, 65504.0, 1e-7, f32::INFINITY, -0.0];
    for count in 1..=values.len() {
        let exact = Tensor::from_f32(&gpu, &values[..count], &[count], DType::F32).unwrap();
        assert_eq!(exact.to_f32().unwrap(), &values[..count]);
        let half = Tensor::from_f32(&gpu, &values[..count], &[count], DType::F16).unwrap();
        let rounded: Vec<f32> = values[..count].iter().map(|v| half::f16::from_f32(*v).to_f32()).collect();
        assert_eq!(half.to_f32().unwrap(), rounded, "{count} halves");
        assert_eq!(half.to_bytes().unwrap().len(), 2 * count);
        assert!(exact.guards_intact().unwrap() && half.guards_intact().unwrap());
    }
    let indices = Tensor::from_u32(&gpu, &[1, u32::MAX], &[2]).unwrap();
    assert_eq!(indices.to_bytes().unwrap(), [1, 0, 0, 0, 255, 255, 255, 255]);
}

#[test]
fn fresh_tensors_are_poisoned_and_guarded() {
    let gpu = gpu(Setup::Lane);
    for dtype in [DType::F32, DType::F16] {
        // returned to the pool with numbers in it, to be found again
        drop(Tensor::zeros(&gpu, &[33], dtype).unwrap());
        let fresh = Tensor::empty(&gpu, &[33], dtype).unwrap();
        assert!(fresh.to_f32().unwrap().iter().all(|v| v.is_nan()), "{dtype:?}");
        assert!(fresh.guards_intact().unwrap());
        fresh.fill_zero();
        assert_eq!(fresh.to_f32().unwrap(), [0.0; 33]);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let gpu = gpu(Setup::Lane);
    let six = vector(&gpu, &[0.0; 6]);
    assert!(
        message(Tensor::from_f32(&gpu, &[1.0; 5], &[2, 3], DType::F32)).contains("5 values for shape [2, 3]")
    );
    assert!(message(Tensor::from_u32(&gpu, &[1; 5], &[2, 3])).contains("5 indices for shape [2, 3]"));
    assert!(message(six.write(&[1.0])).contains("1 values into [6]"));
    assert!(message(six.reshape(&[4])).contains("[4]"));
    assert!(message(six.view(1, &[2])).contains("elements 1..3"));
    assert!(message(six.view(0, &[7])).contains("elements 0..7"));
    assert!(message(Tensor::from_u32(&gpu, &[1], &[1]).unwrap().to_f32()).contains("u32"));
    assert!(matches!(Tensor::empty(&gpu, &[1 << 40], DType::F32), Err(Error::TooLarge { .. })));
}

#[test]
fn a_missing_adapter_says_what_there_is_and_what_to_install() {
    for wanted in ["no such thing", "99"] {
        let options = GpuOptions { adapter: Some(wanted.into()), ..GpuOptions::default() };
        let message = message(Gpu::open(&options));
        for part in [wanted, "0: ", "mesa-vulkan-drivers"] {
            assert!(message.contains(part), "{message}");
        }
    }
    let listed = Gpu::list();
    assert!(!listed.is_empty());
    let by_index = GpuOptions { adapter: Some("0".into()), ..GpuOptions::default() };
    assert_eq!(Gpu::open(&by_index).unwrap().caps().name, listed[0].caps.name);
}

/// The host writes whole words: a part that ended within one would take the next element with it.
#[test]
fn a_view_of_halves_ends_on_a_word() {
    let gpu = gpu(Setup::Lane);
    let all = Tensor::from_f32(&gpu, &[1.0; 261], &[261], DType::F16).unwrap();
    assert!(message(all.view(128, &[3])).contains("128..131"));
    all.view(128, &[4]).unwrap().write(&[2.0; 4]).unwrap();
    all.view(256, &[5]).unwrap().write(&[3.0; 5]).unwrap();
    let wanted: Vec<f32> = (0..261)
        .map(|i| if i >= 256 { 3.0 } else { 1.0 + f32::from(u8::from((128..132).contains(&i))) })
        .collect();
    assert_eq!(all.to_f32().unwrap(), wanted);
}

#[test]
fn views_share_memory_and_have_an_identity_of_their_own() {
    let gpu = gpu(Setup::Lane);
    let values: Vec<f32> = (0..200).map(|i| i as f32).collect();
    let all = vector(&gpu, &values);
    let part = all.view(64, &[2, 5]).unwrap();
    assert_eq!(part.to_f32().unwrap(), &values[64..74]);
    assert_ne!(part.id(), all.id());
    assert_eq!(all.reshape(&[10, 20]).unwrap().id(), all.id());
    let (other, two) = (vector(&gpu, &values), vector(&gpu, &[2.0; 5]));
    launch(&part, &two, &other.view(128, &[2, 5]).unwrap(), Knobs::default()).unwrap();
    let refused = message(launch(&part, &two, &all.view(128, &[2, 5]).unwrap(), Knobs::default()));
    assert!(refused.contains("on the same memory"), "{refused}");
    part.fill_zero();
    assert!(part.guards_intact().unwrap());
    let (all, other) = (all.to_f32().unwrap(), other.to_f32().unwrap());
    assert_eq!(all[63..75], [63.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 74.0]);
    let doubled: Vec<f32> = values[64..74].iter().map(|v| 2.0 * v).collect();
    assert_eq!(other[128..138], doubled);
    assert_eq!((other[127], other[138]), (127.0, 138.0));
}

#[test]
fn launches_writes_and_fills_run_in_the_order_they_were_given() {
    for setup in [Setup::Lane, Setup::Arena] {
        let gpu = gpu(setup);
        let (x, two) = (vector(&gpu, &[1.0]), vector(&gpu, &[2.0]));
        let (sum, y) = (vector(&gpu, &[0.0]), vector(&gpu, &[0.0]));
        // more launches than one submit takes, each with params of its own
        let mut want = 0.0;
        for i in 0..300 {
            launch(&x, &two, &sum, Knobs { factor: i as f32, add: true, ..Knobs::default() }).unwrap();
            want += 2.0 * i as f32;
        }
        assert_eq!(sum.to_f32().unwrap(), [want], "{setup:?}");
        launch(&x, &two, &sum, Knobs::default()).unwrap();
        x.write(&[10.0]).unwrap();
        launch(&x, &two, &y, Knobs::default()).unwrap();
        x.fill_zero();
        launch(&x, &two, &y, Knobs { add: true, ..Knobs::default() }).unwrap();
        assert_eq!((sum.to_f32().unwrap(), y.to_f32().unwrap()), (vec![2.0], vec![20.0]), "{setup:?}");
    }
}

#[test]
fn a_steady_step_creates_nothing() {
    let gpu = gpu(Setup::Lane);
    let (x, w) = (vector(&gpu, &[1.0; 50]), vector(&gpu, &[2.0; 5]));
    let step = || {
        let tape = Tape::new(add);
        tape.track(&x);
        let y = scaled(&tape, &scaled(&tape, &x, &w, 0.5).unwrap(), &w, 0.5).unwrap();
        let grads = tape.backward(&y, vector(&gpu, &[1.0; 50])).unwrap();
        assert_eq!(grads.get(&x).unwrap().to_f32().unwrap(), [1.0; 50]);
    };
    step();
    step();
    let before = gpu.stats();
    step();
    let after = gpu.stats();
    let created =
        |s: strata_engine::Stats| (s.buffers, s.bind_groups, s.pipelines, s.allocated_bytes, s.live_bytes);
    assert_eq!(created(before), created(after));
    assert_eq!(after.launches - before.launches, 4);
}

#[test]
fn memory_is_given_back() {
    let gpu = gpu(Setup::Lane);
    let (x, w) = (vector(&gpu, &[3.0; 5000]), vector(&gpu, &[2.0; 5]));
    let step = || {
        let y = scaled(&Tape::off(), &scaled(&Tape::off(), &x, &w, 0.5).unwrap(), &w, 0.5).unwrap();
        y.to_bytes().unwrap()
    };
    let first = step();
    assert!(gpu.stats().allocated_bytes > gpu.stats().live_bytes);
    // while a launch is under way
    let y = scaled(&Tape::off(), &x, &w, 0.5).unwrap();
    gpu.trim().unwrap();
    let trimmed = gpu.stats();
    assert_eq!(trimmed.allocated_bytes, trimmed.live_bytes);
    assert_eq!(y.to_f32().unwrap(), [3.0; 5000]);
    drop(y);
    assert!(step() == first);
    let before = gpu.stats();
    assert!(step() == first);
    let after = gpu.stats();
    let created = |s: strata_engine::Stats| (s.buffers, s.bind_groups, s.pipelines, s.allocated_bytes);
    assert_eq!(created(before), created(after));
    assert!(before.bind_groups > trimmed.bind_groups, "bind groups of buffers that are gone");
}

#[test]
fn what_is_free_makes_room_before_memory_is_out() {
    let options = GpuOptions { memory: Some(1 << 20), ..GpuOptions::default() };
    let gpu = Gpu::open(&options).unwrap();
    let tensor = |count: usize| Tensor::zeros(&gpu, &[count], DType::F32);
    let kept = tensor(1 << 16).unwrap();
    drop((tensor(1 << 16).unwrap(), tensor(1 << 14).unwrap()));
    assert_eq!(gpu.stats().allocated_bytes, (1 << 19) + (1 << 16));
    // of another size than what is free
    let large = tensor(1 << 17).unwrap();
    assert_eq!(gpu.stats().allocated_bytes, (1 << 18) + (1 << 19));
    assert_eq!(large.to_f32().unwrap(), vec![0.0; 1 << 17]);
    let refused = Tensor::empty(&gpu, &[1 << 17], DType::F32);
    assert!(
        matches!(refused, Err(Error::OutOfMemory { bytes, allocated }) if bytes == 1 << 19 && allocated == 3 << 18)
    );
    drop(kept);
    tensor(1 << 17).unwrap();
}

#[test]
fn the_peak_counts_what_was_alive_at_once() {
    let gpu = gpu(Setup::Lane);
    gpu.reset_peak();
    let start = gpu.stats();
    assert_eq!(start.peak_bytes, start.live_bytes);
    for _ in 0..3 {
        drop(Tensor::empty(&gpu, &[1000], DType::F32).unwrap());
    }
    let end = gpu.stats();
    assert_eq!(end.live_bytes, start.live_bytes);
    assert!((4000..8192).contains(&(end.peak_bytes - start.peak_bytes)), "{end:?}");
}

#[test]
fn a_shader_that_does_not_compile_is_named() {
    static WRONG: Shader =
        Shader { name: "wrong", source: "fn main() -> Nonsense {}", includes: &[], extensions: &[] };
    static TEMPLATE: Shader =
        Shader { name: "template", source: "{{ MISSING }}", includes: &[], extensions: &[] };
    let gpu = gpu(Setup::Lane);
    let error = message(Launch::new(&gpu, &WRONG).run());
    assert!(error.contains("wrong") && error.contains("Nonsense"), "{error}");
    let error = message(Launch::new(&gpu, &TEMPLATE).run());
    assert!(error.contains("template"), "{error}");
}

#[test]
fn grids_stay_within_the_limit() {
    assert_eq!(fold_grid(0), [1, 1, 1]);
    assert_eq!(fold_grid(65_535), [65_535, 1, 1]);
    for n in [65_536, 1_000_000, 10_000_000] {
        let [x, y, z] = fold_grid(n);
        assert!(x <= 65_535 && y <= 65_535 && z == 1 && x * y >= n, "{n}");
    }
}

#[test]
fn frozen_ops_record_nothing_and_the_rest_goes_back() {
    let gpu = gpu(Setup::Lane);
    let (x, w, up) = (vector(&gpu, &[1.0, 2.0]), vector(&gpu, &[3.0, 5.0]), vector(&gpu, &[1.0, 10.0]));
    let tape = Tape::new(add);
    let before = scaled(&tape, &x, &w, 1.0).unwrap();
    assert!(tape.is_empty() && !tape.tracks(&before));
    tape.track(&before);
    let middle = scaled(&tape, &before, &w, 1.0).unwrap();
    // used twice, so its gradient has two shares
    let (a, b) = (scaled(&tape, &middle, &w, 1.0).unwrap(), scaled(&tape, &middle, &w, 2.0).unwrap());
    let sum = add(&a, &b).unwrap();
    let (ia, ib) = (a.id(), b.id());
    tape.record(&[&a, &b], &sum, move |up, grads| {
        grads.add_id(ia, up.clone())?;
        grads.add_id(ib, up.clone())
    });
    assert_eq!(tape.len(), 4);
    tape.retain(&middle);
    let grads = tape.backward(&sum, up).unwrap();
    // 3 w for the two uses, another w to `before`
    assert_eq!(grads.get(&middle).unwrap().to_f32().unwrap(), [9.0, 150.0]);
    assert_eq!(grads.get(&before).unwrap().to_f32().unwrap(), [27.0, 750.0]);
    assert!(grads.get(&x).is_none() && grads.get(&a).is_none());
    let off = Tape::off();
    off.track(&x);
    scaled(&off, &x, &w, 1.0).unwrap();
    assert!(off.is_empty() && !off.tracks(&x));
}

#[test]
fn recomputing_gives_the_same_gradient_and_keeps_less() {
    let gpu = gpu(Setup::Lane);
    let count = 4096;
    let x = vector(&gpu, &vec![1.5; count]);
    let w = vector(&gpu, &[0.5, 0.25]);
    let block = {
        let w = w.clone();
        move |tape: &Tape, x: &Tensor| {
            let mut y = x.clone();
            for _ in 0..5 {
                let z = scaled(tape, &y, &w, 1.0)?;
                // an op that keeps its input
                let (saved, id, w) = (y.clone(), y.id(), w.clone());
                let out = scaled(&Tape::off(), &z, &w, 1.0)?;
                tape.record(&[&y], &out, move |up, grads| {
                    let dx = Tensor::empty(up.gpu(), saved.shape(), DType::F32)?;
                    launch(up, &w, &dx, Knobs::default())?;
                    grads.add_id(id, dx)
                });
                y = out;
            }
            Ok::<_, Error>(y)
        }
    };
    let run = |recompute: bool| {
        let start = gpu.stats().live_bytes;
        let tape = Tape::new(add);
        tape.track(&x);
        let (inner, block) = (x.clone(), block.clone());
        let y = match recompute {
            true => tape.recompute(move |tape| block(tape, &inner)).unwrap(),
            false => block(&tape, &x).unwrap(),
        };
        let kept = gpu.stats().live_bytes - start;
        let up: Vec<f32> = (0..count).map(|i| i as f32).collect();
        let grads = tape.backward(&y, vector(&gpu, &up)).unwrap();
        (y.to_bytes().unwrap(), grads.get(&x).unwrap().to_bytes().unwrap(), kept)
    };
    let (plain, again) = (run(false), run(true));
    assert!(plain.0 == again.0 && plain.1 == again.1, "other bits");
    assert!(4 * again.2 < plain.2, "{} bytes kept with recompute, {} without", again.2, plain.2);
}

#[test]
fn parameters_gather_their_gradient_in_their_sink() {
    let gpu = gpu(Setup::Lane);
    let (p, w) = (vector(&gpu, &[1.0, 2.0]), vector(&gpu, &[3.0, 5.0]));
    let run = |tape: Tape| {
        let y = scaled(&Tape::off(), &p, &w, 1.0).unwrap();
        let (parameter, w) = (p.clone(), w.clone());
        tape.record(&[&p], &y, move |up, grads| {
            launch(up, &w, &grads.sink(&parameter)?, Knobs { add: true, ..Knobs::default() })
        });
        tape.backward(&y, vector(&gpu, &[1.0, 1.0])).unwrap()
    };
    let sink = vector(&gpu, &[100.0, 200.0]);
    for want in [[103.0, 205.0], [106.0, 210.0]] {
        let tape = Tape::new(add);
        tape.track_into(&p, &sink);
        assert!(run(tape).get(&p).is_none());
        assert_eq!(sink.to_f32().unwrap(), want);
    }
    let tape = Tape::new(add);
    tape.track(&p);
    assert_eq!(run(tape).get(&p).unwrap().to_f32().unwrap(), [3.0, 5.0]);
}

#[test]
fn launches_are_timed() {
    let gpu = gpu(Setup::Lane);
    let (x, w) = (vector(&gpu, &[1.0; 4096]), vector(&gpu, &[1.0; 4096]));
    let work = |factor| scaled(&Tape::off(), &x, &w, factor);
    let ((), none) = gpu.time(|| Ok::<_, Error>(())).unwrap();
    assert_eq!(none, None, "nothing was launched");
    let (_, seconds) = gpu.time(|| work(2.0)).unwrap();
    assert_eq!(seconds.is_some(), gpu.caps().timestamps);
    assert!(seconds.is_none_or(|s| s > 0.0 && s < 10.0), "{seconds:?}");

    let before = gpu.stats();
    let (_, launches) = gpu
        .profile(|| {
            work(2.0)?;
            work(3.0)
        })
        .unwrap();
    assert_eq!((launches.len() as u64, gpu.stats().launches - before.launches), (2, 2));
    assert_eq!(launches.iter().map(|l| l.bytes).sum::<u64>(), gpu.stats().bytes - before.bytes);
    for launch in &launches {
        assert!(launch.label == "toy" && launch.bytes >= 3 * 4 * 4096, "{launch:?}");
        assert_eq!(launch.seconds.is_some(), gpu.caps().timestamps);
    }
    // what fails leaves no timer behind
    assert!(gpu.time(|| Err::<(), _>(Error::op("test", "refused"))).is_err());
    work(2.0).unwrap();
    assert_eq!(gpu.profile(|| work(2.0)).unwrap().1.len(), 1);
}
