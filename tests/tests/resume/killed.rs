//! A run in a process of its own, which is killed.

use std::process::{Child, Stdio};
use std::time::Instant;

use strata_model::noise::{Bits, Stream};

use super::*;
use crate::cli::{process, text};

fn start(folder: &Path) -> Child {
    let mut run = process();
    run.args(["train", text(&folder.join("run.toml")), "--quiet"]);
    run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn signal(child: &Child, name: &str) {
    let id = child.id().to_string();
    assert!(std::process::Command::new("kill").args([name, &id]).status().unwrap().success());
}

/// Numbers from 0 to 1.
fn chance(seed: u64) -> impl FnMut() -> f64 {
    let mut bits = Bits::new(seed, Stream::Order, 0, 0);
    move || bits.uniform()
}

/// What a process leaves that dies at a moment is what lies in its folder while it is stopped.
#[test]
fn a_run_that_dies_at_any_moment_goes_on() {
    for (seed, (order, dtype)) in [("staged", "f16"), ("joint", "f32")].into_iter().enumerate() {
        let (whole, run) = (tempdir().unwrap(), tempdir().unwrap());
        features(whole.path(), order, dtype, 0);
        let started = Instant::now();
        finish(whole.path());
        let took = started.elapsed().as_secs_f64();
        features(run.path(), order, dtype, 0);
        let (mut chance, mut moments) = (chance(seed as u64), Vec::new());
        let mut child = start(run.path());
        while saves(&run.path().join("out")).is_empty() {
            std::thread::sleep(Duration::from_millis(5));
        }
        while moments.len() < 2 {
            std::thread::sleep(Duration::from_secs_f64(0.3 * took * chance()));
            if child.try_wait().unwrap().is_some() {
                break;
            }
            signal(&child, "-STOP");
            let moment = tempdir().unwrap();
            copy_folder(run.path(), moment.path());
            moments.push(moment);
            signal(&child, "-CONT");
        }
        let _ = child.kill();
        child.wait().unwrap();
        assert!(!moments.is_empty());
        for (i, moment) in moments.iter().chain([&run]).enumerate() {
            let at = results(&moment.path().join("out")).into_keys().collect::<Vec<_>>();
            finish(moment.path());
            assert_same(moment.path(), whole.path(), &format!("{order} {dtype}, moment {i}, from {at:?}"));
        }
    }
}

/// Each run is killed again and again, at moments of its whole length, and then comes to its end.
#[test]
#[ignore = "takes minutes"]
fn runs_killed_fifty_times_end_as_if_they_had_not_been() {
    let (mut kills, mut went_on) = (0, 0);
    for (seed, (order, dtype)) in
        [("staged", "f16"), ("joint", "f32"), ("staged", "f32"), ("joint", "f16")].into_iter().enumerate()
    {
        let (whole, run) = (tempdir().unwrap(), tempdir().unwrap());
        features(whole.path(), order, dtype, 3);
        let started = Instant::now();
        assert!(start(whole.path()).wait().unwrap().success());
        let took = started.elapsed().as_secs_f64();
        features(run.path(), order, dtype, 3);
        let mut chance = chance(100 + seed as u64);
        let mut own = 0;
        while own < 13 {
            let mut child = start(run.path());
            std::thread::sleep(Duration::from_secs_f64(took * chance()));
            let there = saves(&run.path().join("out"));
            if child.try_wait().unwrap().is_some() {
                // it got to its end: the next one begins anew
                assert_same(run.path(), whole.path(), order);
                fs::remove_dir_all(run.path().join("out")).unwrap();
                continue;
            }
            child.kill().unwrap();
            child.wait().unwrap();
            own += 1;
            went_on += usize::from(!there.is_empty());
            assert!(there.len() <= 5, "{there:?}");
        }
        kills += own;
        assert!(start(run.path()).wait().unwrap().success());
        assert_same(run.path(), whole.path(), &format!("{order} {dtype}"));
        println!("{order} {dtype}: killed {own} times, a whole run takes {took:.1} s");
    }
    println!("killed {kills} times, {went_on} of them with a save there");
    assert!(kills >= 50 && went_on >= 20);
}
