//! Where a feature is off, the model has the base model's bits; where it is on, those of the LoRA that is always on.

mod regions;

use strata_engine::{DType, Gpu, Tape, Tensor};
use strata_kernels::Act;
use strata_model::{
    Cx, Feature, GateMode, Gates, Layer, Linear, LoraSet, Pipeline, Prompts, Reading, Region, RowGates, Rows,
    Rule, Sampling, Selection, Start, Tag, Together, Unet, Wording,
};
use strata_tests::{Random, Setup, gpu};

use crate::support::{predict, refused, unet};

const SIDE: usize = 8;
const LEFT: Region = Region::Box([0.0, 0.0, 0.5, 1.0]);
const TOKEN: GateMode = GateMode::Token { after: false };
const AFTER: GateMode = GateMode::Token { after: true };

fn pipeline(gpu: &Gpu, dtype: DType) -> Pipeline {
    crate::support::pipeline(gpu, "sd15-tiny", dtype)
}

/// A LoRA of random numbers, strong enough to be seen, on the layers that a pattern selects.
fn lora(gpu: &Gpu, dtype: DType, unet: &Unet, select: &str, seed: &str) -> LoraSet {
    let rule = Rule { select: select.into(), rank: 3, alpha: 3.0, lr: None };
    let matches = Selection::new(&[rule]).unwrap().resolve(unet.layers()).unwrap();
    let set = LoraSet::init(gpu, dtype, &matches, |_, _, _| ()).unwrap();
    let values: Vec<f32> = Random::new(seed).normal(set.params().len()).iter().map(|v| 0.1 * v).collect();
    set.params().write(&values).unwrap();
    set.shadow().iter().for_each(|shadow| shadow.write(&values).unwrap());
    set
}

/// Every layer that can have a LoRA.
const ALL: &str = "transformer, resnet, conv, conv_in, conv_out, time_embedding";

fn feature(pipeline: &Pipeline, tag: &str, mode: GateMode, weight: f32) -> Feature {
    let tags = if tag.is_empty() { vec![] } else { vec![Tag::new(pipeline.text.tokenizer(), tag).unwrap()] };
    Feature { tags, mode, weight, region: None, uncond: false }
}

/// Latents [B, SIDE, SIDE, 4] of prompts; picture i has the noise of number `first + i`.
fn draw(
    pipeline: &Pipeline,
    wanted: &[&str],
    features: &[Feature],
    sampling: &Sampling,
    first: usize,
) -> Vec<u8> {
    let unwanted = vec!["blurry"; wanted.len()];
    let wording = Wording::read(pipeline.text.tokenizer(), wanted, &unwanted, features).unwrap();
    let takes = wording.takes(features, sampling, [SIDE, SIDE]).unwrap();
    let states = |prompts| pipeline.text.encode(prompts, 0).unwrap();
    let prompts = Prompts { wanted: states(&wording.wanted), unwanted: states(&wording.unwanted) };
    let one = |i: usize| Random::new(&format!("noise {}", first + i)).normal(SIDE * SIDE * 4);
    let noise: Vec<f32> = (0..wanted.len()).flat_map(one).collect();
    let shape = [wanted.len(), SIDE, SIDE, 4];
    pipeline
        .sample(&prompts, Start { noise: &noise, picture: None }, shape, &takes, sampling, |_, _| (), |_| ())
        .unwrap()
        .to_bytes()
        .unwrap()
}

/// Fifty prompts, none with a tag `feature_a` to `feature_e`, some of them nearly.
fn prompts_without_a_tag() -> Vec<String> {
    let near = [
        "",
        "feature_ab",
        "xfeature_a",
        "feature_a2",
        "feature_a_b",
        "feature",
        "feature a",
        "featur_a",
        "(feature_f:1.3)",
        "Feature-A",
    ];
    let (who, what) = (
        ["a cat", "portrait of a woman", "an old house", "two dogs"],
        ["", ", oil painting", " in rain", ", 4k"],
    );
    let mut prompts: Vec<String> = near.map(String::from).into();
    for (i, near) in near.iter().cycle().take(40).enumerate() {
        prompts.push(format!("{}{} {near}", who[i % 4], what[i / 4 % 4]));
    }
    prompts
}

const TAGS: [&str; 5] = ["feature_a", "feature_b", "feature_c", "feature_d", "feature_e"];

/// Five features, each gated in a way of its own.
fn five(pipeline: &Pipeline) -> Vec<Feature> {
    let feature = |i: usize, mode, weight| feature(pipeline, TAGS[i], mode, weight);
    vec![
        feature(0, GateMode::Prompt, 1.0),
        feature(1, TOKEN, 0.8),
        feature(2, AFTER, 1.3),
        Feature { region: Some(LEFT), ..feature(3, GateMode::Prompt, 0.7) },
        Feature { region: Some(Region::Box([0.3, 0.1, 0.9, 0.8])), uncond: true, ..feature(4, TOKEN, 1.0) },
    ]
}

#[test]
fn without_a_tag_the_latents_are_the_base_models() {
    let gpu = gpu(Setup::Lane);
    let prompts = prompts_without_a_tag();
    let texts: Vec<&str> = prompts.iter().map(String::as_str).collect();
    assert_eq!(texts.len(), 50);
    for (dtype, counts) in [(DType::F32, &[1, 2, 5][..]), (DType::F16, &[5])] {
        let mut pipeline = pipeline(&gpu, dtype);
        let features = five(&pipeline);
        let sampling = Sampling { steps: 2, guidance: 3.0, ..Sampling::default() };
        let launches = gpu.stats().launches;
        let base = draw(&pipeline, &texts, &[], &sampling, 0);
        let launches = gpu.stats().launches - launches;
        let mut attached = 0;
        for count in counts {
            while attached < *count {
                let set = lora(&gpu, dtype, &pipeline.unet, ALL, TAGS[attached]);
                pipeline.unet.attach(&set).unwrap();
                attached += 1;
            }
            let before = gpu.stats().launches;
            let gated = draw(&pipeline, &texts, &features[..*count], &sampling, 0);
            assert!(gated == base, "{count} features, {dtype:?}");
            assert_eq!(gpu.stats().launches - before, launches, "nothing more runs");
        }
        // beside pictures that have the tags the others keep their bits, too, and every tag changes its picture
        let mut mixed = texts.clone();
        for (i, tag) in TAGS.iter().enumerate() {
            mixed[10 * i + 3] = tag;
        }
        let off: Vec<Feature> = features.iter().map(|f| Feature { weight: 0.0, ..f.clone() }).collect();
        let plain = draw(&pipeline, &mixed, &off, &sampling, 0);
        let gated = draw(&pipeline, &mixed, &features, &sampling, 0);
        let bytes = gated.len() / 50;
        for (i, (gated, plain)) in gated.chunks_exact(bytes).zip(plain.chunks_exact(bytes)).enumerate() {
            assert_eq!(gated == plain, i % 10 != 3, "picture {i} of {dtype:?}: {}", mixed[i]);
        }
    }
}

/// Without guidance a feature whose tag is there is the LoRA that is always on.
#[test]
fn with_its_tag_a_feature_is_always_on() {
    let gpu = gpu(Setup::Lane);
    for dtype in [DType::F32, DType::F16] {
        let mut pipeline = pipeline(&gpu, dtype);
        pipeline.unet.attach(&lora(&gpu, dtype, &pipeline.unet, ALL, "x")).unwrap();
        let sampling = Sampling { steps: 2, guidance: 1.0, ..Sampling::default() };
        let texts = ["a cat, sks", "SKS"];
        let with =
            |mode, weight| draw(&pipeline, &texts, &[feature(&pipeline, "sks", mode, weight)], &sampling, 0);
        for weight in [1.0, 0.8] {
            let always = with(GateMode::Always, weight);
            assert!(with(GateMode::Prompt, weight) == always, "{weight} {dtype:?}");
            assert!(with(GateMode::Prompt, 0.0) != always && with(TOKEN, weight) != always);
        }
        // a tag's weight is the feature's
        let weighty = |text: &str, weight| {
            draw(&pipeline, &[text], &[feature(&pipeline, "sks", GateMode::Prompt, weight)], &sampling, 0)
        };
        assert!(weighty("a cat, (sks:1.5)", 0.5) == weighty("a cat, sks", 0.75));
        assert!(weighty("a cat, (sks:0)", 1.0) == weighty("a cat, sks", 0.0));
    }
}

fn tensor(gpu: &Gpu, seed: &str, shape: &[usize], dtype: DType) -> Tensor {
    Tensor::from_f32(gpu, &Random::new(seed).normal(shape.iter().product()), shape, dtype).unwrap()
}

/// With guidance the wanted half is the model with the LoRA on, and the unwanted half the base model, unless asked.
#[test]
fn the_unwanted_half_is_the_base_model() {
    unwanted_half(&gpu(Setup::Lane), DType::F16);
    unwanted_half(&gpu(Setup::Tile), DType::F32);
}

fn unwanted_half(gpu: &Gpu, dtype: DType) {
    let mut pipeline = pipeline(gpu, dtype);
    pipeline.unet.attach(&lora(gpu, dtype, &pipeline.unet, ALL, "x")).unwrap();
    let sample = tensor(gpu, "sample", &[1, SIDE, SIDE, 4], dtype);
    let twice = Tensor::from_f32(gpu, &sample.to_f32().unwrap().repeat(2), &[2, SIDE, SIDE, 4], dtype);
    let (twice, tape) = (twice.unwrap(), Tape::off());
    let run = |gates: &Gates, sample: &Tensor, context: &Tensor| {
        let cx = Cx { gates, ..Cx::new(&tape) };
        let timesteps = vec![500.0; sample.shape()[0]];
        predict(&pipeline.unet, &cx, sample, &timesteps, context).unwrap().to_bytes().unwrap()
    };
    for (mode, uncond) in
        [(GateMode::Prompt, false), (GateMode::Prompt, true), (GateMode::Always, false), (TOKEN, false)]
    {
        let features = [Feature { uncond, ..feature(&pipeline, "sks", mode, 1.0) }];
        let wording =
            Wording::read(pipeline.text.tokenizer(), &["sks cat"], &["blurry, sks"], &features).unwrap();
        let [wanted, unwanted] =
            [&wording.wanted, &wording.unwanted].map(|p| pipeline.text.encode(p, 0).unwrap().states);
        let both = [unwanted.to_f32().unwrap(), wanted.to_f32().unwrap()].concat();
        let both = Tensor::from_f32(gpu, &both, &[2, 77, wanted.last()], dtype).unwrap();
        let gated = run(&wording.gates(&features, true, [SIDE, SIDE]).unwrap(), &twice, &both);
        let (first, second) = gated.split_at(gated.len() / 2);
        let on = Gates::scalars(&[1.0]);
        let (base, lora) = (run(&Gates::scalars(&[0.0]), &sample, &unwanted), run(&on, &sample, &unwanted));
        assert!(base != lora);
        let everywhere = uncond || mode == GateMode::Always;
        assert!(first == if everywhere { lora } else { base }, "unwanted, {mode:?} {uncond}");
        match mode {
            GateMode::Token { .. } => assert!(second != run(&on, &sample, &wanted)),
            _ => assert!(second == run(&on, &sample, &wanted), "wanted, {mode:?} {uncond}"),
        }
    }
}

/// A picture does not depend on what else is drawn beside it.
#[test]
fn a_batch_of_mixed_prompts_is_its_pictures_one_by_one() {
    let gpu = gpu(Setup::Lane);
    for (dtype, guidance) in [(DType::F32, 1.0), (DType::F16, 4.0)] {
        let mut pipeline = pipeline(&gpu, dtype);
        let mut features = five(&pipeline);
        features.push(feature(&pipeline, "", GateMode::Always, 0.3));
        for (i, _) in features.iter().enumerate() {
            pipeline.unet.attach(&lora(&gpu, dtype, &pipeline.unet, ALL, &format!("{i}"))).unwrap();
        }
        let texts = [
            "a cat",
            "feature_a",
            "a (feature_b:1.3), feature_a",
            "[feature_c] in rain",
            "feature_d and feature_e, (oil painting:1.2)",
            "(feature_e:0.7)",
        ];
        let sampling = Sampling { steps: 2, guidance, ..Sampling::default() };
        let batch = draw(&pipeline, &texts, &features, &sampling, 0);
        let bytes = batch.len() / texts.len();
        for (i, picture) in batch.chunks_exact(bytes).enumerate() {
            let alone = draw(&pipeline, &texts[i..=i], &features, &sampling, i);
            assert!(alone == picture, "{}, {dtype:?}", texts[i]);
        }
    }
}

/// Two features that share a picture by its places: after one step without guidance each place is that of the picture with
/// one of them alone. A feature that is always on is on in all.
#[test]
fn places_are_shared_by_features() {
    let gpu = gpu(Setup::Lane);
    for (dtype, mode) in [(DType::F32, GateMode::Prompt), (DType::F16, TOKEN)] {
        let mut pipeline = pipeline(&gpu, dtype);
        for seed in ["0", "1", "2"] {
            pipeline.unet.attach(&lora(&gpu, dtype, &pipeline.unet, ALL, seed)).unwrap();
        }
        let features = [
            feature(&pipeline, "feature_a", mode, 1.0),
            feature(&pipeline, "feature_b", mode, 1.0),
            feature(&pipeline, "", GateMode::Always, 0.3),
        ];
        let one_of = |kept: usize| {
            let weight = |i: usize, f: &Feature| if i == kept || i == 2 { f.weight } else { 0.0 };
            let kept =
                features.iter().enumerate().map(|(i, f)| Feature { weight: weight(i, f), ..f.clone() });
            kept.collect::<Vec<_>>()
        };
        let sampling = Sampling { steps: 1, guidance: 1.0, together: Together::Place, ..Sampling::default() };
        let text = ["a cat, feature_a, feature_b"];
        let both = draw(&pipeline, &text, &features, &sampling, 0);
        let [a, b] = [0, 1].map(|kept| draw(&pipeline, &text, &one_of(kept), &sampling, 0));
        let size = both.len() / (SIDE * SIDE);
        let places = both.chunks_exact(size).zip(a.chunks_exact(size)).zip(b.chunks_exact(size));
        let mut owned = [0, 0];
        for ((both, a), b) in places {
            assert!(a != b && (both == a || both == b), "{dtype:?}: a place of neither");
            owned[usize::from(both == b)] += 1;
        }
        assert!(owned.iter().all(|places| *places > 0), "{dtype:?}: places by feature {owned:?}");
        let sum = draw(&pipeline, &text, &features, &Sampling { together: Together::Sum, ..sampling }, 0);
        assert!(sum != both, "{dtype:?}");
    }
}

/// Sharing by places changes nothing where at most one feature is on, and a picture has its bits in any company.
#[test]
fn sharing_by_places_leaves_other_pictures_alone() {
    let gpu = gpu(Setup::Lane);
    for (dtype, guidance) in [(DType::F32, 1.0), (DType::F16, 4.0)] {
        let mut pipeline = pipeline(&gpu, dtype);
        let features = five(&pipeline);
        for tag in TAGS {
            pipeline.unet.attach(&lora(&gpu, dtype, &pipeline.unet, ALL, tag)).unwrap();
        }
        let texts = [
            "a cat",
            "feature_a",
            "(feature_b:1.3), a dog, feature_a",
            "feature_c, feature_d",
            "feature_a, feature_b, feature_c, feature_e",
        ];
        let place = Sampling { steps: 2, guidance, together: Together::Place, ..Sampling::default() };
        let sum = Sampling { together: Together::Sum, ..place.clone() };
        let batch = draw(&pipeline, &texts, &features, &place, 0);
        let bytes = batch.len() / texts.len();
        for (i, picture) in batch.chunks_exact(bytes).enumerate() {
            let alone = |sampling| draw(&pipeline, &texts[i..=i], &features, sampling, i);
            assert!(alone(&place) == picture, "{}, {dtype:?}", texts[i]);
            // the fourth feature has a region, and does not compete
            assert_eq!(alone(&sum) == picture, i != 2 && i != 4, "{}, {dtype:?}", texts[i]);
        }
    }
}

/// Calls `f` for every linear layer of the U-Net.
fn each_linear(unet: &mut Unet, mut f: impl FnMut(&Linear)) {
    unet.visit_layers(&mut |layer| {
        if let Layer::Linear(layer) = layer {
            f(layer);
        }
    });
}

fn output(layer: &Linear, gates: &Gates, x: &Tensor) -> Vec<f32> {
    let tape = Tape::off();
    layer.forward_with(&Cx { gates, ..Cx::new(&tape) }, x, Act::None, None).unwrap().to_f32().unwrap()
}

/// Keys and values at other tokens are the base model's, and at the tag's those of the LoRA.
#[test]
fn token_gates_touch_the_tags_rows_alone() {
    let gpu = gpu(Setup::Lane);
    for dtype in [DType::F32, DType::F16] {
        let mut pipeline = pipeline(&gpu, dtype);
        pipeline.unet.attach(&lora(&gpu, dtype, &pipeline.unet, ALL, "x")).unwrap();
        let texts = ["a photo, sks man", &["5 ".repeat(74), "sks and SKS".into()].concat(), "a cat"];
        for mode in [TOKEN, AFTER] {
            let features = [feature(&pipeline, "sks", mode, 1.0)];
            let wording =
                Wording::read(pipeline.text.tokenizer(), &texts, &["", "", "sks"], &features).unwrap();
            let gates = wording.gates(&features, true, [SIDE, SIDE]).unwrap();
            let tag = features[0].tags[0].ids();
            // the three unwanted, and then the three wanted; two chunks each
            let prompts: Vec<_> = wording.unwanted.iter().chain(&wording.wanted).collect();
            let mut on = vec![false; prompts.len() * 154];
            for (b, prompt) in prompts.iter().enumerate().skip(3) {
                assert_eq!(prompt.ids().len(), 154);
                for at in 0..154 - tag.len() {
                    if prompt.ids()[at..].starts_with(tag) {
                        let end = if mode == AFTER { (at / 77 + 1) * 77 } else { at + tag.len() };
                        on[b * 154 + at..b * 154 + end].fill(true);
                    }
                }
            }
            assert!(on.contains(&true));
            let context = tensor(&gpu, "context", &[6, 154, 32], dtype);
            let mut seen = 0;
            each_linear(&mut pipeline.unet, |layer| {
                if layer.rows != Rows::Text {
                    return;
                }
                seen += 1;
                let base = output(layer, &Gates::scalars(&[0.0]), &context);
                let always = output(layer, &Gates::scalars(&[1.0]), &context);
                let gated = output(layer, &gates, &context);
                for (row, on) in on.iter().enumerate() {
                    let part = row * layer.outputs..(row + 1) * layer.outputs;
                    assert!(base[part.clone()] != always[part.clone()]);
                    let expected = if *on { &always } else { &base };
                    assert!(gated[part.clone()] == expected[part], "{} row {row}, {mode:?}", layer.path);
                }
            });
            assert_eq!(seen, 2 * 16, "to_k and to_v of every cross-attention");
        }
    }
}

/// Text states are as ever without weights; with them those of the weighted tokens grow, and the mean stays.
#[test]
fn states_of_prompts() {
    let gpu = gpu(Setup::Lane);
    for dtype in [DType::F32, DType::F16] {
        let pipeline = pipeline(&gpu, dtype);
        let read = |texts: &[&str]| {
            Wording::read(pipeline.text.tokenizer(), texts, &vec![""; texts.len()], &[]).unwrap().wanted
        };
        let states = |texts: &[&str]| {
            let states = pipeline.text.encode(&read(texts), 1).unwrap().states;
            (states.shape().to_vec(), states.to_f32().unwrap())
        };
        let plain = ["a photo of a cat", "", "two dogs, oil painting"];
        let literal = pipeline.text.read(&plain, Reading::Literal, &[]).unwrap();
        let encoded = pipeline.text.encode(&literal, 1).unwrap().states;
        assert!(states(&plain) == (encoded.shape().to_vec(), encoded.to_f32().unwrap()), "{dtype:?}");

        // a long prompt is its chunks, one after the other, and a short one beside it has empty ones
        let (first, rest) = ("5 ".repeat(75), "6 ".repeat(4));
        let (shape, values) = states(&[&[first.as_str(), &rest].concat(), "cat"]);
        assert_eq!(shape, [2, 154, 32]);
        assert!(values == states(&[&first, &rest, "cat", ""]).1, "{dtype:?}");

        let (weighted, base) =
            (states(&["(photo:1.5) of a cat", "cat"]).1, states(&["photo of a cat", "cat"]).1);
        let (chunk, photo) = (77 * 32, pipeline.text.tokenizer().ids("photo").unwrap().len());
        assert!(weighted[chunk..] == base[chunk..], "the other prompt keeps its bits");
        let mean = |values: &[f32]| values.iter().sum::<f32>() / values.len() as f32;
        let (before, after) = (mean(&base[..chunk]), mean(&weighted[..chunk]));
        assert!((before - after).abs() < 2e-3 * before.abs().max(0.1), "{before} to {after}");
        let ratio = |token: usize| -> f32 {
            let norm = |values: &[f32]| values[token * 32..][..32].iter().map(|v| v * v).sum::<f32>().sqrt();
            norm(&weighted) / norm(&base)
        };
        for token in 0..77 {
            let expected = if (1..=photo).contains(&token) { 1.5 } else { 1.0 };
            assert!((ratio(token) / ratio(0) - expected).abs() < 5e-3, "token {token}, {dtype:?}");
        }
        refused(
            pipeline.text.encode(&[&read(&["cat"])[..], &read(&[&"5 ".repeat(80)])].concat(), 0),
            &["77", "154"],
        );
        refused(pipeline.text.encode(&[], 0), &["CLIP"]);
    }
}

#[test]
fn gates_that_do_not_fit_are_refused() {
    let gpu = gpu(Setup::Lane);
    let mut unet = unet(&gpu, "sd15-tiny", DType::F32);
    unet.attach(&lora(&gpu, DType::F32, &unet, ALL, "x")).unwrap();
    let run = |gates: &Gates| {
        let tape = Tape::off();
        let sample = tensor(&gpu, "sample", &[2, SIDE, SIDE, 4], DType::F32);
        let context = tensor(&gpu, "context", &[2, 77, 32], DType::F32);
        predict(&unet, &Cx { gates, ..Cx::new(&tape) }, &sample, &[5.0, 6.0], &context)
    };
    let rows = |samples: usize, tokens: Option<usize>, places: Option<[usize; 2]>| {
        Gates::rows(vec![RowGates {
            samples: vec![0.5; samples],
            text: tokens.map(|tokens| vec![0.5; tokens]),
            places: places.map(|size| LEFT.places(size).unwrap()),
        }])
    };
    run(&rows(2, Some(154), Some([SIDE, SIDE]))).unwrap();
    refused(run(Gates::none()), &["number 0", "only 0 gates"]);
    refused(run(&rows(1, None, None)), &["1 samples", "[2, "]);
    refused(run(&rows(2, Some(77), None)), &["77 tokens", "[2, 77, 32]"]);
    refused(run(&rows(2, None, Some([6, 6]))), &["6×6", "64 places"]);
}
