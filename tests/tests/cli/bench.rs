//! `strata bench`, and what it keeps.

use std::fs;

use strata_kernels::tuning_name;
use strata_tests::{Setup, gpu};
use tempfile::tempdir;

use super::{command, fails, prints, text};
use crate::support::put;

#[test]
fn kernels_are_timed() {
    let list = prints(&["bench", "--list", "--latent", "64", "--batch", "4,1,4"]);
    assert!(list.contains("attention 4×4096×4096, 8 heads of 40, there and back\n"), "{list}");
    let small = ["bench", "--list", "--json", "--latent", "8", "conv 3×3 1×8×8 320 to 320"];
    let listed: serde_json::Value = serde_json::from_str(&prints(&small)).unwrap();
    assert_eq!(listed[0]["op"], "conv");
    assert_eq!(listed[0]["flops"], 2 * 64 * 9 * 320 * 320);

    let folder = tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let (saved, plot) = (path("a.json"), path("a.png"));
    let table = prints(&["bench", "layer norm", "--latent", "4", "--save", &saved, "--plot", &plot]);
    assert!(
        table.contains("ceilings: GEMM ") && table.contains("layer norm 16×320, there and back "),
        "{table}"
    );
    let report: serde_json::Value = serde_json::from_slice(&fs::read(&saved).unwrap()).unwrap();
    let rows = report["rows"].as_array().unwrap();
    let row = rows.iter().find(|row| row["name"] == "layer norm 16×320").unwrap();
    assert!(row["ms"].as_f64().unwrap() > 0.0 && row["variant"] == "layer_norm", "{row}");
    assert!(report["ceilings"]["gemm_tflops"].as_f64().unwrap() > 0.0);
    let picture = image::open(&plot).unwrap();
    assert_eq!((picture.width(), picture.height()), (1200, 800));

    let again = ["bench", "layer norm 16", "--latent", "4", "--compare", &saved, "--json"];
    let compared: serde_json::Value = serde_json::from_str(&prints(&again)).unwrap();
    let names: Vec<_> = compared["changes"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
    assert!(names.contains(&&serde_json::json!("layer norm 16×320")), "{names:?}");

    let damaged = put(folder.path(), "damaged.json", "{\"rows\": 1");
    fails(&["bench", "--compare", text(&damaged)], &["damaged.json", "strata bench --save"]);
    fails(&["bench", "no such kernel"], &["no such kernel", "--list"]);
}

#[test]
fn a_damaged_tuning_is_ignored_and_said() {
    let cache = tempdir().unwrap();
    let name = tuning_name(&gpu(Setup::Lane)).unwrap();
    let folder = cache.path().join("strata");
    fs::create_dir_all(&folder).unwrap();
    let name = format!("gemm-{name}.json");
    let says = |words: &[&str]| {
        let mut bench = command();
        let output = bench.args(["bench", "no such kernel"]).env("XDG_CACHE_HOME", cache.path()).output();
        let err = String::from_utf8(output.unwrap().stderr).unwrap();
        words.iter().for_each(|word| assert!(err.contains(word), "{word:?} is not in: {err}"));
    };
    let file = put(&folder, &name, "{");
    says(&["is ignored", text(&file), "is damaged", "--tune"]);
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    says(&["is ignored", text(&file), "cannot be read", "remove it"]);
}
