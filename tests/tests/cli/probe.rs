//! `strata probe`.

use tempfile::tempdir;

use super::{fails, model, text};
use crate::support::{golden, put};

/// Said before the model is read, with the option that it is said of; and nothing is left behind.
#[test]
fn probing_refuses_what_cannot_work() {
    let folder = tempdir().unwrap();
    let (model, lora) = (model(), golden("sd15-tiny", "lora/attn_sel_kohya.safetensors"));
    let file = put(folder.path(), "file", "");
    let with = |more: &[&str], words: &[&str]| {
        fails(&[&["probe", text(&model), "--lora", text(&lora), "--tag", "sks"], more].concat(), words);
    };
    with(&["--pictures-from", "nope"], &["--pictures-from nope: there is no such folder"]);
    with(&["--out", text(&file.join("x"))], &["--out", "file: is a file, so there is no folder"]);
    with(&["--dump", "no/such/folder/x"], &["--dump: cannot write no/such/folder/x", "no such folder"]);
    // what fails later has made no folder
    let out = folder.path().join("out");
    with(&["--out", text(&out), "--size", "63"], &["--size 63"]);
    assert!(!out.exists());
}
