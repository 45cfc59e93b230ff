//! The command from outside: what it prints, what it writes, and how it refuses. What concerns one command alone is in a file
//! of its name.

mod bench;
mod generate;
mod info;
mod layers;
mod probe;
mod train;

use std::path::{Path, PathBuf};
use std::process;
use std::time::Duration;

use assert_cmd::Command;

use crate::support::golden;

/// What a run left: exit code, stdout, stderr.
pub struct Run {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// The command, behind the runner that cargo uses for this target, if any (`CARGO_TARGET_<TRIPLE>_RUNNER`). Nothing here takes
/// so long as the limit; what does is stuck.
pub fn command() -> Command {
    let mut command = Command::from_std(process());
    command.timeout(Duration::from_secs(900));
    command
}

pub fn process() -> process::Command {
    let program = env!("CARGO_BIN_EXE_strata-as-tested");
    let runner =
        std::env::vars().find(|(name, _)| name.starts_with("CARGO_TARGET_") && name.ends_with("_RUNNER"));
    let words: Vec<&str> =
        runner.iter().flat_map(|(_, words)| words.split_whitespace()).chain([program]).collect();
    let mut command = process::Command::new(words[0]);
    // without it Mesa has an error of its own to report
    command.args(&words[1..]).env("XDG_RUNTIME_DIR", std::env::temp_dir());
    command
}

pub fn strata(args: &[&str]) -> Run {
    let output = command().args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let run = Run { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) };
    assert!(!run.err.contains("panicked"), "{args:?}: {}", run.err);
    run
}

/// What a run that succeeds prints.
pub fn prints(args: &[&str]) -> String {
    let run = strata(args);
    assert_eq!(run.code, Some(0), "{args:?}: {}", run.err);
    run.out
}

/// A run that fails, says so once and with these words, and prints no result.
pub fn fails(args: &[&str], words: &[&str]) {
    let Run { code, out, err } = strata(args);
    assert_eq!(code, Some(1), "{args:?} gives {out}{err}");
    assert_eq!(err.matches("error: ").count(), 1, "{args:?}: {err}");
    words.iter().for_each(|word| assert!(err.contains(word), "{args:?}: {word:?} is not in: {err}"));
    assert_eq!(out, "", "{args:?}");
}

/// Wrong usage, said at once: exit code 2, with these words.
pub fn misused(args: &[&str], words: &[&str]) {
    let run = command().args(args).timeout(Duration::from_secs(60)).assert().code(2).stdout("");
    let err = String::from_utf8(run.get_output().stderr.clone()).unwrap();
    assert!(err.contains("--help"), "{args:?}: {err}");
    words.iter().for_each(|word| assert!(err.contains(word), "{args:?}: {word:?} is not in: {err}"));
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

pub fn model() -> PathBuf {
    golden("sd15-tiny", "")
}

#[test]
fn wrong_usage_is_exit_code_2() {
    for args in [
        &[][..],
        &["fly"],
        &["train"],
        &["train", "a", "--print-config"],
        &["train", "--print-config", "--json"],
        &["info"],
        &["generate", "m", "--prompt", "x", "--strength", "0.5"],
        &["layers"],
        &["devices", "--jsn"],
        &["generate", "m"],
        &["probe", "m"],
        &["generate", "m", "--prompt", "x", "--count", "0"],
        &["parity", "d", "--dtype", "bf16"],
        &["bench", "--batch", "0"],
    ] {
        misused(args, &[]);
    }
}

/// What is wrong is said as a value of its option, with what would be right.
#[test]
fn numbers_have_limits_and_signs() {
    let draw = ["generate", "m", "--prompt", "x"];
    let probe = ["probe", "m", "--lora", "x"];
    for (command, option, value, words) in [
        (&draw[..], "--width", "100000", "1..=8192"),
        (&draw, "--height", "100000", "1..=8192"),
        (&draw, "--width", "0", "1..=8192"),
        (&draw, "--count", "4000000000", "1..=65535"),
        (&draw, "--steps", "4000000000", "1..=1000"),
        (&draw, "--steps", "0", "1..=1000"),
        (&draw, "--steps", "-1", "1..=1000"),
        (&draw, "--guidance", "-1", "at least 0"),
        (&draw, "--guidance", "nan", "at least 0"),
        (&draw, "--seed", "-1", "from 0 to 18446744073709551615"),
        (&draw, "--seed", "1.5", "from 0 to 18446744073709551615"),
        (&draw, "--adapter", "", "names no GPU adapter"),
        (&draw, "--adapter", "0,1", "one GPU adapter"),
        (&probe, "--samples", "4000000000", "1..=1000"),
        (&probe, "--batch", "60000", "1..=256"),
        (&probe, "--size", "100000", "1..=8192"),
        (&probe, "--steps", "4000000000", "1..=1000"),
        (&probe, "--seed", "-1", "from 0 to 18446744073709551615"),
        (&["train", "c"], "--steps", "4000000000", "1..=10000000"),
        (&["train", "c"], "--seed", "-1", "from 0 to 18446744073709551615"),
        (&["demo"], "--prompts", "65", "1..=64"),
        (&["demo"], "--steps", "4000000000", "1..=100000"),
        (&["layers", "m"], "--rank", "-1", "from 1 to 4096"),
        (&["layers", "m"], "--rank", "0", "from 1 to 4096"),
        (&["layers", "m"], "--rank", "4000000000", "from 1 to 4096"),
    ] {
        misused(&[command, &[option, value]].concat(), &[option, &format!("'{value}'"), words]);
    }
}

#[test]
fn help_has_examples() {
    assert_eq!(prints(&["--version"]), format!("strata {}\n", env!("CARGO_PKG_VERSION")));
    for args in [
        &["--help"][..],
        &["devices", "--help"],
        &["info", "--help"],
        &["layers", "--help"],
        &["train", "--help"],
        &["generate", "--help"],
        &["probe", "--help"],
        &["parity", "--help"],
        &["bench", "--help"],
    ] {
        assert!(prints(args).contains("Examples:"), "{args:?}");
    }
}

/// A full disk behind stdout is an error; a reader that has seen enough is none.
#[cfg(target_os = "linux")]
#[test]
fn standard_output_that_takes_nothing_is_named() {
    for args in [&["--help"][..], &["--version"], &["layers", "--help"], &["train", "--print-config"]] {
        let run = |stdout: process::Stdio| {
            let output =
                process().args(args).stdout(stdout).stderr(process::Stdio::piped()).output().unwrap();
            (output.status.code(), String::from_utf8(output.stderr).unwrap())
        };
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let (code, err) = run(full.into());
        assert_eq!(code, Some(1), "{args:?}: {err}");
        assert!(err.starts_with("error: standard output: ") && err.lines().count() == 1, "{args:?}: {err}");
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        assert_eq!(run(writer.into()), (Some(0), String::new()), "{args:?}");
    }
}

#[test]
fn pictures_of_a_demo_that_was_not_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    fails(
        &["demo", "--out", text(folder.path()), "--pictures-only"],
        &["--pictures-only", "no earlier demo", "strata demo --out"],
    );
}

#[test]
fn devices_are_listed() {
    assert!(prints(&["devices"]).starts_with("0: "));
    let list: serde_json::Value = serde_json::from_str(&prints(&["devices", "--json"])).unwrap();
    assert!(list[0]["name"].is_string());

    let without = |args: &[&str]| command().args(args).env("VK_LOADER_DRIVERS_DISABLE", "*").assert();
    without(&["devices", "--json"]).success().stdout("[]\n");
    without(&["devices"]).code(1).stdout("");
}
