//! Safetensors files, and the tensors of a component folder.

use half::{bf16, f16};
use strata_model::{LoraWeights, TensorFile, Weights};
use tempfile::tempdir;

use crate::support::{Entry, f32s, put, refused, safetensors, with_header};

const STEM: &str = "diffusion_pytorch_model";

fn small() -> Vec<u8> {
    safetensors(&[f32s("a", &[2], &[1.0, 2.0]), f32s("b", &[1, 3], &[3.0, 4.0, 5.0])])
}

#[test]
fn every_type_that_weights_and_alphas_have_is_read() {
    let values = [1.5_f32, -2.0, 0.333_333_34, 1e-6];
    let halves = values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
    let brains = values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
    let doubles = values.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect();
    let shape: &[usize] = &[2, 2];
    let tensors: [Entry<'_>; 7] = [
        f32s("f32", shape, &values),
        ("f16", "F16", shape, halves),
        ("bf16", "BF16", shape, brains),
        ("f64", "F64", shape, doubles),
        ("scalar", "F32", &[], 7_f32.to_le_bytes().to_vec()),
        ("i64", "I64", &[], 8_i64.to_le_bytes().to_vec()),
        ("i32", "I32", &[1], vec![0; 4]),
    ];
    let folder = tempdir().unwrap();
    let path = put(folder.path(), "x.safetensors", safetensors(&tensors));
    let mut file = TensorFile::open(&path).unwrap();
    assert_eq!(file.read("f32").unwrap(), values);
    assert_eq!(file.read("f64").unwrap(), values);
    assert_eq!(file.read("f16").unwrap(), values.map(|v| f16::from_f32(v).to_f32()));
    assert_eq!(file.read("bf16").unwrap(), values.map(|v| bf16::from_f32(v).to_f32()));
    assert_eq!(file.read("scalar").unwrap(), [7.0]);
    assert_eq!(file.tensors()["bf16"].shape, [2, 2]);
    assert_eq!(file.read("i64").unwrap(), [8.0]);
    refused(file.read("i32"), &["i32", "I32", "x.safetensors"]);
    refused(file.read("missing"), &["missing", "x.safetensors"]);
}

#[test]
fn damaged_files_are_refused() {
    let folder = tempdir().unwrap();
    let whole = small();
    let header_end = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let open = |bytes: &[u8]| TensorFile::open(&put(folder.path(), "x.safetensors", bytes));
    open(&whole).unwrap();
    for cut in [0, 4, 8, 20, header_end - 1, header_end, whole.len() - 1] {
        refused(open(&whole[..cut]), &["x.safetensors"]);
    }
    refused(open(&whole[..whole.len() - 1]), &["cut off"]);
    refused(open(&[&whole[..], &[0]].concat()), &["x.safetensors", "header describes"]);
    refused(open(&[&u64::MAX.to_le_bytes()[..], &whole[8..]].concat()), &["not a safetensors file"]);
    refused(open(b"nothing known"), &["not a safetensors file", "no header"]);
    refused(open(&with_header("{\"a\": 1}", &[])), &["header"]);
    refused(open(&with_header("not json at all", &[])), &["header"]);
    let entry = |end: usize| format!(r#"{{"dtype":"F32","shape":[2],"data_offsets":[0,{end}]}}"#);
    refused(open(&with_header(&format!(r#"{{"a":{}}}"#, entry(4)), &[0; 4])), &["header"]);
    refused(open(&with_header(&format!(r#"{{"a":{},"b":{}}}"#, entry(8), entry(8)), &[0; 8])), &["header"]);
    refused(TensorFile::open(&folder.path().join("none.safetensors")), &["none.safetensors"]);
}

#[test]
fn each_tensor_is_taken_once_and_none_is_left() {
    let folder = tempdir().unwrap();
    put(folder.path(), &format!("{STEM}.safetensors"), small());
    let open = || Weights::open(folder.path(), STEM).unwrap();

    let mut weights = open();
    assert_eq!(weights.shape("b"), Some(&[1, 3][..]));
    assert!(!weights.is_half() && weights.contains("a") && !weights.contains("c"));
    assert_eq!(weights.take("a", &[2]).unwrap(), [1.0, 2.0]);
    refused(weights.take("a", &[2]), &["`a`", "already taken"]);
    assert_eq!(weights.take_any(&["old", "b"], &[&[3], &[1, 3]]).unwrap(), [3.0, 4.0, 5.0]);
    weights.finish().unwrap();

    let mut weights = open();
    refused(weights.take("a", &[1, 2]), &["`a`", "[2]", "[1, 2]", STEM]);
    refused(weights.take("c", &[4]), &["`c`", "[4]", STEM]);
    refused(weights.take_any(&["new", "old"], &[&[4]]), &["`new`"]);
    weights.ignore("a");
    weights.ignore("not there");
    refused(weights.finish(), &["1 tensor", "b"]);
    refused(open().finish(), &["2 tensor", "a, b"]);
}

#[test]
fn prefixes_are_dropped_where_they_are() {
    let folder = tempdir().unwrap();
    let file = |names: &[&str]| {
        let tensors: Vec<Entry<'_>> = names.iter().map(|name| f32s(name, &[1], &[1.0])).collect();
        put(folder.path(), "model.safetensors", safetensors(&tensors));
        Weights::open(folder.path(), "model").unwrap()
    };
    let mut mixed = file(&["text_model.a", "b"]);
    mixed.strip_prefix("text_model.").unwrap();
    mixed.take("a", &[1]).unwrap();
    refused(mixed.take("b", &[2]), &["`b`"]);
    refused(mixed.take("a", &[1]), &["text_model.a"]);
    refused(file(&["text_model.a", "a"]).strip_prefix("text_model."), &["`a`", "text_model."]);
}

#[test]
fn shards_are_followed() {
    let folder = tempdir().unwrap();
    let path = folder.path();
    let index = |map: &str| {
        put(path, &format!("{STEM}.safetensors.index.json"), format!(r#"{{"weight_map": {map}}}"#))
    };
    put(path, "one.safetensors", safetensors(&[f32s("a", &[1], &[1.0])]));
    put(path, "two.safetensors", safetensors(&[f32s("b", &[1], &[2.0])]));
    index(r#"{"a": "one.safetensors", "b": "two.safetensors"}"#);
    let mut weights = Weights::open(path, STEM).unwrap();
    assert_eq!((weights.take("b", &[1]).unwrap(), weights.take("a", &[1]).unwrap()), (vec![2.0], vec![1.0]));
    weights.finish().unwrap();

    index(r#"{"a": "one.safetensors", "b": "one.safetensors"}"#);
    refused(Weights::open(path, STEM), &["`b`", "one.safetensors"]);
    index(r#"{"a": "../one.safetensors"}"#);
    refused(Weights::open(path, STEM), &["not a plain file name"]);
    index(r#"{"a": "three.safetensors"}"#);
    refused(Weights::open(path, STEM), &["three.safetensors"]);
    put(path, "two.safetensors", safetensors(&[f32s("a", &[1], &[2.0])]));
    index(r#"{"a": "one.safetensors", "x": "two.safetensors"}"#);
    refused(Weights::open(path, STEM), &["`a`", "another shard"]);
    index("[]");
    refused(Weights::open(path, STEM), &["damaged shard index"]);
}

#[test]
fn the_16_bit_variant_is_found_and_pickles_are_not_read() {
    let folder = tempdir().unwrap();
    let path = folder.path();
    refused(Weights::open(&path.join("none"), STEM), &["none"]);
    refused(Weights::open(path, STEM), &["diffusion_pytorch_model.safetensors: is missing", "fetch"]);
    put(path, &format!("{STEM}.bin"), "");
    refused(Weights::open(path, STEM), &["pickled", "safe_serialization"]);
    put(path, &format!("{STEM}.fp16.safetensors"), safetensors(&[("a", "F16", &[1], vec![0, 0])]));
    assert!(Weights::open(path, STEM).unwrap().is_half());
    put(path, &format!("{STEM}.safetensors"), small());
    assert!(!Weights::open(path, STEM).unwrap().is_half(), "the full file comes first");
}

#[test]
fn other_files_under_this_name_are_named() {
    let folder = tempdir().unwrap();
    let zip = |name: &str| [b"PK\x03\x04\0\0\0\0", name.as_bytes(), &[0; 100]].concat();
    for (bytes, what) in [
        (include_bytes!("lfs-pointer.safetensors").to_vec(), "a git-LFS pointer"),
        (b"\n<!doctype HTML><html>Sign in</html>".to_vec(), "an HTML page"),
        (b"<html lang=en>".to_vec(), "an HTML page"),
        (b"\x80\x02}q\0X\x0a\0\0\0".to_vec(), "a pickled checkpoint"),
        (zip("archive/data.pkl"), "a pickled checkpoint"),
        (zip("readme.txt"), "a zip archive"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0".to_vec(), "a gzip archive"),
        (b"GGUF\x03\0\0\0\x10\0".to_vec(), "a GGUF file"),
        (Vec::new(), "an empty file"),
    ] {
        let path = put(folder.path(), "x.safetensors", bytes);
        refused(TensorFile::open(&path), &["x.safetensors: not a safetensors file, but", what]);
    }
}

#[test]
fn numbers_that_are_not_finite_are_found_as_they_are_read() {
    let folder = tempdir().unwrap();
    let nans = [1.0, f32::NAN, f32::NEG_INFINITY];
    let halves = nans.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
    let brains = nans.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
    let shape: &[usize] = &[3];
    for entry in [
        f32s("a.weight", shape, &nans),
        ("a.weight", "F16", shape, halves),
        ("a.weight", "BF16", shape, brains),
    ] {
        put(folder.path(), &format!("{STEM}.safetensors"), safetensors(&[entry]));
        let mut weights = Weights::open(folder.path(), STEM).unwrap();
        refused(
            weights.take("a.weight", shape),
            &[STEM, "`a.weight`", "2 of its 3 values are NaN or infinite"],
        );
    }
    let lora = [
        f32s("lora_unet_a.lora_down.weight", &[1, 2], &[0.5, 0.5]),
        f32s("lora_unet_a.lora_up.weight", &[2, 1], &[f32::NAN, 0.5]),
    ];
    let path = put(folder.path(), "lora.safetensors", safetensors(&lora));
    refused(
        LoraWeights::read(&path),
        &["lora.safetensors", "`lora_unet_a.lora_up.weight`", "1 of its 2 values"],
    );
}
