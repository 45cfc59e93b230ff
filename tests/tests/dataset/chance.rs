//! Chance: equal wherever it is drawn, and distributed as it should be.

use std::collections::BTreeSet;

use strata_trainer::kaiming_uniform;
use strata_trainer::noise::{Stream, chance, normal, order, sample_index, uniform_timestep};

fn draw(seed: u64, stream: Stream, step: u64, sample: u64, count: usize) -> Vec<f32> {
    let mut out = vec![0.0; count];
    normal(seed, stream, step, sample, &mut out);
    out
}

#[test]
fn numbers_depend_on_their_counters_alone() {
    let first = draw(1, Stream::Noise, 2, 3, 64);
    assert_eq!(first, draw(1, Stream::Noise, 2, 3, 64));
    assert_eq!(first[..9], draw(1, Stream::Noise, 2, 3, 9), "a shorter draw begins the same");
    for other in [
        draw(2, Stream::Noise, 2, 3, 64),
        draw(1, Stream::Latent, 2, 3, 64),
        draw(1, Stream::Noise, 3, 3, 64),
        draw(1, Stream::Noise, 2, 4, 64),
        draw(1, Stream::Noise, 3, 2, 64),
    ] {
        assert!(first.iter().zip(&other).all(|(a, b)| a != b));
    }
}

/// A seed means the same numbers in every version: these are part of the format.
#[test]
fn a_seed_keeps_its_meaning() {
    let got = draw(42, Stream::Noise, 0, 0, 4);
    assert_eq!(got, GOLDEN_NORMAL);
    assert_eq!(order(42, 0, 8), GOLDEN_ORDER);
    assert_eq!((0..4).map(|b| uniform_timestep(42, 7, b, 0, 1000)).collect::<Vec<_>>(), GOLDEN_TIMESTEPS);
}

const GOLDEN_NORMAL: [f32; 4] = [0.7093501, 0.99146193, 0.6622976, -0.9711176];
const GOLDEN_ORDER: [usize; 8] = [0, 7, 6, 1, 3, 5, 2, 4];
const GOLDEN_TIMESTEPS: [u32; 4] = [809, 719, 297, 824];

#[test]
fn noise_is_normal() {
    let n = 200_000;
    let x: Vec<f64> = draw(7, Stream::Noise, 0, 0, n).iter().map(|v| f64::from(*v)).collect();
    let moment = |p: i32| x.iter().map(|v| v.powi(p)).sum::<f64>() / n as f64;
    // five standard errors each
    let bound = |variance: f64| 5.0 * (variance / n as f64).sqrt();
    assert!(moment(1).abs() < bound(1.0), "mean {}", moment(1));
    assert!((moment(2) - 1.0).abs() < bound(2.0), "variance {}", moment(2));
    assert!(moment(3).abs() < bound(15.0), "skew {}", moment(3));
    assert!((moment(4) - 3.0).abs() < bound(96.0), "kurtosis {}", moment(4));
    // neighbours come from one pair of uniforms, and must not show it
    let lag = |k: usize| x.windows(k + 1).map(|w| w[0] * w[k]).sum::<f64>() / n as f64;
    for k in 1..4 {
        assert!(lag(k).abs() < bound(1.0), "correlation at distance {k}: {}", lag(k));
    }
    let beyond_two = x.iter().filter(|v| v.abs() > 2.0).count() as f64 / n as f64;
    assert!((beyond_two - 0.0455).abs() < bound(0.0455));
    let samples: Vec<Vec<f32>> = (0..2).map(|b| draw(7, Stream::Noise, 0, b, n)).collect();
    let cross = samples[0].iter().zip(&samples[1]).map(|(a, b)| f64::from(a * b)).sum::<f64>() / n as f64;
    assert!(cross.abs() < bound(1.0), "samples of one step are correlated: {cross}");
}

#[test]
fn timesteps_fill_their_range_evenly() {
    let n = 40_000_u64;
    let drawn: Vec<u32> = (0..n).map(|i| uniform_timestep(3, i / 4, i % 4, 20, 60)).collect();
    let mut counts = [0_u32; 40];
    drawn.iter().for_each(|t| counts[(*t - 20) as usize] += 1);
    assert!(counts.iter().all(|c| (800..1200).contains(c)), "{counts:?}");
    assert_eq!(uniform_timestep(3, 0, 0, 5, 5), 5);
    let share = (0..n).filter(|i| chance(3, Stream::Caption, *i, 0, 0.1)).count() as f64 / n as f64;
    assert!((share - 0.1).abs() < 0.01, "{share}");
    assert!((0..1000).all(|i| chance(3, Stream::Flip, i, 0, 1.0) && !chance(3, Stream::Flip, i, 0, 0.0)));
}

#[test]
fn an_epoch_shows_every_picture_once() {
    for n in [1, 2, 7, 30] {
        let mut orders = BTreeSet::new();
        for epoch in 0..5_u64 {
            let shown: Vec<usize> = (0..n as u64).map(|i| sample_index(9, epoch * n as u64 + i, n)).collect();
            assert_eq!(shown, order(9, epoch, n));
            assert_eq!(shown.iter().collect::<BTreeSet<_>>().len(), n);
            orders.insert(shown);
        }
        assert!(n < 7 || orders.len() == 5, "epochs have orders of their own");
    }
}

#[test]
fn first_values_of_a_lora_depend_on_seed_and_path_alone() {
    let fill = |seed: u64, path: &str, fan_in: usize, count: usize| {
        let mut out = vec![0.0; count];
        kaiming_uniform(seed, path, fan_in, &mut out);
        out
    };
    let a = fill(1, "mid_block.x", 64, 4000);
    assert_eq!(a[..100], fill(1, "mid_block.x", 64, 100));
    assert!(
        a.iter().all(|v| v.abs() <= 0.125) && a.iter().any(|v| *v > 0.12) && a.iter().any(|v| *v < -0.12)
    );
    let variance = a.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / 4000.0;
    assert!((variance * 3.0 * 64.0 - 1.0).abs() < 0.1);
    assert_ne!(a[..8], fill(2, "mid_block.x", 64, 8));
    assert_ne!(a[..8], fill(1, "mid_block.y", 64, 8));
    let (x, y) = (fill(1, "a", 1, 4000), fill(1, "b", 1, 4000));
    let cross = x.iter().zip(&y).map(|(a, b)| f64::from(a * b)).sum::<f64>() / 4000.0;
    assert!(cross.abs() < 0.03, "layers are correlated: {cross}");
}
