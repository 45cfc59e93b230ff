//! `strata lora merge --into` and `strata lora extract`: LoRAs into the weights of models, and out of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::Dtype;
use strata_engine::{DType, Gpu, Tape, Tensor};
use strata_model::{
    Checkpoint, Cx, F32s, Gates, LoraSet, LoraWeights, ModelOptions, Numbers, Part, PredictionType,
    TensorFile,
};
use strata_tests::{Setup, gpu};
use tempfile::tempdir;

use crate::cli::{fails, misused, prints, text};
use crate::support::{MODELS, golden, golden_tensors, nhwc, predict, refused};

fn lora(model: &str, name: &str) -> LoraWeights {
    LoraWeights::read(&golden(model, &format!("lora/{name}_kohya.safetensors"))).unwrap()
}

fn open(path: &Path, config: &Path) -> Checkpoint {
    let config = path.is_file().then(|| config.to_owned());
    Checkpoint::open_with(path, &ModelOptions { config, ..ModelOptions::default() }).unwrap()
}

/// All tensors of a file that hold such numbers.
fn read(path: &Path) -> F32s {
    let mut file = TensorFile::open(path).unwrap();
    let shapes: Vec<_> =
        file.tensors().iter().map(|(name, info)| (name.clone(), info.shape.clone())).collect();
    let read = |(name, shape): (String, Vec<usize>)| Some((name.clone(), (shape, file.read(&name).ok()?)));
    shapes.into_iter().filter_map(read).collect()
}

/// What text encoder and U-Net say, with LoRAs always on.
fn says(gpu: &Gpu, checkpoint: &Checkpoint, goldens: &str, loras: &[(LoraWeights, f32)]) -> Vec<f32> {
    let inputs = golden_tensors(goldens, "goldens.safetensors");
    let gates = Gates::scalars(&loras.iter().map(|(_, ratio)| *ratio).collect::<Vec<_>>());
    let tape = Tape::off();
    let cx = Cx { gates: &gates, ..Cx::new(&tape) };
    let mut text = checkpoint.text_encoder(gpu, DType::F32).unwrap();
    let mut unet = checkpoint.unet(gpu, DType::F32).unwrap();
    for (i, (lora, _)) in loras.iter().enumerate() {
        let mut of_unet = lora.clone();
        text.attach(&of_unet.take(Part::TextEncoder), i).unwrap();
        let set = LoraSet::from_weights(gpu, DType::F32, &of_unet, &unet).unwrap();
        unet.attach(&set).unwrap();
    }
    let ids = &inputs["clip.input_ids"];
    let numbers: Vec<u32> = ids.1.iter().map(|id| *id as u32).collect();
    let states = text.clip().forward(&cx, &Tensor::from_u32(gpu, &numbers, &ids.0).unwrap(), 0).unwrap();
    let (shape, context) = &inputs["unet.context"];
    let context = Tensor::from_f32(gpu, context, shape, DType::F32).unwrap();
    let sample = nhwc(gpu, &inputs["unet.sample"]);
    let said = predict(&unet, &cx, &sample, &inputs["unet.mixed.timesteps"].1, &context).unwrap();
    [states.to_f32().unwrap(), said.to_f32().unwrap()].concat()
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let far: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    (far / b.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>()).sqrt()
}

/// Every way from a folder or a single file to a folder or a single file: the merged model says what the model says with the LoRAs.
#[test]
fn merged_models_say_what_loras_do() {
    let gpu = gpu(Setup::Lane);
    for model in MODELS {
        let (folder, root) = (tempdir().unwrap(), golden(model, ""));
        let single = golden("ldm", &format!("{model}.safetensors"));
        let mut loras = vec![(lora(model, "kohya_full"), 0.7), (lora(model, "locon_sel"), -0.5)];
        if model == "sd15-tiny" {
            loras.push((lora(model, "dora_sel"), 0.3));
        }
        for (from, name) in [(&root, "folder"), (&single, "single")] {
            let base = open(from, &root);
            let (with, without) = (says(&gpu, &base, model, &loras), says(&gpu, &base, model, &[]));
            assert!(distance(&with, &without) > 1e-2);
            for to in ["out", "out.safetensors"] {
                let out = folder.path().join(format!("{name}-{to}"));
                base.merge(&loras, &out, Some(Numbers::F32)).unwrap();
                let merged = open(&out, &root);
                merged.check_unet().unwrap();
                let error = distance(&says(&gpu, &merged, model, &[]), &with);
                assert!(error < 3e-6, "{model} {name} {to}: {error:e}");
                let predicts = |model: &Checkpoint| model.scheduler().unwrap().prediction_type;
                assert_eq!(predicts(&merged), predicts(&base));
            }
        }
        // in the numbers of the file
        let (out, base) = (folder.path().join("half.safetensors"), open(&single, &root));
        base.merge(&loras, &out, None).unwrap();
        let dtypes = |path: &Path| -> BTreeMap<String, Dtype> {
            let file = TensorFile::open(path).unwrap();
            file.tensors().iter().map(|(name, info)| (name.clone(), info.dtype)).collect()
        };
        assert!(dtypes(&out) == dtypes(&single));
        let error = distance(&says(&gpu, &open(&out, &root), model, &[]), &says(&gpu, &base, model, &loras));
        assert!(error < 3e-3, "{model}: {error:e}");
    }
}

/// Where nothing is changed, all tensors keep their bits on every way, and so does the rest of a folder.
#[test]
fn what_is_not_changed_keeps_its_bits() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for model in MODELS {
        let (root, single) = (golden(model, ""), golden("ldm", &format!("{model}.safetensors")));
        let nothing = [(lora(model, "attn_all"), 0.0)];
        let go = |from: &Path, to: &str| {
            let out = at(&format!("{model}-{to}"));
            open(from, &root).merge(&nothing, &out, None).unwrap();
            out
        };
        let copy = go(&single, "copy.safetensors");
        assert!(read(&copy) == read(&single));
        // there and back
        let spread = go(&single, "spread");
        let again = read(&go(&spread, "again.safetensors"));
        let original = read(&single);
        for (name, (shape, values)) in &again {
            // sd2-tiny's has no VAE, and its scheduler says v
            match original.get(name) {
                Some(own) => assert!(own == &(shape.clone(), values.clone()), "{model} {name}"),
                None => assert!(model == "sd2-tiny" && (name.starts_with("first_stage") || name == "v_pred")),
            }
        }
        let lost = original.keys().filter(|name| !again.contains_key(*name));
        let known =
            ["position_ids", "betas", "alphas_cumprod", "text_projection", "logit_scale", "resblocks."];
        lost.for_each(|name| assert!(known.iter().any(|part| name.contains(part)), "{model} {name}"));

        let whole = go(&root, "whole");
        for part in ["unet", "text_encoder", "vae", "tokenizer", "scheduler", "."] {
            for entry in fs::read_dir(root.join(part)).unwrap() {
                let path = entry.unwrap().path();
                let out = whole.join(path.strip_prefix(&root).unwrap());
                match path.extension().and_then(|end| end.to_str()) {
                    // the model's own are in folders
                    Some("safetensors") if part != "." => {
                        assert!(read(&out) == read(&path), "{}", out.display());
                    }
                    Some("json" | "txt") => assert!(fs::read(&out).unwrap() == fs::read(&path).unwrap()),
                    _ => (),
                }
            }
        }
        assert!(!whole.join("goldens.safetensors").exists(), "no model lies at the top of a folder");
    }
    // averages are those of another model
    let mini = golden("sd15-mini", "");
    let out = at("mini.safetensors");
    let file = mini.join("ldm-ema.safetensors");
    open(&file, &mini).merge(&[], &out, None).unwrap();
    let kept: BTreeMap<_, _> =
        read(&file).into_iter().filter(|(name, _)| !name.starts_with("model_ema.")).collect();
    assert!(read(&out) == kept);
    // an old merge, whose text encoder lacks a part of its names
    let old = mini.join("ldm-oldmerge.safetensors");
    open(&old, &mini).merge(&[], &at("old"), None).unwrap();
    Checkpoint::open(&at("old")).unwrap().check_unet().unwrap();
}

/// 8-bit weights are widened where a LoRA changes them, and only there.
#[test]
fn narrow_numbers_are_widened_where_they_change() {
    let (folder, root) = (tempdir().unwrap(), golden("sd15-mini", ""));
    let name = "model.diffusion_model.middle_block.1.proj_in.weight";
    let mut tensors = read(&root.join("ldm-oldmerge.safetensors"));
    tensors.retain(|name, _| !name.ends_with("position_ids"));
    let entries: Vec<_> = tensors
        .iter()
        .map(|(name, (shape, values))| (name.as_str(), "F8_E4M3", shape.as_slice(), vec![0x38; values.len()]))
        .collect();
    let file = folder.path().join("f8.safetensors");
    fs::write(&file, crate::support::safetensors(&entries)).unwrap();
    let mut lora = lora("sd15-tiny", "attn_sel");
    let mut module = lora.modules.values().next().unwrap().clone();
    (module.down, module.down_shape) = (vec![0.25; 8], vec![1, 8, 1, 1]);
    (module.up, module.up_shape, module.alpha) = (vec![0.5; 8], vec![8, 1, 1, 1], 1.0);
    lora.modules = [((Part::Unet, "mid_block.attentions.0.proj_in".to_owned()), module)].into();
    let out = folder.path().join("out.safetensors");
    open(&file, &root).merge(&[(lora, 1.0)], &out, None).unwrap();
    let dtypes = |path: &Path| TensorFile::open(path).unwrap().tensors().clone();
    for (own, info) in dtypes(&out) {
        assert_eq!(info.dtype, if own == name { Dtype::F16 } else { Dtype::F8_E4M3 }, "{own}");
    }
    assert!(read(&out)[name].1.iter().all(|v| *v == 1.125));
}

/// What was merged comes out again.
#[test]
fn extracting_finds_the_lora() {
    let folder = tempdir().unwrap();
    let (root, out) = (golden("sd15-tiny", ""), folder.path().join("tuned"));
    let added = lora("sd15-tiny", "kohya_full");
    let rank = added.modules.values().map(|module| module.rank()).max().unwrap();
    let base = Checkpoint::open(&root).unwrap();
    base.merge(&[(added.clone(), 1.0)], &out, None).unwrap();
    let tuned = Checkpoint::open(&out).unwrap();
    let found = LoraWeights::extract(&base, &tuned, rank, None).unwrap();
    assert!(found.modules.keys().eq(added.modules.keys()));
    assert_eq!(found.dtype, DType::F32);
    for (key, module) in &added.modules {
        let error = distance(&found.modules[key].delta(), &module.delta());
        assert!(error < 1e-4, "{key:?}: {error:e}");
        assert_eq!(found.modules[key].down_shape[1..], module.down_shape[1..], "{key:?}");
    }
    // of a lower rank the largest singular values: as resizing does
    let small = LoraWeights::extract(&base, &tuned, 1, Some("down_blocks.1, mid_block")).unwrap();
    let resized = added.resize(strata_model::Target::Rank(1)).unwrap();
    assert!(!small.modules.is_empty() && small.modules.len() < added.modules.len());
    for ((part, path), module) in &small.modules {
        assert!(
            *part == Part::Unet && (path.starts_with("down_blocks.1.") || path.starts_with("mid_block."))
        );
        let error = distance(&module.delta(), &resized.modules[&(*part, path.clone())].delta());
        assert!(error < 1e-3, "{path}: {error:e}");
    }
    let words = LoraWeights::extract(&base, &tuned, 1, Some("text_encoder")).unwrap();
    assert!(words.modules.keys().all(|(part, _)| *part == Part::TextEncoder));
    refused(LoraWeights::extract(&base, &base, 1, None), &["nothing to extract"]);
    refused(LoraWeights::extract(&base, &tuned, 1, Some("nowhere")), &["nowhere", "nearest"]);
    refused(LoraWeights::extract(&base, &tuned, 0, None), &["rank 0"]);
    let other = Checkpoint::open(&golden("sd2-tiny", "")).unwrap();
    refused(LoraWeights::extract(&base, &other, 1, None), &["sd2-tiny", "different kinds of model"]);
}

/// By the command: ratios of blocks, files and folders, and what is refused.
#[test]
fn merging_and_extracting_by_the_command() {
    let (gpu, folder) = (gpu(Setup::Lane), tempdir().unwrap());
    let path = |name: &str| text(&folder.path().join(name)).to_owned();
    let (root, single) = (golden("sd15-tiny", ""), golden("ldm", "sd15-tiny.safetensors"));
    let file = golden("sd15-tiny", "lora/attn_all_kohya.safetensors");
    let with = |ratio: f32| format!("{}:{ratio}", text(&file));
    let merge = |lora: &str, model: &Path, more: &[&str], to: &str| {
        let args = ["lora", "merge", lora, "--into", text(model), "--out", to];
        prints(&[&args[..], more].concat())
    };
    let blocks = ["--ratio", "up_blocks.1=0.5", "--ratio", "mid_block=0"];
    let said = merge(&with(2.0), &root, &blocks, &path("a"));
    assert!(said.contains("modules merged"), "{said}");
    let mut lora = lora("sd15-tiny", "attn_all");
    lora.modules.retain(|(_, path), _| !path.starts_with("mid_block."));
    for ((_, path), module) in &mut lora.modules {
        module.alpha *= if path.starts_with("up_blocks.1.") { 1.0 } else { 2.0 };
    }
    let base = Checkpoint::open(&root).unwrap();
    let merged = Checkpoint::open(folder.path().join("a").as_path()).unwrap();
    let error =
        distance(&says(&gpu, &merged, "sd15-tiny", &[]), &says(&gpu, &base, "sd15-tiny", &[(lora, 1.0)]));
    assert!(error < 3e-6, "{error:e}");

    let config = ["--config", text(&root), "--dtype", "f32"];
    merge(&with(1.0), &single, &config, &path("b.safetensors"));
    let args =
        ["lora", "extract", text(&single), &path("b.safetensors"), "--rank", "8", "--config", text(&root)];
    prints(&[&args[..], &["--select", "cross-attn", "--out", &path("c.safetensors")]].concat());
    let found = LoraWeights::read(Path::new(&path("c.safetensors"))).unwrap();
    assert!(found.modules.keys().all(|(_, path)| path.contains(".attn2.")) && !found.modules.is_empty());

    let wrong = golden("sd2-tiny", "lora/attn_sel_kohya.safetensors");
    let refuse = |args: &[&str], words: &[&str]| {
        fails(&[&["lora", "merge", "--out", &path("x")], args].concat(), words);
        assert!(!Path::new(&path("x")).exists());
    };
    refuse(
        &[text(&wrong), "--into", text(&root)],
        &["attn_sel_kohya.safetensors", "lora_down", "another model"],
    );
    refuse(
        &[text(&file), "--into", text(&single), "--config", text(&root), "--ratio", "up_block=1"],
        &["up_block", "nearest"],
    );
    let narrow = [&with(1e9), "--into", text(&single), "--config", text(&root), "--dtype", "f16"];
    refuse(&narrow, &["comes to hold", "too large for F16"]);
    refuse(&[text(&file)], &["one LoRA alone", "--into MODEL"]);
    refuse(&[&with(1e38), &with(1.0)], &["too large", "smaller ratios"]);
    fails(
        &["lora", "merge", text(&file), "--into", text(&root), "--out", &path("a")],
        &["there is something already"],
    );
    misused(&["lora", "merge", "a", "--into", "m", "--to", "peft", "--out", "x"], &["--to"]);
    misused(&["lora", "merge", "a", "--into", "m", "--ratio", "x", "--out", "x"], &["PATTERN=RATIO"]);
    misused(&["lora", "merge", "a", "b", "--ratio", "x=1", "--out", "x"], &["--into"]);
}

/// A file says what its model predicts, where its kind does not.
#[test]
fn single_files_say_what_they_predict() {
    let folder = tempdir().unwrap();
    for (model, prediction, ztsnr) in
        [("sd15-tiny", PredictionType::VPrediction, true), ("sd2-tiny", PredictionType::Epsilon, false)]
    {
        let root = folder.path().join(model);
        crate::support::copy_folder(&golden(model, ""), &root);
        let path = root.join("scheduler/scheduler_config.json");
        let mut scheduler: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let name = if prediction == PredictionType::Epsilon { "epsilon" } else { "v_prediction" };
        scheduler["prediction_type"] = name.into();
        scheduler["rescale_betas_zero_snr"] = ztsnr.into();
        fs::write(&path, scheduler.to_string()).unwrap();
        let out = folder.path().join(format!("{model}.safetensors"));
        Checkpoint::open(&root).unwrap().merge(&[], &out, None).unwrap();
        let file = TensorFile::open(&out).unwrap();
        let marks = ["v_pred", "ztsnr"].map(|mark| file.tensors().contains_key(mark));
        assert_eq!(marks, [prediction == PredictionType::VPrediction, ztsnr]);
        let told = file.metadata()["modelspec.prediction_type"].clone();
        assert_eq!(told, if prediction == PredictionType::Epsilon { "epsilon" } else { "v" });
    }
}
