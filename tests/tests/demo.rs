//! The demo, shortened: each feature shows on its tag, and without one the picture is the base model's.

use serde_json::Value;
use tempfile::tempdir;

use crate::cli::{prints, text};

/// Mean score of a feature in the pictures of one way and one set of tags.
fn score(report: &Value, way: &str, tags: &[&str], feature: &str) -> f64 {
    let scores = report["scores"].as_array().unwrap().iter();
    let mut of = scores.filter(|score| score["way"] == way && score["tags"] == serde_json::json!(tags));
    of.next().unwrap()["scores"][feature].as_f64().unwrap()
}

#[test]
fn features_fire_on_their_tags_alone() {
    const A: &str = "hair_style_a";
    const B: &str = "clothing_style_b";
    const OURS: &str = "Strata, always on";
    const GATED: &str = "Strata, by tag";
    let folder = tempdir().unwrap();
    let out = text(folder.path());
    let arguments = ["--steps", "60", "--prompts", "3", "--sampling-steps", "6", "--out", out];
    let report: Value =
        serde_json::from_str(&prints(&[&["demo", "--json"], &arguments[..]].concat())).unwrap();

    for (own, other) in [(A, B), (B, A)] {
        let shown = score(&report, OURS, &[own], own);
        let learned = report["training_scores"][own].as_f64().unwrap();
        assert!(shown >= 0.3 * learned, "{own} shows {shown}, its pictures {learned}");
        assert!(shown > 5.0 * score(&report, OURS, &[other], own), "{own} on the tag of {other}");
        let both = score(&report, OURS, &[A, B], own);
        assert!(both >= 0.25 * learned, "{own} with both tags shows {both}, its pictures {learned}");
        assert!(score(&report, GATED, &[own], own) >= 0.3 * learned);
        assert_eq!(score(&report, GATED, &[], own), score(&report, "base model", &[], own));
        assert!(score(&report, OURS, &[], own) <= 0.02);
    }
    assert_eq!(report["bit_equal"], 3);
    for leak in report["leaks"].as_array().unwrap() {
        let [gated, always, plain] = ["gated", "always", "plain"].map(|way| leak[way].as_f64().unwrap());
        assert!(gated == 0.0 && always < 0.05 && plain > 0.3, "{leak}");
    }
    for file in ["report.html", "demo.json", "grid.png", "check.html", "features-hair_style_a.safetensors"] {
        assert!(folder.path().join(file).metadata().unwrap().len() > 1000, "{file}");
    }
    let grid = image::open(folder.path().join("grid.png")).unwrap();
    assert!(grid.width() > 12 * 128 && grid.height() > 3 * 128);
}
