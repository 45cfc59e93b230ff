//! Configurations: every setting is understood or refused.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use strata_model::{ClipConfig, ModelIndex, PredictionType, SchedulerConfig, UnetConfig, VaeConfig};
use tempfile::tempdir;

use crate::support::{Entry, MODELS, copy_folder, f32s, golden, golden_json, put, refused, safetensors};

#[test]
fn real_configurations_are_understood() {
    for (model, linear, heads) in [("sd15-tiny", false, [2, 2, 2, 2]), ("sd2-tiny", true, [2, 3, 4, 4])] {
        let unet = UnetConfig::open(&golden(model, "unet/config.json")).unwrap();
        assert_eq!(unet.block_out_channels, [16, 24, 32, 32]);
        assert_eq!(
            (unet.down_blocks.clone(), unet.up_blocks.clone()),
            (vec![true, true, true, false], vec![false, true, true, true])
        );
        assert_eq!((unet.use_linear_projection, &unet.heads[..]), (linear, &heads[..]));
        assert_eq!((unet.norm_num_groups, unet.time_embed_dim(), unet.norm_eps), (8, 64, 1e-5));
        let vae = VaeConfig::open(&golden(model, "vae/config.json")).unwrap();
        assert_eq!((vae.scaling_factor, vae.latent_channels), (0.18215, 4));
        let clip = ClipConfig::open(&golden(model, "text_encoder/config.json")).unwrap();
        assert_eq!(clip.hidden_size, unet.cross_attention_dim);
        let index = ModelIndex::open(&golden(model, "")).unwrap();
        assert_eq!(index.pipeline, "StableDiffusionPipeline");
        let scheduler = SchedulerConfig::open(&golden(model, "scheduler/scheduler_config.json")).unwrap();
        let prediction = if linear { PredictionType::VPrediction } else { PredictionType::Epsilon };
        assert_eq!(
            (scheduler.prediction_type, scheduler.steps_offset, scheduler.set_alpha_to_one),
            (prediction, 1, false)
        );
    }
}

/// A configuration of sd15-tiny with one key changed, opened by each reader.
fn changed(folder: &str, key: &str, value: Value) -> Result<(), strata_model::Error> {
    let name = if folder == "scheduler" { "scheduler_config.json" } else { "config.json" };
    let mut config = golden_json("sd15-tiny", &format!("{folder}/{name}"));
    config[key] = value;
    let place = tempdir().unwrap();
    let path = put(place.path(), name, config.to_string());
    match folder {
        "unet" => UnetConfig::open(&path).map(|_| ()),
        "vae" => VaeConfig::open(&path).map(|_| ()),
        "text_encoder" => ClipConfig::open(&path).map(|_| ()),
        _ => SchedulerConfig::open(&path).map(|_| ()),
    }
}

#[test]
fn unknown_settings_are_refused_unless_they_say_nothing() {
    for folder in ["unet", "vae", "text_encoder", "scheduler"] {
        refused(changed(folder, "surprise", json!(3)), &["`surprise`", "3", "unknown setting"]);
        for silent in [Value::Null, json!(false)] {
            changed(folder, "surprise", silent).unwrap();
        }
        changed(folder, "_note", json!("anything")).unwrap();
    }
}

#[test]
fn settings_that_are_not_built_are_refused_by_name() {
    for (folder, key, value) in [
        ("unet", "class_embed_type", json!("timestep")),
        ("unet", "dual_cross_attention", json!(true)),
        ("unet", "resnet_time_scale_shift", json!("scale_shift")),
        ("unet", "act_fn", json!("mish")),
        ("unet", "transformer_layers_per_block", json!([1, 2, 10])),
        ("unet", "down_block_types", json!(["AttnDownBlock2D", "DownBlock2D", "DownBlock2D", "DownBlock2D"])),
        ("unet", "attention_head_dim", json!(5)),
        ("unet", "norm_num_groups", json!(7)),
        ("unet", "block_out_channels", json!([])),
        ("unet", "in_channels", json!(0)),
        ("unet", "norm_eps", json!(0.0)),
        ("unet", "norm_eps", json!("small")),
        ("vae", "act_fn", json!("relu")),
        ("vae", "scaling_factor", json!(-1.0)),
        ("vae", "latents_mean", json!([0.1])),
        ("text_encoder", "hidden_act", json!("relu")),
        ("text_encoder", "num_attention_heads", json!(7)),
        ("text_encoder", "model_type", json!("bert")),
        ("scheduler", "beta_schedule", json!("sigmoid")),
        ("scheduler", "prediction_type", json!("flow")),
        ("scheduler", "_class_name", json!("FlowMatchEulerDiscreteScheduler")),
    ] {
        refused(changed(folder, key, value), &[&format!("`{key}`")]);
    }
    changed("unet", "attention_head_dim", json!([2, 2, 2, 2])).unwrap();
    changed("unet", "transformer_layers_per_block", json!([1, 1, 1, 1])).unwrap();
}

#[test]
fn files_that_are_no_configuration_are_refused() {
    let folder = tempdir().unwrap();
    refused(UnetConfig::open(&folder.path().join("config.json")), &["config.json"]);
    for text in ["", "[]", "{", "version https://git-lfs.github.com"] {
        refused(UnetConfig::open(&put(folder.path(), "config.json", text)), &["config.json", "JSON"]);
    }
    refused(
        UnetConfig::open(&put(folder.path(), "config.json", LFS_POINTER)),
        &["git-LFS pointer", "git lfs pull"],
    );
    refused(
        UnetConfig::open(&put(folder.path(), "config.json", b"\xff\xfe{\0}\0")),
        &["not a JSON object", "utf-8"],
    );
}

/// What stands for a file in a repository that was cloned without git-LFS.
const LFS_POINTER: &[u8] = include_bytes!("lfs-pointer.safetensors");

#[test]
fn numbers_as_python_writes_them_are_read_where_they_change_nothing() {
    let folder = tempdir().unwrap();
    let open = |text: &str| SchedulerConfig::open(&put(folder.path(), "scheduler_config.json", text));
    let case = include_str!("scheduler_config-minus-infinity.json");
    let read = open(case).unwrap();
    assert_eq!((read.beta_end, read.steps_offset), (0.012, 1));
    assert_eq!(open(&format!("\u{feff}{case}")).unwrap(), read, "with a byte order mark");
    open(&case.replace("-Infinity", "NaN")).unwrap();
    for number in ["NaN", "Infinity", "-Infinity"] {
        refused(open(&case.replace("0.012", number)), &["`beta_end`", number]);
    }
    // within strings they are text, also behind an escaped quote
    let text = r#"{"_a": "\"NaN", "_b": "\\", "beta_schedule": "Infinity"}"#;
    refused(open(text), &["`beta_schedule`", "\"Infinity\""]);
}

#[test]
fn settings_of_others_are_noted() {
    let folder = tempdir().unwrap();
    let unet = |extra: Value| {
        let mut config = golden_json("sd15-tiny", "unet/config.json");
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        UnetConfig::open(&put(folder.path(), "config.json", config.to_string()))
    };
    let plain = unet(json!({})).unwrap();
    assert_eq!(plain.notes, [""; 0]);
    let ema =
        unet(json!({ "decay": 0.9999, "inv_gamma": 1.0, "optimization_step": 10, "use_ema_warmup": false }))
            .unwrap();
    let [note] = &ema.notes[..] else { panic!("{:?}", ema.notes) };
    assert!(note.contains("config.json") && note.contains("EMAModel"), "{note}");
    assert!(note.ends_with("decay, inv_gamma, optimization_step"), "{note}");
    assert_eq!(UnetConfig { notes: Vec::new(), ..ema }, plain);
    refused(unet(json!({ "decay": 0.9999, "surprise": 1 })), &["`surprise`"]);

    let text =
        r#"{"beta_schedule": "scaled_linear", "predictor_order": 2, "max_shift": 1.15, "tau_func": null}"#;
    let scheduler = SchedulerConfig::open(&put(folder.path(), "scheduler_config.json", text)).unwrap();
    let [note] = &scheduler.notes[..] else { panic!("{:?}", scheduler.notes) };
    assert!(note.ends_with("max_shift, predictor_order"), "{note}");
}

#[test]
fn other_models_are_named() {
    for (channels, kind) in
        [(9, "inpainting"), (8, "InstructPix2Pix"), (7, "upscaler"), (5, "depth"), (6, "reads something")]
    {
        refused(changed("unet", "in_channels", json!(channels)), &["`in_channels`", kind, "text to picture"]);
    }
    refused(
        changed("unet", "addition_embed_type", json!("text_time")),
        &["Stable Diffusion XL", "1.x and 2.x"],
    );
    for class in ["SD3Transformer2DModel", "UNet3DConditionModel"] {
        refused(changed("unet", "_class_name", json!(class)), &[class, "UNet2DConditionModel"]);
    }
    refused(
        changed("vae", "_class_name", json!("AutoencoderTiny")),
        &["AutoencoderTiny", "tiny", "AutoencoderKL"],
    );
    refused(changed("vae", "_class_name", json!("VQModel")), &["VQModel", "codebook"]);
    refused(changed("vae", "num_vq_embeddings", json!(256)), &["VQ model"]);
    refused(changed("vae", "_class_name", json!("AutoencoderKLTemporalDecoder")), &["not supported"]);
}

#[test]
fn folders_that_are_no_pipeline_are_refused() {
    let folder = tempdir().unwrap();
    let root = folder.path();
    refused(ModelIndex::open(root), &["model_index.json", "diffusers"]);
    refused(ModelIndex::open(Path::new("/no/such/folder")), &["/no/such/folder", "no such folder"]);
    for part in ["unet", "vae", "text_encoder", "tokenizer", "scheduler"] {
        fs::create_dir(root.join(part)).unwrap();
    }
    let with = |key: &str, value: Value| {
        let mut index = golden_json("sd15-tiny", "model_index.json");
        index[key] = value;
        put(root, "model_index.json", index.to_string());
        ModelIndex::open(root)
    };
    with("_note", json!(1)).unwrap();
    for other in ["StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline", ""] {
        refused(with("_class_name", json!(other)), &["_class_name"]);
    }
    refused(with("unet", json!(["diffusers", "UNet3DConditionModel"])), &["`unet`", "UNet3DConditionModel"]);
    refused(with("vae", json!([null, null])), &["`vae`"]);
    with("_note", json!(1)).unwrap();
    fs::remove_dir(root.join("vae")).unwrap();
    refused(ModelIndex::open(root), &["`vae`", "missing"]);
    let copy = tempdir().unwrap();
    copy_folder(&golden(MODELS[1], ""), copy.path());
    ModelIndex::open(copy.path()).unwrap();
}

#[test]
fn what_stands_in_place_of_a_pipelines_folder_is_named() {
    let folder = tempdir().unwrap();
    let root = folder.path();
    let model = |name: &str| ModelIndex::open(&root.join(name));
    refused(model("runwayml/stable-diffusion-v1-5"), &["hf download runwayml/stable-diffusion-v1-5 "]);
    for place in ["missing", "no/such/folder"] {
        let message = refused(model(place), &["no such folder"]);
        assert!(!message.contains("hf download"), "{message}");
    }
    fs::create_dir(root.join("models")).unwrap();
    let message = refused(model("models/sd15"), &["no such folder"]);
    assert!(!message.contains("hf download"), "a folder that is there is no owner: {message}");

    for (names, kind) in [
        (&["cond_stage_model.a", "first_stage_model.b", "model.diffusion_model.c"][..], "full checkpoint"),
        (&["conditioner.embedders.0.a", "model.diffusion_model.c"], "Stable Diffusion XL"),
        (&["model.diffusion_model.joint_blocks.0.a"], "Stable Diffusion 3"),
        (&["lora_unet_a.alpha", "lora_unet_a.lora_down.weight"], "LoRA"),
        (&["emb_params"], "embedding"),
        (&["encoder.conv_in.weight", "decoder.conv_in.weight"], "VAE"),
        (&["down_blocks.0.a"], "U-Net"),
        (&["text_model.encoder.a"], "text encoder"),
        (&["x"], "no part of Stable Diffusion"),
    ] {
        let tensors: Vec<Entry<'_>> = names.iter().map(|name| f32s(name, &[1], &[1.0])).collect();
        put(root, "single.safetensors", safetensors(&tensors));
        refused(model("single.safetensors"), &["single file", "folder is wanted", kind]);
    }
    put(root, "single.ckpt", b"\x80\x02}q\0");
    refused(model("single.ckpt"), &["pickled checkpoint", "convert"]);
}
