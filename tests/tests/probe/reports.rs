//! `strata probe`: what it prints and writes.

use std::fs;
use std::path::Path;

use serde_json::Value;
use strata_model::TensorFile;
use tempfile::tempdir;

use super::lora;
use crate::cli::{fails, model, prints, strata, text};
use crate::support::{put, well_formed};

/// Two LoRA files, one of which names its tags, and a file of prompts.
fn project(folder: &Path) -> [String; 3] {
    let mut hair = lora("attn_sel");
    hair.metadata.insert("strata_tags".into(), r#"["hair_a", "<b>hair"]"#.into());
    hair.modules.retain(|name, _| !name.1.contains("down_blocks"));
    let [hair_file, coat_file] = ["hair", "coat"].map(|name| folder.join(format!("{name}.safetensors")));
    hair.write(&hair_file).unwrap();
    let mut coat = lora("attn_sel");
    coat.modules.retain(|name, _| name.1.contains("mid_block"));
    coat.write(&coat_file).unwrap();
    let prompts = put(folder, "prompts.txt", "\u{feff}# carriers\n{} in the rain\n\n a <i>red</i> chair \n");
    [hair_file, coat_file, prompts].map(|path| path.to_str().unwrap().to_owned())
}

/// The tags of the page's template that are closed.
const TAGS: [&str; 24] = [
    "html", "head", "title", "style", "body", "h1", "h2", "h3", "p", "table", "caption", "thead", "tbody",
    "tr", "th", "td", "div", "span", "mark", "ul", "li", "sub", "details", "summary",
];

/// The numbers of a group or a band.
fn is_cell(cell: &Value, own: bool) {
    assert!(cell["drift"].as_f64().is_some_and(|drift| drift >= 0.0), "{cell}");
    assert!(if own { cell["leak"].is_null() } else { cell["leak"].is_f64() }, "{cell}");
}

fn is_matrix(matrix: &Value, gate: &str, prompts: usize) {
    assert_eq!(matrix["gate"], gate);
    assert!(matrix["leak"].is_f64());
    let rows = matrix["rows"].as_array().unwrap();
    for (i, row) in rows.iter().enumerate() {
        assert_eq!(row["kind"] == "own_tag", i == 0, "{row}");
        is_cell(row, i == 0);
        let bands = row["bands"].as_array().unwrap();
        assert_eq!(bands.len(), 4);
        bands.iter().for_each(|band| is_cell(band, i == 0));
        let known = row["prompts"].as_array().unwrap();
        assert!(!known.is_empty() && known.iter().all(|p| p.as_u64().is_some_and(|p| p < prompts as u64)));
    }
}

#[test]
fn a_report_has_tables_json_a_page_and_pictures() {
    let folder = tempdir().unwrap();
    let [hair, coat, prompts] = project(folder.path());
    let (out, dump) = (folder.path().join("report"), folder.path().join("inputs.safetensors"));
    let model = model();
    let args = [
        "probe",
        text(&model),
        "--lora",
        &hair,
        "--class",
        "hair",
        "--lora",
        &format!("{coat}:0.5"),
        "--tag",
        "coat_b",
        "--prompts",
        &prompts,
        "--samples",
        "1",
        "--size",
        "64",
        "--steps",
        "1",
        "--pictures",
        "1",
        "--out",
        text(&out),
        "--dump",
        text(&dump),
    ];
    let printed = prints(&args);
    for line in printed.lines().filter(|line| !line.starts_with("wrote ")) {
        assert!(line.chars().count() <= 100, "{} characters: {line}", line.chars().count());
    }
    for words in ["hair: hair_a, <b>hair ", "own tag", "tag of coat", "class hair", "1 ordinary", "mid_block"]
    {
        assert!(printed.contains(words), "{words:?} is not in:\n{printed}");
    }
    let files = printed.lines().filter_map(|line| line.strip_prefix("wrote "));
    let files: Vec<&Path> = files.map(Path::new).collect();
    assert!(files.iter().all(|file| file.is_file()), "{files:?}");

    let json: Value = serde_json::from_slice(&fs::read(out.join("probe.json")).unwrap()).unwrap();
    assert_eq!((&json["samples"], &json["seed"], &json["dtype"]), (&1.into(), &0.into(), &"f32".into()));
    assert_eq!(json["latents"], serde_json::json!({"source": "normal", "folder": null, "shape": [8, 8, 4]}));
    assert_eq!(json["bands"], serde_json::json!([[0, 250], [250, 500], [500, 750], [750, 1000]]));
    let texts = json["prompts"].as_array().unwrap();
    assert!(texts.iter().any(|prompt| prompt["text"] == "coat_b in the rain"));
    assert_eq!(json["features"].as_array().unwrap().len(), 2);
    for (feature, name) in json["features"].as_array().unwrap().iter().zip(["hair", "coat"]) {
        assert_eq!(feature["name"], name);
        for (matrix, gate) in feature["gates"].as_array().unwrap().iter().zip(["always", "prompt", "token"]) {
            is_matrix(matrix, gate, texts.len());
            assert_eq!(matrix["leak"] == 0.0, gate != "always", "{matrix}");
        }
        let blocks = feature["blocks"].as_array().unwrap();
        blocks.iter().for_each(|block| is_matrix(&block["alone"], "always", texts.len()));
        let shares: f64 = blocks.iter().map(|block| block["share"].as_f64().unwrap()).sum();
        assert!((shares - 1.0).abs() < 1e-9, "{shares}");
    }
    let mut inputs = TensorFile::open(&dump).unwrap();
    assert_eq!(inputs.tensors().len(), texts.len() + 2);
    assert_eq!(inputs.read("noisy").unwrap().len(), 4 * 8 * 8 * 4);
    let timesteps: Vec<f32> =
        json["timesteps"].as_array().unwrap().iter().map(|t| t.as_f64().unwrap() as f32).collect();
    assert_eq!(inputs.read("timesteps").unwrap(), timesteps);

    let page = fs::read_to_string(out.join("report.html")).unwrap();
    well_formed(&page, &TAGS);
    assert!(page.contains("<mark>&lt;b&gt;hair</mark>"), "the tag is text");
    assert!(page.contains("a &lt;i&gt;red&lt;&#x2f;i&gt; chair"), "so is a prompt");
    assert_eq!(
        page.matches("data:image/jpeg;base64,/9j/").count(),
        12,
        "two features, two prompts, three ways"
    );
    assert!(!page.contains("http") && !page.contains("<script"), "it needs nothing else");
    let pictures: Vec<_> = files.iter().filter(|file| file.extension().is_some_and(|e| e == "png")).collect();
    assert_eq!(pictures.len(), 13, "an overview, and six of each feature: {files:?}");
    pictures.iter().for_each(|file| assert!(image::open(file).is_ok(), "{}", file.display()));
    let grid = image::open(out.join("1-hair-pictures.png")).unwrap().into_rgb8();
    assert_eq!(grid.dimensions(), (3 * 68, 2 * 68));
    let part =
        |column: u32, row: u32| image::imageops::crop_imm(&grid, column * 68, row * 68, 64, 64).to_image();
    assert!(part(0, 0) != part(1, 0), "the LoRA is seen");
    assert!(part(1, 0) != part(2, 0), "in the negative prompt's half too, where it is always on");
    assert!(part(0, 1) == part(2, 1), "not without its tag, where it waits for it");

    // the same again, but for the pictures that the noise is added to
    let photos = folder.path().join("photos");
    fs::create_dir(&photos).unwrap();
    image::RgbImage::from_pixel(80, 70, [200, 30, 60].into()).save(photos.join("a.png")).unwrap();
    let start = &args[..args.len() - 8];
    let again: Value = serde_json::from_str(&prints(&[start, &["--json"]].concat())).unwrap();
    let mut undrawn = json.clone();
    for feature in undrawn["features"].as_array_mut().unwrap() {
        let kept = feature["kept"].as_array_mut().unwrap();
        let gates: Vec<&str> = kept.iter().map(|kept| kept["gate"].as_str().unwrap()).collect();
        assert_eq!(gates, ["always", "prompt"]);
        for kept in kept.drain(..) {
            let [share, distance, other] =
                ["kept", "distance", "other"].map(|name| kept[name].as_f64().unwrap());
            assert_eq!(kept["pairs"], 1);
            assert!(distance > 0.0 && (share - (1.0 - distance / other)).abs() < 1e-12, "{kept}");
        }
    }
    assert_eq!(again, undrawn, "equal arguments give equal numbers");
    let more = ["--json", "--no-blocks", "--pictures-from", text(&photos)];
    let other: Value = serde_json::from_str(&prints(&[start, &more].concat())).unwrap();
    assert_eq!(other["latents"]["folder"], text(&photos));
    assert_eq!(other["features"][0]["blocks"], serde_json::json!([]));
    assert_ne!(other["features"][0]["gates"], json["features"][0]["gates"]);
    assert_eq!(other["timesteps"], json["timesteps"]);
}

#[test]
fn probing_refuses_what_cannot_work() {
    let folder = tempdir().unwrap();
    let [hair, coat, _] = project(folder.path());
    let empty = put(folder.path(), "empty.txt", "# nothing\n");
    let model = model();
    for args in [
        &["--tag", "a", "--lora", &hair][..],
        &["--lora", &hair, "--class", "a", "--class", "b"],
        &["--tag", "a"],
        &["--lora", &hair, "--samples", "0"],
    ] {
        let run = strata(&[&["probe", text(&model)], args].concat());
        assert_eq!(run.code, Some(2), "{args:?}");
        assert!(run.err.contains("--help"), "{args:?}: {}", run.err);
    }
    let with = |args: &[&str], words: &[&str]| fails(&[&["probe", text(&model)], args].concat(), words);
    with(&["--lora", &coat], &["coat.safetensors", "names no tags", "--tag"]);
    with(&["--lora", "none.safetensors"], &["none.safetensors"]);
    with(&["--lora", &hair, "--prompts", "none.txt"], &["none.txt"]);
    with(&["--lora", &hair, "--prompts", text(&empty)], &["empty.txt", "no prompt"]);
    with(&["--lora", &hair, "--size", "63"], &["--size 63", "multiple of 8"]);
    with(&["--lora", &hair, "--pictures-from", text(folder.path())], &["no pictures"]);
    with(&["--lora", &hair, "--out", text(&empty)], &["empty.txt"]);
    with(&["--lora", &coat, "--tag", " "], &["coat.safetensors", "tag"]);
}
