//! Models in a single file: the same predictions as from their folders, and what is refused.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use half::f16;
use strata_benches::parity;
use strata_engine::{DType, Gpu, Tape, Tensor};
use strata_model::{
    Checkpoint, ClipTokenizer, Cx, F32s, Family, LoraWeights, ModelOptions, PredictionType, TensorFile,
    UnetConfig, write_f32s,
};
use strata_tests::{Setup, gpu};
use strata_trainer::Config;
use tempfile::tempdir;

use crate::cli::{fails, prints, text};
use crate::support::{
    MODELS, copy_folder, f32s, golden, golden_tensors, nhwc, predict, put, refused, safetensors, with_header,
};

fn single(model: &str) -> PathBuf {
    golden("ldm", &format!("{model}.safetensors"))
}

fn with_config(folder: &Path) -> ModelOptions {
    ModelOptions { config: Some(folder.to_owned()), ..ModelOptions::default() }
}

fn open(file: &Path, folder: &Path) -> Checkpoint {
    Checkpoint::open_with(file, &with_config(folder)).unwrap()
}

/// All tensors of a file.
fn read(path: &Path) -> F32s {
    let mut file = TensorFile::open(path).unwrap();
    let shapes: Vec<_> =
        file.tensors().iter().map(|(name, info)| (name.clone(), info.shape.clone())).collect();
    let read = |(name, shape): (String, Vec<usize>)| (name.clone(), (shape, file.read(&name).unwrap()));
    shapes.into_iter().map(read).collect()
}

/// What U-Net, text encoder and VAE say, bit by bit. `goldens` are of which model the inputs are.
fn says(gpu: &Gpu, model: &Checkpoint, goldens: &str) -> Vec<Vec<f32>> {
    let inputs = golden_tensors(goldens, "goldens.safetensors");
    let tape = Tape::off();
    let cx = Cx::new(&tape);
    let tensor = |name: &str| {
        let (shape, values) = &inputs[name];
        Tensor::from_f32(gpu, values, shape, DType::F32).unwrap()
    };
    let ids = &inputs["clip.input_ids"];
    let numbers: Vec<u32> = ids.1.iter().map(|id| *id as u32).collect();
    let text = model.text_encoder(gpu, DType::F32).unwrap();
    let states = text.clip().forward(&cx, &Tensor::from_u32(gpu, &numbers, &ids.0).unwrap(), 0).unwrap();
    let unet = model.unet(gpu, DType::F32).unwrap();
    let sample = nhwc(gpu, &inputs["unet.sample"]);
    let said =
        predict(&unet, &cx, &sample, &inputs["unet.mixed.timesteps"].1, &tensor("unet.context")).unwrap();
    let (mean, _) =
        model.vae(gpu, DType::F32).unwrap().encode(&cx, &nhwc(gpu, &inputs["vae.image"])).unwrap();
    [states, said, mean].iter().map(|tensor| tensor.to_f32().unwrap()).collect()
}

fn nchw(values: &[f32], (shape, expected): &(Vec<usize>, Vec<f32>)) -> f64 {
    let &[_, c, h, w] = &shape[..] else { panic!("{shape:?}") };
    let at = |i: usize| values[(i / (c * h * w) * h * w + i % (h * w)) * c + i / (h * w) % c];
    let pairs = expected.iter().enumerate().map(|(i, e)| (f64::from(at(i)), f64::from(*e)));
    relative(pairs)
}

/// Relative L2 error of (value, expected).
fn relative(pairs: impl Iterator<Item = (f64, f64)>) -> f64 {
    let (error, size) =
        pairs.fold((0.0, 0.0), |(error, size), (a, e)| (error + (a - e).powi(2), size + e * e));
    f64::sqrt(error / size)
}

/// The single file holds the folder's weights as f16; with these in the folder too, and in an F32 file, all bits are equal.
#[test]
fn a_file_says_what_its_folder_says() {
    let gpu = gpu(Setup::Lane);
    for (model, family) in MODELS.into_iter().zip([Family::Sd1, Family::Sd2]) {
        let folder = tempdir().unwrap();
        copy_folder(&golden(model, ""), folder.path());
        let has_vae = family == Family::Sd1;
        for (part, file) in [
            ("unet", "diffusion_pytorch_model"),
            ("vae", "diffusion_pytorch_model"),
            ("text_encoder", "model"),
        ] {
            let path = folder.path().join(part).join(format!("{file}.safetensors"));
            let mut tensors = read(&path);
            if part != "vae" || has_vae {
                let round = |v: &mut f32| *v = f16::from_f32(*v).to_f32();
                tensors.values_mut().for_each(|(_, values)| values.iter_mut().for_each(round));
            }
            write_f32s(&path, &tensors).unwrap();
        }
        let f32_file = folder.path().join("single.safetensors");
        write_f32s(&f32_file, &read(&single(model))).unwrap();

        let expected = says(&gpu, &Checkpoint::open(folder.path()).unwrap(), model);
        for file in [single(model), f32_file] {
            let checkpoint = open(&file, folder.path());
            assert_eq!(checkpoint.family(), family);
            checkpoint.check_unet().unwrap();
            assert_eq!(checkpoint.notes().unwrap(), [""; 0]);
            assert_eq!(says(&gpu, &checkpoint, model), expected, "{}", file.display());
        }
    }
}

#[test]
fn parity_with_the_weights_of_a_file() {
    let gpu = gpu(Setup::Lane);
    let report = parity::run(&golden("sd2-tiny", ""), Some(&single("sd2-tiny")), DType::F32, &gpu).unwrap();
    let above: Vec<_> = report.rows.iter().filter(|row| !row.pass).collect();
    assert!(report.pass(), "{above:?} {:?}", report.problems);
    assert!(report.covered > 1600);
}

/// Averaged weights lie beside those that are meant, old merges lack a part of names, and a VAE may lie in a file of its own.
#[test]
fn variants_of_files_give_their_goldens() {
    let (gpu, folder) = (gpu(Setup::Lane), golden("sd15-mini", ""));
    let goldens = golden_tensors("sd15-mini", "goldens.safetensors");
    let mini = |name: &str| folder.join(name);
    let check = |checkpoint: &Checkpoint, mean: &str| {
        let [states, said, latents] = &says(&gpu, checkpoint, "sd15-mini")[..] else { panic!("three") };
        let pairs = states.iter().zip(&goldens["clip.last_hidden"].1);
        let errors = [
            relative(pairs.map(|(a, e)| (f64::from(*a), f64::from(*e)))),
            nchw(said, &goldens["unet.mixed.out"]),
            nchw(latents, &goldens[mean]),
        ];
        assert!(errors.iter().all(|error| *error < 2e-5), "{errors:?}");
    };
    for file in ["ldm-ema.safetensors", "ldm-oldmerge.safetensors"] {
        check(&open(&mini(file), &folder), "vae.mean");
    }
    // LDM's names, with the prefix that whole checkpoints have and without; and diffusers'
    let other = tempdir().unwrap();
    let vae = read(&mini("vae.safetensors"));
    let prefixed: BTreeMap<_, _> =
        vae.iter().map(|(name, tensor)| (format!("first_stage_model.{name}"), tensor.clone())).collect();
    write_f32s(&other.path().join("prefixed.safetensors"), &prefixed).unwrap();
    for file in [mini("vae.safetensors"), other.path().join("prefixed.safetensors")] {
        let options = ModelOptions { vae: Some(file), ..with_config(&folder) };
        let checkpoint = Checkpoint::open_with(&mini("ldm-ema.safetensors"), &options).unwrap();
        check(&checkpoint, "vae.mean_separate");
        let options = ModelOptions { config: None, ..options };
        check(&Checkpoint::open_with(&folder, &options).unwrap(), "vae.mean_separate");
    }
    for own in ["vae", "vae/diffusion_pytorch_model.safetensors", ""] {
        let options = ModelOptions { vae: Some(mini(own)), ..ModelOptions::default() };
        check(&Checkpoint::open_with(&folder, &options).unwrap(), "vae.mean");
    }
}

/// What a file's tensors and metadata say of the prediction, what is said of it, and what it is without either.
#[test]
fn what_a_model_predicts() {
    let (folder, root) = (tempdir().unwrap(), golden("sd2-tiny", ""));
    let tensors = read(&single("sd2-tiny"));
    let write = |marks: &[&str]| {
        let mut tensors = tensors.clone();
        tensors.extend(marks.iter().map(|mark| (mark.to_string(), (vec![0], vec![]))));
        let path = folder.path().join(format!("{}.safetensors", marks.join("-")));
        write_f32s(&path, &tensors).unwrap();
        path
    };
    copy_folder(&root, &folder.path().join("epsilon"));
    let epsilon = folder.path().join("epsilon");
    let scheduler = fs::read_to_string(epsilon.join("scheduler/scheduler_config.json")).unwrap();
    put(&epsilon, "scheduler/scheduler_config.json", scheduler.replace("v_prediction", "epsilon"));
    let (plain, marked) = (write(&[]), write(&["v_pred", "ztsnr"]));
    assert_eq!(open(&plain, &epsilon).scheduler().unwrap().prediction_type, PredictionType::Epsilon);
    let scheduler = open(&marked, &epsilon).scheduler().unwrap();
    assert_eq!(scheduler.prediction_type, PredictionType::VPrediction);
    assert!(scheduler.rescale_betas_zero_snr);
    let options = ModelOptions { prediction: Some(PredictionType::Epsilon), ..with_config(&root) };
    let said = Checkpoint::open_with(&plain, &options).unwrap();
    assert_eq!(said.scheduler().unwrap().prediction_type, PredictionType::Epsilon);
    assert_ne!(said.digest().unwrap(), open(&plain, &root).digest().unwrap());
}

/// Equal files under other names are one model; a changed weight makes another, and so do another VAE and a mark.
#[test]
fn digests_tell_files_apart() {
    let (folder, root) = (tempdir().unwrap(), golden("sd15-mini", ""));
    let file = root.join("ldm-oldmerge.safetensors");
    let copy = folder.path().join("other name.safetensors");
    fs::copy(&file, &copy).unwrap();
    let digest = open(&file, &root).digest().unwrap();
    assert_eq!(open(&copy, &root).digest().unwrap(), digest);
    let options = ModelOptions { vae: Some(root.join("vae.safetensors")), ..with_config(&root) };
    assert_ne!(Checkpoint::open_with(&file, &options).unwrap().digest().unwrap(), digest);
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&copy, bytes).unwrap();
    assert_ne!(open(&copy, &root).digest().unwrap(), digest);
}

#[test]
fn files_of_other_kinds_are_refused() {
    let folder = tempdir().unwrap();
    let unet = "model.diffusion_model.input_blocks.0.0.weight";
    let (nine, four): (&[usize], &[usize]) = (&[1, 9, 1, 1], &[4]);
    for (tensors, words) in [
        (
            vec![f32s(unet, nine, &[0.0; 9]), f32s("model.diffusion_model.out.2.weight", four, &[0.0; 4])],
            "inpainting",
        ),
        (
            vec![f32s(unet, &[1], &[0.0]), f32s("conditioner.embedders.1.a", &[1], &[0.0])],
            "Stable Diffusion XL",
        ),
        (vec![f32s(unet, &[1], &[0.0]), f32s("conditioner.embedders.0.a", &[1], &[0.0])], "refiner"),
        (vec![f32s("model.diffusion_model.joint_blocks.0.a", &[1], &[0.0])], "Stable Diffusion 3"),
        (vec![f32s("lora_unet_a.lora_down.weight", &[1], &[0.0])], "a LoRA; give the model"),
        (
            vec![f32s("encoder.conv_in.weight", &[1], &[0.0]), f32s("decoder.conv_in.weight", &[1], &[0.0])],
            "--vae",
        ),
    ] {
        let path = put(folder.path(), "other.safetensors", safetensors(&tensors));
        refused(Checkpoint::open(&path), &["other.safetensors", words]);
    }
    let pickle = put(folder.path(), "model.ckpt", b"PK\x03\x04archive/data.pkl");
    refused(Checkpoint::open(&pickle), &["pickled checkpoint", "convert"]);
    refused(LoraWeights::read(&single("sd15-tiny")), &["full checkpoint; give it where a model"]);
    refused(
        Checkpoint::open_with(&golden("sd15-tiny", ""), &with_config(&golden("sd15-tiny", ""))),
        &["leave out"],
    );
    // nothing tells the heads and groups of such a U-Net
    refused(Checkpoint::open(&single("sd15-tiny")), &["channels", "config = \"FOLDER\"", "--config FOLDER"]);
    let vae = ModelOptions { vae: Some(single("sd2-tiny")), ..ModelOptions::default() };
    refused(Checkpoint::open_with(&golden("sd2-tiny", ""), &vae), &["is no VAE"]);
}

#[test]
fn damaged_files_are_clear_errors() {
    let folder = tempdir().unwrap();
    let root = golden("sd15-mini", "");
    let config = text(&root);
    let tensors = read(&root.join("ldm-oldmerge.safetensors"));
    let name = "model.diffusion_model.middle_block.1.proj_in.weight";
    let changed = |change: &dyn Fn(&mut F32s)| {
        let mut tensors = tensors.clone();
        change(&mut tensors);
        let path = folder.path().join("changed.safetensors");
        write_f32s(&path, &tensors).unwrap();
        path
    };
    let layers = |path: &Path, words: &[&str]| fails(&["layers", text(path), "--config", config], words);
    layers(&changed(&|t| drop(t.remove(name))), &["no tensor", name, "[8, 8, 1, 1]"]);
    layers(&changed(&|t| t.get_mut(name).unwrap().0 = vec![64]), &[name, "[64]", "[8, 8, 1, 1]"]);
    let added = "model.diffusion_model.middle_block.1.extra.weight";
    let path = changed(&|t| drop(t.insert(added.into(), (vec![1], vec![0.0]))));
    let unet = open(&path, &root).unet(&gpu(Setup::Lane), DType::F32);
    refused(unet, &["belong to no layer", added]);
    let path = changed(&|t| drop(t.insert("mystery.weight".into(), (vec![1], vec![0.0]))));
    let [note] = &open(&path, &root).notes().unwrap()[..] else { panic!("one note") };
    assert!(note.contains("mystery.weight") && note.contains("not used"), "{note}");

    let bytes = fs::read(root.join("ldm-oldmerge.safetensors")).unwrap();
    layers(
        &put(folder.path(), "cut.safetensors", &bytes[..bytes.len() / 2]),
        &["cut.safetensors", "cut off"],
    );
    layers(&put(folder.path(), "header.safetensors", &bytes[..99]), &["cut off"]);
    layers(&put(folder.path(), "json.safetensors", with_header("{", &[])), &["damaged safetensors header"]);
    let no_vae = changed(&|t| t.retain(|name, _| !name.starts_with("first_stage_model.")));
    prints(&["layers", text(&no_vae), "--config", config]);
    // a folder that has configurations has a VAE as well
    open(&no_vae, &root);
}

/// A file that tells Stable Diffusion's own configurations from shapes alone: its tensors hold no numbers. `more` are added.
fn empty_of_full_width(path: &Path, more: &[&str]) {
    let mut tensors = BTreeMap::new();
    let mut add = |name: String, shape: &[usize]| drop(tensors.insert(name, (shape.to_vec(), vec![])));
    let unet = "model.diffusion_model";
    for (block, channels) in [320, 640, 1280, 1280].into_iter().enumerate() {
        for unit in 1..3 {
            let at = format!("{unet}.input_blocks.{}", 3 * block + unit);
            add(format!("{at}.0.out_layers.3.weight"), &[channels, 0, 3, 3]);
            if block < 3 {
                add(format!("{at}.1.transformer_blocks.0.attn2.to_k.weight"), &[0, 1024]);
                add(format!("{at}.1.proj_in.weight"), &[0, channels]);
            }
        }
        if block < 3 {
            add(format!("{unet}.input_blocks.{}.0.op.weight", 3 * block + 3), &[channels, 0, 3, 3]);
            add(format!("{unet}.output_blocks.{}.1.transformer_blocks.0.norm1.bias", 3 * block + 3), &[0]);
        }
    }
    more.iter().for_each(|name| add((*name).to_owned(), &[0]));
    write_f32s(path, &tensors).unwrap();
}

#[test]
fn shapes_tell_the_standard_models() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let (text, vae) = ("cond_stage_model.model.ln_final.weight", "first_stage_model.quant_conv.bias");
    empty_of_full_width(&path, &[]);
    refused(Checkpoint::open(&path), &["has no text encoder", "--config FOLDER"]);
    empty_of_full_width(&path, &[text]);
    refused(Checkpoint::open(&path), &["has no VAE", "vae = \"FILE\"", "--vae FILE"]);
    empty_of_full_width(&path, &[text, vae]);
    let velocity = Checkpoint::open(&path).unwrap();
    assert_eq!(velocity.unet_config(), &UnetConfig { sample_size: 96, ..UnetConfig::sd2() });
    assert_eq!(velocity.scheduler().unwrap().prediction_type, PredictionType::VPrediction);
    let [note] = &velocity.notes().unwrap()[..] else { panic!("one note") };
    assert!(note.contains("taken to be v") && note.contains("--prediction epsilon"), "{note}");
    let options = ModelOptions { prediction: Some(PredictionType::Epsilon), ..ModelOptions::default() };
    let base = Checkpoint::open_with(&path, &options).unwrap();
    assert_eq!((base.unet_config().sample_size, base.notes().unwrap()), (64, vec![]));
}

/// The text encoder's joined projections must be three of a size.
#[test]
fn joined_projections_keep_their_shape() {
    let folder = tempdir().unwrap();
    let mut tensors = read(&single("sd2-tiny"));
    let name = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_bias";
    let third = tensors[name].0[0] / 3;
    tensors.insert(name.into(), (vec![third], vec![0.0; third]));
    let path = folder.path().join("joined.safetensors");
    write_f32s(&path, &tensors).unwrap();
    let text = open(&path, &golden("sd2-tiny", "")).text_encoder(&gpu(Setup::Lane), DType::F32);
    refused(text, &[name, &format!("[{third}]"), &format!("[{}]", 3 * third)]);
}

/// F8, BF16 and F16 are read as the numbers they are.
#[test]
fn narrow_numbers_are_read() {
    let folder = tempdir().unwrap();
    let bytes = safetensors(&[
        ("e4m3", "F8_E4M3", &[4], vec![0x38, 0xc0, 0x01, 0x7e]),
        ("e5m2", "F8_E5M2", &[4], vec![0x3c, 0xc0, 0x01, 0x7b]),
        ("bf16", "BF16", &[1], vec![0x80, 0x3f]),
        ("nan", "F8_E4M3", &[1], vec![0x7f]),
    ]);
    let mut file = TensorFile::open(&put(folder.path(), "narrow.safetensors", bytes)).unwrap();
    assert_eq!(file.read("e4m3").unwrap(), [1.0, -2.0, 2_f32.powi(-9), 448.0]);
    assert_eq!(file.read("e5m2").unwrap(), [1.0, -2.0, 2_f32.powi(-16), 57344.0]);
    assert_eq!(file.read("bf16").unwrap(), [1.0]);
    refused(file.read("nan"), &["`nan`", "NaN"]);
}

#[test]
fn the_standard_vocabulary_pads_as_each_family_does() {
    let of = |pad| ClipTokenizer::standard(pad).unwrap().encode("a photo, of 3 cats!").unwrap();
    let expected = [49406, 320, 1125, 267, 539, 274, 3989, 256, 49407];
    assert_eq!(of(ClipTokenizer::SD1_PAD)[..9], expected);
    assert_eq!(of(ClipTokenizer::SD2_PAD)[9..], [0; 68]);
}

#[test]
fn a_file_trains_and_draws() {
    let folder = tempdir().unwrap();
    let root = golden("sd15-mini", "");
    let model = root.join("ldm-oldmerge.safetensors");
    image::RgbImage::from_pixel(64, 64, image::Rgb([9, 99, 199])).save(folder.path().join("a.png")).unwrap();
    put(folder.path(), "a.txt", "a");
    let train = |name: &str, model: &Path, config: &str| {
        let toml = format!(
            "model = {model:?}\n{config}output = \"{name}.safetensors\"\n[dataset]\nfolder = \".\"\nresolution = 64\n\
             [train]\nsteps = 2\nbatch_size = 1\ndtype = \"f32\"\n"
        );
        let path = put(folder.path(), &format!("{name}.toml"), toml);
        prints(&["train", text(&path)]);
        LoraWeights::read(&folder.path().join(format!("{name}.safetensors"))).unwrap()
    };
    let file = train("file", &model, &format!("config = {root:?}\n"));
    // the folder's weights are those of the file
    assert_eq!(train("folder", &root, "").modules, file.modules);
    let vae = format!("config = {root:?}\nvae = {:?}\nprediction = \"v\"\n", root.join("vae.safetensors"));
    assert_ne!(train("other", &model, &vae).modules, file.modules);

    let draw = |name: &str, model: &[&str]| {
        let out = folder.path().join(name);
        let how = ["--prompt", "a", "--steps", "2", "--dtype", "f32", "--out", text(&out)];
        prints(&[&["generate"], model, &how].concat());
        // not its bytes, which name the model
        image::open(out).unwrap().into_rgb8()
    };
    let of_file = draw("file.png", &[text(&model), "--config", text(&root)]);
    assert!(draw("folder.png", &[text(&root)]) == of_file);
    let v = draw("v.png", &[text(&model), "--config", text(&root), "--prediction", "v"]);
    assert!(v != of_file);
}

#[test]
fn a_config_names_model_and_what_is_said_of_it() {
    let config = Config::parse(
        "vae = \"v.safetensors\"\nprediction = \"v\"\nconfig = \"c\"\n",
        Path::new("at/run.toml"),
    );
    let config = config.unwrap();
    assert_eq!((config.vae, config.config), (Some("at/v.safetensors".into()), Some("at/c".into())));
    assert_eq!(config.prediction, Some(PredictionType::VPrediction));
    refused(Config::parse("prediction = \"x\"\n", Path::new("run.toml")), &["\"epsilon\" or \"v\""]);
}
