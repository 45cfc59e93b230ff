//! LoRA files.

use std::fs;
use std::path::Path;

use half::f16;
use strata_engine::DType;
use strata_model::{LoraDtype, LoraFile, LoraModule, LoraSet, TensorFile, Unet, kohya_name};
use strata_tests::{Setup, gpu};
use tempfile::tempdir;

use crate::support::{Entry, MODELS, f32s, golden, golden_json, put, refused, safetensors};

const NAMES: [&str; 4] = ["attn_all", "attn_sel", "attn_sel_zero", "locon_sel"];

fn module(rank: usize) -> LoraModule {
    let numbers = |count: usize| (0..count).map(|i| (i as f32 - 3.0) / 7.0).collect::<Vec<_>>();
    LoraModule {
        down: numbers(rank * 5),
        down_shape: vec![rank, 5],
        up: numbers(4 * rank),
        up_shape: vec![4, rank],
        alpha: 1.5,
    }
}

fn file(dtype: LoraDtype, modules: &[(&str, LoraModule)]) -> LoraFile {
    let modules = modules.iter().map(|(name, module)| ((*name).to_string(), module.clone())).collect();
    let metadata = [("ss_network_dim".to_string(), "2".to_string()), ("note".into(), "ä \"quoted\"".into())];
    LoraFile { modules, dtype, metadata: metadata.into() }
}

#[test]
fn kohya_files_are_read_as_they_are() {
    for model in MODELS {
        for name in NAMES {
            let path = golden(model, &format!("lora/{name}_kohya.safetensors"));
            let read = LoraFile::read(&path).unwrap();
            let mut raw = TensorFile::open(&path).unwrap();
            assert_eq!(read.modules.len() * 3, raw.tensors().len());
            assert_eq!(read.dtype, LoraDtype::F32);
            assert_eq!(read.metadata["ss_network_module"], "networks.lora");
            for (key, module) in &read.modules {
                assert_eq!(module.down, raw.read(&format!("{key}.lora_down.weight")).unwrap());
                assert_eq!(module.up, raw.read(&format!("{key}.lora_up.weight")).unwrap());
                assert_eq!(vec![module.alpha], raw.read(&format!("{key}.alpha")).unwrap());
            }
            let Some(listed) = golden_json(model, "meta.json")["loras"][name]["unet"].as_object().cloned()
            else {
                continue;
            };
            assert_eq!(listed.len(), read.modules.len());
            for (path, rank_and_alpha) in &listed {
                let module = &read.modules[&kohya_name(path)];
                assert_eq!(serde_json::json!([module.rank(), module.alpha]), *rank_and_alpha, "{path}");
                assert_eq!(module.scale(), module.alpha / module.rank() as f32);
            }
        }
    }
}

#[test]
fn what_is_written_reads_back_and_writes_the_same_bytes() {
    let folder = tempdir().unwrap();
    let [first, second] = ["a.safetensors", "b.safetensors"].map(|name| folder.path().join(name));
    let mut written = vec![file(LoraDtype::F32, &[("lora_unet_x", module(2)), ("lora_unet_y", module(3))])];
    for model in MODELS {
        for name in ["attn_sel", "locon_sel"] {
            written.push(LoraFile::read(&golden(model, &format!("lora/{name}_kohya.safetensors"))).unwrap());
        }
    }
    for mut lora in written {
        for dtype in [LoraDtype::F32, LoraDtype::F16] {
            lora.dtype = dtype;
            lora.write(&first).unwrap();
            let read = LoraFile::read(&first).unwrap();
            read.write(&second).unwrap();
            assert!(fs::read(&first).unwrap() == fs::read(&second).unwrap(), "{dtype:?}");
            assert_eq!((read.dtype, &read.metadata), (dtype, &lora.metadata));
            let round = |v: &f32| if dtype == LoraDtype::F16 { f16::from_f32(*v).to_f32() } else { *v };
            for (key, module) in &lora.modules {
                let found = &read.modules[key];
                assert_eq!(found.down, module.down.iter().map(round).collect::<Vec<_>>());
                assert_eq!(found.up, module.up.iter().map(round).collect::<Vec<_>>());
                assert_eq!((&found.down_shape, &found.up_shape), (&module.down_shape, &module.up_shape));
            }
        }
    }
}

/// Kernels are turned on their way to the GPU, and turned back.
#[test]
fn a_file_comes_back_from_the_gpu_as_it_was() {
    let (gpu, folder) = (gpu(Setup::Lane), tempdir().unwrap());
    let path = folder.path().join("x.safetensors");
    for model in MODELS {
        let unet = Unet::open(&gpu, &golden(model, "unet"), DType::F32).unwrap();
        for name in NAMES {
            let file = LoraFile::read(&golden(model, &format!("lora/{name}_kohya.safetensors"))).unwrap();
            file.write(&path).unwrap();
            let before = fs::read(&path).unwrap();
            let set = LoraSet::from_file(&gpu, DType::F32, &file, &unet).unwrap();
            let numbers: usize = set.entries().iter().map(|entry| entry.parameters()).sum();
            let values = |module: &LoraModule| module.down.len() + module.up.len();
            assert_eq!(numbers, file.modules.values().map(values).sum::<usize>());
            let back = set.to_file(file.dtype, file.metadata.clone()).unwrap();
            back.write(&path).unwrap();
            assert!(fs::read(&path).unwrap() == before, "{model} {name}");
        }
    }
}

/// A module of another kernel, or of no layer, is named.
#[test]
fn modules_that_do_not_fit_are_refused() {
    let gpu = gpu(Setup::Lane);
    let unet = Unet::open(&gpu, &golden("sd15-tiny", "unet"), DType::F32).unwrap();
    let good = LoraFile::read(&golden("sd15-tiny", "lora/locon_sel_kohya.safetensors")).unwrap();
    let conv = "lora_unet_down_blocks_1_resnets_0_conv1";
    let change = |name: &str, change: &dyn Fn(&mut LoraModule)| {
        let mut file = good.clone();
        let mut module = file.modules.remove(conv).unwrap();
        change(&mut module);
        file.modules.insert(name.into(), module);
        LoraSet::from_file(&gpu, DType::F32, &file, &unet).map(|_| ())
    };
    change(conv, &|_| ()).unwrap();
    let flat = |module: &mut LoraModule| {
        module.down_shape.truncate(2);
        module.down.truncate(module.down_shape.iter().product());
    };
    refused(change(conv, &flat), &[conv, "3, 3]", "another model"]);
    refused(change("lora_unet_conv3", &|_| ()), &["lora_unet_conv3", "no layer"]);
    refused(change("lora_te_text_model_x", &|_| ()), &["lora_te_text_model_x", "text encoder"]);
}

#[test]
fn convolutions_keep_their_kernel() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("conv.safetensors");
    let conv = LoraModule {
        down: vec![0.5; 2 * 3 * 9],
        down_shape: vec![2, 3, 3, 3],
        up: vec![0.25; 8],
        up_shape: vec![4, 2, 1, 1],
        alpha: 2.0,
    };
    let lora = file(LoraDtype::F16, &[("lora_unet_conv", conv)]);
    lora.write(&path).unwrap();
    assert_eq!(LoraFile::read(&path).unwrap(), lora);
}

/// A run that diverged leaves the file of its last good save alone.
#[test]
fn values_that_are_not_finite_are_not_written() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    file(LoraDtype::F16, &[("m", module(2))]).write(&path).unwrap();
    let before = fs::read(&path).unwrap();
    for (bad, dtype) in [(f32::NAN, LoraDtype::F32), (f32::INFINITY, LoraDtype::F16), (1e6, LoraDtype::F16)] {
        let mut broken = module(2);
        broken.up[3] = bad;
        refused(
            file(dtype, &[("m", broken)]).write(&path),
            &["x.safetensors", "m.lora_up.weight", "not written"],
        );
        let mut broken = module(2);
        broken.alpha = bad;
        refused(file(dtype, &[("m", broken)]).write(&path), &["m.alpha"]);
    }
    assert!(fs::read(&path).unwrap() == before);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no half-written file stays behind");
    let mut large = module(2);
    large.up[3] = 1e6;
    file(LoraDtype::F32, &[("m", large)]).write(&path).unwrap();
    let nowhere = folder.path().join("no/such/folder.safetensors");
    refused(file(LoraDtype::F32, &[("m", module(2))]).write(&nowhere), &["folder.safetensors"]);
}

fn read(folder: &Path, tensors: &[Entry<'_>]) -> Result<LoraFile, strata_model::Error> {
    LoraFile::read(&put(folder, "x.safetensors", safetensors(tensors)))
}

#[test]
fn files_that_are_no_kohya_lora_are_refused() {
    let folder = tempdir().unwrap();
    let folder = folder.path();
    let down =
        |shape: &'static [usize]| f32s("m.lora_down.weight", shape, &vec![1.0; shape.iter().product()]);
    let up = |shape: &'static [usize]| f32s("m.lora_up.weight", shape, &vec![1.0; shape.iter().product()]);
    assert_eq!(
        read(folder, &[down(&[2, 3]), up(&[4, 2])]).unwrap().modules["m"].alpha,
        2.0,
        "no alpha means the rank"
    );
    refused(read(folder, &[]), &["no tensors"]);
    refused(read(folder, &[down(&[2, 3])]), &["m.lora_up.weight", "missing"]);
    refused(read(folder, &[up(&[4, 2])]), &["m.lora_down.weight", "missing"]);
    refused(read(folder, &[down(&[2, 3]), up(&[4, 3])]), &["[2, 3]", "[4, 3]", "rank"]);
    refused(read(folder, &[down(&[2, 3]), up(&[4])]), &["dimensions"]);
    refused(read(folder, &[down(&[2, 3, 3, 3]), up(&[4, 2, 3, 3])]), &["1×1"]);
    let alpha = |values: &[f32], shape: &'static [usize]| f32s("m.alpha", shape, values);
    refused(read(folder, &[down(&[2, 3]), up(&[4, 2]), alpha(&[f32::NAN], &[])]), &["m.alpha", "finite"]);
    refused(read(folder, &[down(&[2, 3]), up(&[4, 2]), alpha(&[1.0, 2.0], &[2])]), &["m.alpha"]);
    for (key, kind) in [
        ("m.hada_w1_a", "LoHa"),
        ("m.lokr_w1", "LoKr"),
        ("m.dora_scale", "DoRA"),
        ("m.lora_mid.weight", "Tucker"),
        ("m.diff", "full weight differences"),
        ("unet.m.lora_A.weight", "PEFT"),
        ("unet.m.processor.to_q_lora.down.weight", "diffusers"),
        ("bundle_emb.x", "embedding"),
        ("conv_in.weight", "unknown"),
    ] {
        refused(read(folder, &[f32s(key, &[1], &[1.0])]), &["not a kohya LoRA", key, kind]);
    }
}
