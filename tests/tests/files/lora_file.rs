//! LoRA files.

use std::fs;
use std::path::Path;

use half::f16;
use strata_engine::DType;
use strata_model::{LoraModule, LoraSet, LoraWeights, Part, TensorFile, kohya_name};
use strata_tests::{Setup, gpu};
use tempfile::tempdir;

use crate::support::{Entry, MODELS, f32s, golden, golden_json, put, refused, safetensors, unet};

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

/// A layer of the U-Net.
fn place(path: &str) -> (Part, String) {
    (Part::Unet, path.to_owned())
}

fn file(dtype: DType, modules: &[(&str, LoraModule)]) -> LoraWeights {
    let modules = modules.iter().map(|(path, module)| (place(path), module.clone())).collect();
    let metadata = [("ss_network_dim".to_string(), "2".to_string()), ("note".into(), "ä \"quoted\"".into())];
    LoraWeights { modules, dtype, metadata: metadata.into() }
}

#[test]
fn kohya_files_are_read_as_they_are() {
    for model in MODELS {
        for name in NAMES {
            let path = golden(model, &format!("lora/{name}_kohya.safetensors"));
            let read = LoraWeights::read(&path).unwrap();
            let mut raw = TensorFile::open(&path).unwrap();
            assert_eq!(read.modules.len() * 3, raw.tensors().len());
            assert_eq!(read.dtype, DType::F32);
            assert_eq!(read.metadata["ss_network_module"], "networks.lora");
            for ((part, path), module) in &read.modules {
                let key = kohya_name(*part, path);
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
                let module = read.unet(path).unwrap();
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
    let mut written = vec![file(DType::F32, &[("x", module(2)), ("y", module(3))])];
    for model in MODELS {
        for name in ["attn_sel", "locon_sel"] {
            written
                .push(LoraWeights::read(&golden(model, &format!("lora/{name}_kohya.safetensors"))).unwrap());
        }
    }
    for mut lora in written {
        for dtype in [DType::F32, DType::F16] {
            lora.dtype = dtype;
            lora.write(&first).unwrap();
            let read = LoraWeights::read(&first).unwrap();
            read.write(&second).unwrap();
            assert!(fs::read(&first).unwrap() == fs::read(&second).unwrap(), "{dtype:?}");
            assert_eq!((read.dtype, &read.metadata), (dtype, &lora.metadata));
            let round = |v: &f32| if dtype == DType::F16 { f16::from_f32(*v).to_f32() } else { *v };
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
        let unet = unet(&gpu, model, DType::F32);
        for name in NAMES {
            let file = LoraWeights::read(&golden(model, &format!("lora/{name}_kohya.safetensors"))).unwrap();
            file.write(&path).unwrap();
            let before = fs::read(&path).unwrap();
            let set = LoraSet::from_weights(&gpu, DType::F32, &file, &unet).unwrap();
            let numbers: usize = set.entries().iter().map(strata_model::LoraEntry::parameters).sum();
            let values = |module: &LoraModule| module.down.len() + module.up.len();
            assert_eq!(numbers, file.modules.values().map(values).sum::<usize>());
            let back = set.to_weights(file.dtype, file.metadata.clone()).unwrap();
            back.write(&path).unwrap();
            assert!(fs::read(&path).unwrap() == before, "{model} {name}");
        }
    }
}

/// A module of another kernel, or of no layer, is named.
#[test]
fn modules_that_do_not_fit_are_refused() {
    let gpu = gpu(Setup::Lane);
    let unet = unet(&gpu, "sd15-tiny", DType::F32);
    let good = LoraWeights::read(&golden("sd15-tiny", "lora/locon_sel_kohya.safetensors")).unwrap();
    let conv = "down_blocks.1.resnets.0.conv1";
    let change = |part: Part, path: &str, change: &dyn Fn(&mut LoraModule)| {
        let mut file = good.clone();
        let mut module = file.modules.remove(&place(conv)).unwrap();
        change(&mut module);
        file.modules.insert((part, path.into()), module);
        LoraSet::from_weights(&gpu, DType::F32, &file, &unet).map(|_| ())
    };
    change(Part::Unet, conv, &|_| ()).unwrap();
    let flat = |module: &mut LoraModule| {
        module.down_shape.truncate(2);
        module.down.truncate(module.down_shape.iter().product());
    };
    refused(change(Part::Unet, conv, &flat), &[conv, "3, 3]", "another model"]);
    refused(change(Part::Unet, "conv3", &|_| ()), &["conv3", "no layer"]);
    refused(change(Part::TextEncoder, "text_model.x", &|_| ()), &["text_model.x", "text encoder"]);
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
    let lora = file(DType::F16, &[("conv", conv)]);
    lora.write(&path).unwrap();
    assert_eq!(LoraWeights::read(&path).unwrap(), lora);
}

/// A run that diverged leaves the file of its last good save alone.
#[test]
fn values_that_are_not_finite_are_not_written() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    file(DType::F16, &[("conv_in", module(2))]).write(&path).unwrap();
    let before = fs::read(&path).unwrap();
    for (bad, dtype) in [(f32::NAN, DType::F32), (f32::INFINITY, DType::F16), (1e6, DType::F16)] {
        let mut broken = module(2);
        broken.up[3] = bad;
        refused(
            file(dtype, &[("conv_in", broken)]).write(&path),
            &["x.safetensors", "lora_unet_conv_in.lora_up.weight", "not written"],
        );
        let mut broken = module(2);
        broken.alpha = bad;
        refused(file(dtype, &[("conv_in", broken)]).write(&path), &["lora_unet_conv_in.alpha"]);
    }
    assert!(fs::read(&path).unwrap() == before);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no half-written file stays behind");
    let mut large = module(2);
    large.up[3] = 1e6;
    file(DType::F32, &[("conv_in", large)]).write(&path).unwrap();
    let nowhere = folder.path().join("no/such/folder.safetensors");
    refused(file(DType::F32, &[("conv_in", module(2))]).write(&nowhere), &["folder.safetensors"]);
}

fn read(folder: &Path, tensors: &[Entry<'_>]) -> Result<LoraWeights, strata_model::Error> {
    LoraWeights::read(&put(folder, "x.safetensors", safetensors(tensors)))
}

#[test]
fn files_that_are_no_kohya_lora_are_refused() {
    let folder = tempdir().unwrap();
    let folder = folder.path();
    let down = |shape: &'static [usize]| {
        f32s("lora_unet_m.lora_down.weight", shape, &vec![1.0; shape.iter().product()])
    };
    let up = |shape: &'static [usize]| {
        f32s("lora_unet_m.lora_up.weight", shape, &vec![1.0; shape.iter().product()])
    };
    assert_eq!(
        read(folder, &[down(&[2, 3]), up(&[4, 2])]).unwrap().unet("m").unwrap().alpha,
        2.0,
        "no alpha means the rank"
    );
    refused(read(folder, &[]), &["no tensors"]);
    refused(read(folder, &[down(&[2, 3])]), &["m.lora_up.weight", "missing"]);
    refused(read(folder, &[up(&[4, 2])]), &["m.lora_down.weight", "missing"]);
    refused(read(folder, &[down(&[2, 3]), up(&[4, 3])]), &["[2, 3]", "[4, 3]", "rank"]);
    refused(read(folder, &[down(&[2, 3]), up(&[4])]), &["dimensions"]);
    refused(read(folder, &[down(&[2, 3, 3, 3]), up(&[4, 2, 3, 3])]), &["1×1"]);
    let alpha = |values: &[f32], shape: &'static [usize]| f32s("lora_unet_m.alpha", shape, values);
    refused(read(folder, &[down(&[2, 3]), up(&[4, 2]), alpha(&[f32::NAN], &[])]), &["m.alpha", "finite"]);
    refused(read(folder, &[down(&[2, 3]), up(&[4, 2]), alpha(&[1.0, 2.0], &[2])]), &["m.alpha"]);
    refused(
        read(
            folder,
            &[f32s("m.lora_down.weight", &[1, 1], &[1.0]), f32s("m.lora_up.weight", &[1, 1], &[1.0])],
        ),
        &["module `m`", "lora_unet_"],
    );
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
