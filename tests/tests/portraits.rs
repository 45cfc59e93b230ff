//! Portraits are those of `tools/portraits`, which the base model has learned, to the last bit.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use strata_cli::portraits::{Attributes, Clothing, Hair, Paint, Rng, Unseen, draw};

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// 64-bit FNV-1a.
fn fnv1a(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01B3)
    });
    format!("{hash:016x}")
}

#[test]
fn pictures_captions_and_scores_are_the_originals() {
    let text = fs::read_to_string(repository("tools/portraits/goldens.json")).unwrap();
    let rows: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(rows.len(), 64);
    for row in rows {
        let seed = row["seed"].as_u64().unwrap();
        let mut attributes = Attributes::sample(&mut Rng::new(seed));
        match seed % 4 {
            2 => attributes.hair = Hair::Crest,
            3 => attributes.clothing = Clothing::Checker,
            _ => assert_eq!(attributes.caption(None, None), row["full"], "seed {seed}"),
        }
        let (golden, Attributes { gender, skin, hair, clothing, background, expression, .. }) =
            (&row["attributes"], &attributes);
        let paint = |paint: &'static Paint| paint.name;
        let words = [
            ("gender", gender.name()),
            ("skin", paint(skin)),
            ("hair", hair.name()),
            ("hair_color", paint(attributes.hair_colour)),
            ("clothing", clothing.name()),
            ("clothing_color", paint(attributes.clothing_colour)),
            ("background", background.name()),
            ("expression", expression.name()),
        ];
        words.iter().for_each(|(key, word)| assert_eq!(golden[key], *word, "seed {seed}, {key}"));
        let numbers = [
            ("body_x", attributes.body_x),
            ("head_x", attributes.head_x),
            ("head_y", attributes.head_y),
            ("side", attributes.right.into()),
            ("scene", attributes.scene),
            ("tone", attributes.tone as i32),
        ];
        numbers.iter().for_each(|(key, number)| assert_eq!(golden[key], *number, "seed {seed}, {key}"));
        let picture = draw(&attributes);
        assert_eq!(fnv1a(picture.as_raw()), row["fnv1a"], "seed {seed}: {attributes:?}");
        for (i, feature) in Unseen::ALL.into_iter().enumerate() {
            let (ours, theirs) = (feature.score(&picture), row["scores"][i].as_f64().unwrap());
            assert!((ours - theirs).abs() < 1e-12, "seed {seed}, {feature:?}: {ours} is not {theirs}");
        }
    }
}

#[test]
fn the_features_pictures_are_those_of_the_examples() {
    for feature in Unseen::ALL {
        let folder = repository("examples/portraits").join(feature.tag());
        let pictures = feature.pictures();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2 * pictures.len());
        let scores: Vec<f64> = pictures.iter().map(|(picture, _)| feature.score(picture)).collect();
        for (i, (picture, caption)) in pictures.into_iter().enumerate() {
            let path = folder.join(format!("{i:02}.png"));
            assert!(image::open(&path).unwrap().into_rgb8() == picture, "{}", path.display());
            assert_eq!(fs::read_to_string(path.with_extension("txt")).unwrap().trim_end(), caption);
        }
        let mean = scores.iter().sum::<f64>() / scores.len() as f64;
        assert!(mean > 0.7, "{feature:?}: pictures that show it score {mean}");
    }
}
