//! Keys: the gradient that finds them is PyTorch's, and with one a LoRA is silent wherever its file is used.

use std::fs;
use std::path::Path;

use safetensors::SafeTensors;
use serde_json::Value;
use strata_engine::{DType, Tensor};
use strata_kernels::tape;
use strata_model::{
    Checkpoint, Cx, Feature, GateMode, Key, LoraWeights, Reading, Tag, Wording, keys_of, note_keys,
};
use strata_tests::{Setup, gpu};
use tempfile::tempdir;

use crate::cli::{fails, prints, text};
use crate::support::{MODELS, checkpoint, golden, golden_tensors, refused};

/// From CLIP's states back to what they begin as, which holds the word vectors.
#[test]
fn clips_gradient_is_pytorchs() {
    for (setup, model) in [Setup::Lane, Setup::Tile].into_iter().flat_map(|s| MODELS.map(|m| (s, m))) {
        let gpu = gpu(setup);
        let encoder = checkpoint(model).text_encoder(&gpu, DType::F32).unwrap();
        let bytes = fs::read(golden(model, "goldens.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let ids = file.tensor("clip.input_ids").unwrap();
        let (shape, width) = (ids.shape().to_vec(), ids.data().len() / ids.shape().iter().product::<usize>());
        let ids: Vec<u32> =
            ids.data().chunks_exact(width).map(|b| u32::from(u16::from_le_bytes([b[0], b[1]]))).collect();
        let mut goldens = golden_tensors(model, "goldens_clip.safetensors");
        let (of, upstream) = goldens.remove("clip.grad_out").unwrap();
        let wanted = goldens.remove("clip.grad_embedded").unwrap().1;
        let embedded = encoder.clip().embed(&Tensor::from_u32(&gpu, &ids, &shape).unwrap()).unwrap();
        let tape = tape();
        tape.track(&embedded);
        let states = encoder.clip().encode(&Cx::new(&tape), embedded.clone(), 0).unwrap();
        let upstream = Tensor::from_f32(&gpu, &upstream, &of, DType::F32).unwrap();
        let found = tape.backward(&states, upstream).unwrap().get(&embedded).unwrap().to_f32().unwrap();
        let far: f64 = found.iter().zip(&wanted).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let all: f64 = wanted.iter().map(|b| f64::from(*b).powi(2)).sum();
        let error = (far / all).sqrt();
        assert!(error <= 5e-5, "{model} {setup:?}: {error:e}");
    }
}

/// A key of the vectors that the tag's own tokens have changes no state; another one does, from its place on.
#[test]
fn a_key_stands_where_its_tag_does() {
    let gpu = gpu(Setup::Lane);
    let encoder = checkpoint("sd15-tiny").text_encoder(&gpu, DType::F32).unwrap();
    let tokenizer = encoder.tokenizer();
    let tag = Tag::new(tokenizer, "qzx").unwrap();
    let (n, positions) = (tag.ids().len(), encoder.clip().position_vectors().unwrap());
    let channels = encoder.clip().config().hidden_size;
    let own = Tensor::from_u32(&gpu, tag.ids(), &[1, n]).unwrap();
    let own = encoder.clip().embed(&own).unwrap().to_f32().unwrap();
    let vectors: Vec<f32> = own.iter().zip(&positions).map(|(e, p)| e - p).collect();
    let states = |tag: &Tag, prompt: &str| {
        let prompts = encoder.read(&[prompt], Reading::Literal, &[(0, tag)]).unwrap();
        let mention = prompts[0].mentions()[0].tokens.clone();
        (mention, encoder.encode(&prompts, 0).unwrap().states.to_f32().unwrap())
    };
    let keyed = |vectors: Vec<f32>| tag.clone().with_key(Key::new(vectors, channels).unwrap().into());
    for prompt in ["qzx", "a man, QZX, smiling", &format!("{} qzx, a hat", "word ".repeat(74))] {
        let (place, plain) = states(&tag, prompt);
        assert_eq!(place.len(), n);
        let (same_place, same) = states(&keyed(vectors.clone()), prompt);
        assert_eq!(place, same_place);
        let far = plain.iter().zip(&same).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(far < 1e-4, "{prompt}: {far}");
        // one vector more moves what follows by a token
        let (longer, other) = states(&keyed([&vectors[..], &[1.0].repeat(channels)].concat()), prompt);
        assert_eq!(longer, place.start..place.end + 1);
        let upto = place.end * channels;
        assert_eq!(same[..upto], other[..upto]);
        assert_ne!(same[upto..], other[upto..]);
    }
    let narrow = tag.clone().with_key(Key::new(vec![0.0; 3], 3).unwrap().into());
    let prompts = encoder.read(&["qzx"], Reading::Literal, &[(0, &narrow)]).unwrap();
    refused(encoder.encode(&prompts, 0), &["3 channels"]);
}

const LAYERS: &str = "\"**.attn2.to_k, **.attn2.to_v\"";

/// A tag stands for one thing: files that have other keys for it do not go together.
#[test]
fn a_tag_has_one_key() {
    let gpu = gpu(Setup::Lane);
    let encoder = checkpoint("sd15-tiny").text_encoder(&gpu, DType::F32).unwrap();
    let tokenizer = encoder.tokenizer();
    let channels = encoder.clip().config().hidden_size;
    let key = |value: f32| Key::new(vec![value; channels], channels).unwrap();
    let file = |key: Option<Key>| {
        let mut lora = LoraWeights::read(&golden("sd15-tiny", "lora/attn_sel_kohya.safetensors")).unwrap();
        lora.metadata.insert("strata_tags".into(), r#"["qzx"]"#.into());
        note_keys(&mut lora.metadata, &key.map(|key| ("qzx".to_owned(), key)).into_iter().collect());
        lora
    };
    let [one, other, none] = [file(Some(key(1.0))), file(Some(key(2.0))), file(None)];
    let both = LoraWeights::combine(&[one.clone(), one.clone()]).unwrap();
    assert_eq!(both.metadata["strata_tags"], r#"["qzx"]"#);
    assert_eq!(keys_of(&both.metadata).unwrap()["qzx"], key(1.0));
    refused(LoraWeights::combine(&[one.clone(), other.clone()]), &["qzx", "another key"]);
    refused(LoraWeights::combine(&[one.clone(), none]), &["qzx", "another key"]);

    let feature = |lora: &LoraWeights, tag: &str| {
        let tags = Tag::all(tokenizer, &[tag.to_owned()], &keys_of(&lora.metadata).unwrap()).unwrap();
        Feature { tags, mode: GateMode::Prompt, weight: 1.0, region: None, uncond: false }
    };
    let read = |features: &[Feature]| Wording::read(tokenizer, &["qzx"], &[""], features);
    assert!(read(&[feature(&one, "qzx"), feature(&one, "qzx")]).is_ok());
    refused(read(&[feature(&one, "qzx"), feature(&other, "qzx")]), &["qzx", "another key", "tag=WORD"]);
    // a tag given by hand has the file's key
    assert_eq!(feature(&other, "foo").tags[0].key().map(|key| key.vectors()[0]), Some(2.0));
}

/// A key that could do nothing is refused before anything is run.
#[test]
fn a_key_needs_a_layer_that_reads_text() {
    let folder = tempdir().unwrap();
    let repo = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let config = format!(
        "model = {:?}\n[[feature]]\nname = \"a\"\ntags = [\"hair_style_a\"]\n[feature.key]\n[feature.dataset]\nfolder = {:?}\n\
         resolution = 64\n[[feature.lora]]\nselect = \"self-attn\"\n",
        repo.join("demo/model"),
        repo.join("examples/portraits/hair_style_a")
    );
    let path = folder.path().join("run.toml");
    fs::write(&path, config).unwrap();
    fails(&["train", text(&path)], &["feature a", "none of its layers reads the text", "[feature.key]"]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// Two keyed features by the program, always on as in other programs: they hardly move pictures without their tags.
#[test]
fn keyed_features_are_silent_in_every_program() {
    let folder = tempdir().unwrap();
    let repo = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let config = fs::read_to_string(repo.join("examples/portraits.toml")).unwrap();
    let config = config
        .replace("../demo/model", text(&repo.join("demo/model")))
        .replace("../target/portraits/", "")
        .replace("folder = \"portraits/", &format!("folder = \"{}/", text(&repo.join("examples/portraits"))))
        .replace("\"cross-attn\"", LAYERS)
        .replace("\"self-attn\"", LAYERS)
        .replace("[feature.preserve]", "[feature.key]\nsteps = 80")
        .replace("steps = 120", "steps = 16")
        .replace("lr = 4e-3", "lr = 1e-2");
    let path = folder.path().join("run.toml");
    fs::write(&path, config).unwrap();
    prints(&["train", text(&path), "--json"]);
    let file = |name: &str| folder.path().join(name);
    let keys = keys_of(&LoraWeights::read(&file("portraits.safetensors")).unwrap().metadata).unwrap();
    assert_eq!(keys.keys().collect::<Vec<_>>(), ["clothing_style_b", "hair_style_a"]);
    // what other programs take is the same
    let embedding = fs::read(file("embeddings/hair_style_a.safetensors")).unwrap();
    let embedding = SafeTensors::deserialize(&embedding).unwrap();
    let vectors = embedding.tensor("hair_style_a").unwrap();
    let own = &keys["hair_style_a"];
    assert_eq!(vectors.shape(), [own.count(), own.channels()]);
    let bytes: Vec<u8> = own.vectors().iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(vectors.data(), bytes);

    // words after the tag mean what they did: their states are those after the class word, cut to as many tokens
    let gpu = gpu(Setup::Lane);
    let encoder = Checkpoint::open(&repo.join("demo/model")).unwrap().text_encoder(&gpu, DType::F32).unwrap();
    let (clip, channels) = (encoder.clip(), own.channels());
    let ids: Vec<u32> =
        encoder.tokenizer().ids("short hair").unwrap().into_iter().cycle().take(own.count()).collect();
    let ids = Tensor::from_u32(&gpu, &ids, &[1, own.count()]).unwrap();
    let ordinary = clip.embed(&ids).unwrap().to_f32().unwrap();
    let positions = clip.position_vectors().unwrap();
    let ordinary = Key::new(ordinary.iter().zip(positions).map(|(e, p)| e - p).collect(), channels).unwrap();
    let after = |key: &Key| {
        let tag = Tag::new(encoder.tokenizer(), "hair_style_a").unwrap().with_key(key.clone().into());
        let prompt = "a portrait of a man, hair_style_a, green sweater, night background";
        let prompts = encoder.read(&[prompt], Reading::Literal, &[(0, &tag)]).unwrap();
        let states = encoder.encode(&prompts, 0).unwrap().states.to_f32().unwrap();
        states[prompts[0].mentions()[0].tokens.end * channels..].to_vec()
    };
    let (with, plain) = (after(own), after(&ordinary));
    let far: f64 = with.iter().zip(&plain).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    let moved = far / plain.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
    // a key that is chosen for its own tokens alone moves them by 0.2
    assert!(moved > 0.0 && moved < 0.05, "{moved}");

    let lora = format!("{},class=short hair", text(&file("portraits-hair_style_a.safetensors")));
    let arguments = ["--lora", &lora, "--samples", "1", "--no-blocks", "--json", "--dtype", "f32"];
    let report = prints(&[&["probe", text(&repo.join("demo/model"))], &arguments[..]].concat());
    let report: Value = serde_json::from_str(&report).unwrap();
    let always = &report["features"][0]["gates"][0];
    assert_eq!(always["gate"], "always");
    let (drift, leak) = (always["rows"][0]["drift"].as_f64().unwrap(), always["leak"].as_f64().unwrap());
    // an ordinary LoRA leaks 0.4 to 1
    assert!(drift > 1e-3 && leak < 0.02, "drift {drift}, leak {leak}");
}
