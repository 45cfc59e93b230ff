//! LoRA files.

use std::fs;
use std::path::Path;

use half::f16;
use strata_engine::DType;
use strata_model::{LoraModule, LoraSet, LoraWeights, Part, Spelling, TensorFile, kohya_name};
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
        magnitude: None,
    }
}

/// A layer of the U-Net.
fn place(path: &str) -> (Part, String) {
    (Part::Unet, path.to_owned())
}

fn file(dtype: DType, modules: &[(&str, LoraModule)]) -> LoraWeights {
    let modules = modules.iter().map(|(path, module)| (place(path), module.clone())).collect();
    let metadata = [("ss_network_dim".to_string(), "2".to_string()), ("note".into(), "ä \"quoted\"".into())];
    LoraWeights { modules, embeddings: [].into(), dtype, metadata: metadata.into() }
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
        magnitude: None,
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
fn files_that_are_no_lora_are_refused() {
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
    refused(read(folder, &[down(&[2, 3])]), &["lora_unet_m", "lora_up", "missing"]);
    refused(read(folder, &[up(&[4, 2])]), &["lora_unet_m", "lora_down", "missing"]);
    refused(read(folder, &[down(&[2, 3]), up(&[4, 3])]), &["[2, 3]", "[4, 3]", "rank"]);
    refused(read(folder, &[down(&[2, 3]), up(&[4])]), &["dimensions"]);
    refused(read(folder, &[down(&[2, 3, 3, 3]), up(&[4, 2, 3, 3])]), &["1×1"]);
    let alpha = |values: &[f32], shape: &'static [usize]| f32s("lora_unet_m.alpha", shape, values);
    refused(read(folder, &[down(&[2, 3]), up(&[4, 2]), alpha(&[f32::NAN], &[])]), &["m.alpha", "finite"]);
    refused(read(folder, &[down(&[2, 3]), up(&[4, 2]), alpha(&[1.0, 2.0], &[2])]), &["m.alpha"]);
    refused(
        read(folder, &[f32s("m.lora_down.weight", &[1, 1], &[1.0])]),
        &["`m.lora_down.weight`", "lora_unet_"],
    );
    for (key, kind) in [
        ("lora_unet_m.oft_blocks", "OFT"),
        ("lora_unet_m.a1.weight", "GLoRA"),
        ("lora_unet_m.diff_b", "bias"),
        ("lora_unet_m.w_norm", "norm"),
        ("conv_in.weight", "unknown"),
    ] {
        let message = refused(read(folder, &[f32s(key, &[1], &[1.0])]), &["not a LoRA", key, kind]);
        assert_eq!(
            message,
            refused(read(folder, &[down(&[2, 3]), up(&[4, 2]), f32s(key, &[1], &[1.0])]), &[key])
        );
    }
    let bundled = f32s("bundle_emb.x", &[1], &[1.0]);
    refused(read(folder, &[down(&[2, 3]), up(&[4, 2]), bundled]), &["embedding \"x\"", "`bundle_emb.x`"]);
    let other = f32s("unet.down_blocks.0.m.lora_A.weight", &[2, 3], &[1.0; 6]);
    refused(
        read(folder, &[down(&[2, 3]), up(&[4, 2]), other]),
        &["mixture", "unet.down_blocks.0.m", "diffusers", "kohya"],
    );
    // a layer under two names, and two kinds of adaptation of one layer
    let twice = [("lora_te_text_model_x.alpha", 1.0), ("lora_te1_text_model_x.alpha", 1.0)];
    refused(read(folder, &twice.map(|(key, value)| f32s(key, &[], &[value]))), &["two names"]);
    let hada = f32s("lora_unet_m.hada_w1_a", &[2, 2], &[1.0; 4]);
    refused(read(folder, &[down(&[2, 3]), up(&[4, 2]), hada]), &["lora_unet_m", "hada_w1_b", "missing"]);
    let diff = f32s("lora_unet_m.diff", &[4, 3], &[1.0; 12]);
    refused(read(folder, &[down(&[2, 3]), up(&[4, 2]), diff]), &["lora_unet_m", "two kinds"]);
    let magnitude = f32s("lora_unet_m.dora_scale", &[1, 3], &[1.0; 3]);
    refused(read(folder, &[down(&[2, 3]), up(&[4, 2]), magnitude]), &["lora_unet_m", "magnitudes", "[1, 3]"]);
}

/// Every spelling of a file that diffusers and PEFT wrote says the same as kohya's.
#[test]
fn spellings_agree() {
    let read =
        |file: &str| LoraWeights::read(&golden("sd15-tiny", &format!("lora/{file}.safetensors"))).unwrap();
    for (name, others) in [
        ("attn_sel", &["attn_sel_peft", "attn_sel_peft_folded"][..]),
        ("locon_sel", &["locon_sel_peft"]),
        ("dora_sel", &["dora_sel_peft"]),
    ] {
        let kohya = read(&format!("{name}_kohya"));
        for other in others {
            let other = read(other);
            assert!(other.modules.keys().eq(kohya.modules.keys()));
            for (key, module) in &kohya.modules {
                let own = &other.modules[key];
                assert_eq!((&module.down, &module.down_shape), (&own.down, &own.down_shape));
                let close = |(a, b): (f32, f32)| (a - b).abs() <= 1e-6 * a.abs();
                assert!(module.delta().into_iter().zip(own.delta()).all(close), "{key:?}");
                assert_eq!(module.magnitude, own.magnitude);
            }
        }
    }
    let old = [
        (
            "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.down.weight",
            "attn1.to_out.0",
        ),
        ("mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_q_lora.down.weight", "attn2.to_q"),
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora.down.weight", "attn2.to_k"),
        (
            "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight",
            "attn2.to_k",
        ),
        (
            "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight",
            "self_attn.q_proj",
        ),
    ];
    let folder = tempdir().unwrap();
    for (down, layer) in old {
        let up = down.replace("down.weight", "up.weight").replace("lora_A", "lora_B");
        let pair = [f32s(down, &[1, 2], &[1.0, 2.0]), f32s(&up, &[3, 1], &[1.0, 2.0, 3.0])];
        let lora = self::read(folder.path(), &pair).unwrap();
        let ((part, path), module) = lora.modules.iter().next().unwrap();
        assert!(path.ends_with(layer), "{down}: {path}");
        assert_eq!(*part == Part::TextEncoder, down.contains("text_model"));
        assert_eq!((module.alpha, &module.up[..]), (1.0, &[1.0, 2.0, 3.0][..]));
    }
}

/// There and back: the same bytes.
#[test]
fn spellings_are_converted_and_come_back() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in ["attn_sel_kohya", "locon_sel_kohya", "dora_sel_kohya"] {
        let first = at(&format!("{name}.safetensors"));
        let mut lora = LoraWeights::read(&golden("sd15-tiny", &format!("lora/{name}.safetensors"))).unwrap();
        // two text encoders' layers beside the U-Net's
        for part in [Part::TextEncoder, Part::TextEncoder2] {
            let path = "text_model.encoder.layers.0.mlp.fc1".to_owned();
            lora.modules.insert((part, path), module(if part == Part::TextEncoder { 2 } else { 3 }));
        }
        lora.write(&first).unwrap();
        for spelling in [Spelling::Diffusers, Spelling::Peft] {
            let (other, back) = (at(&format!("{name} {spelling:?}")), at("back.safetensors"));
            lora.write_as(spelling, &other).unwrap();
            let read = LoraWeights::read(&other).unwrap();
            read.write(&back).unwrap();
            assert!(fs::read(&first).unwrap() == fs::read(&back).unwrap(), "{name} {spelling:?}");
        }
    }
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(at("dora_sel_kohya Peft").join("adapter_config.json")).unwrap())
            .unwrap();
    assert_eq!((&config["peft_type"], &config["use_dora"]), (&"LORA".into(), &true.into()));
    // the weights of a folder stand for it
    let weights = at("locon_sel_kohya Peft").join("adapter_model.safetensors");
    let whole = LoraWeights::read(&at("locon_sel_kohya Peft")).unwrap();
    assert!(LoraWeights::read(&weights).unwrap() == whole);
    fs::write(at("locon_sel_kohya Peft").join("adapter_config.json"), "{\"peft_type\": \"LOHA\", \"r\": 4}")
        .unwrap();
    refused(LoraWeights::read(&weights), &["adapter_config.json", "LOHA"]);
}

/// What two do together is the sum of what each does.
#[test]
fn merging_adds_up() {
    let (a, b) = (module(2), module(3));
    let all = [
        file(DType::F32, &[("x", a.clone()), ("y", a.clone())]).scaled(0.5),
        file(DType::F32, &[("x", b.clone())]).scaled(-2.0),
    ];
    let merged = LoraWeights::combine(&all).unwrap();
    let expected = a.delta().into_iter().zip(b.delta()).map(|(a, b)| 0.5 * a - 2.0 * b);
    let close = |(got, want): (f32, f32)| (got - want).abs() < 1e-5;
    assert!(merged.unet("x").unwrap().delta().into_iter().zip(expected).all(close));
    assert!(
        merged.unet("y").unwrap().delta().into_iter().zip(a.delta()).all(|(got, a)| close((got, 0.5 * a)))
    );
    let dora = LoraModule { magnitude: Some(vec![1.0; 4]), ..a };
    refused(
        LoraWeights::combine(&[file(DType::F32, &[("x", dora)]), file(DType::F32, &[("x", b)])]),
        &["x is DoRA"],
    );
}
