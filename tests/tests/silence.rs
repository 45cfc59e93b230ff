//! The silent subspace: what prompts without the tag say does not reach a LoRA.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use strata_engine::{DType, Gpu, Tape, Tensor};
use strata_kernels::{AdamW, Gate, LinearArgs, Lora, Storage, Weight, adamw, grad_norm, linear};
use strata_model::{Cx, Gates, LoraSet, Rule, Selection, TextEncoder};
use strata_tests::{Random, Setup, gpu, skipped};
use strata_trainer::kaiming_uniform;
use strata_trainer::silence::{
    Basis, Delta, Silence, States, basis, default_bank, deltas, read_bank, reads_text,
};

use crate::support::{checkpoint, predict, put, refused, tokenizer, unet};

const MODEL: &str = "sd15-tiny";
const CHANNELS: usize = 32;
const RANK: usize = 8;
const TAGGED: [&str; 3] = ["zwxq", "a photo of zwxq", "portrait of zwxq, oil painting"];

fn text(gpu: &Gpu) -> TextEncoder {
    checkpoint(MODEL).text_encoder(gpu, DType::F32).unwrap()
}

fn owned(prompts: &[&str]) -> Vec<String> {
    prompts.iter().map(|text| text.to_string()).collect()
}

/// Of the default bank. Not to be asked for by who holds a GPU adapter.
static BANK: LazyLock<States> =
    LazyLock::new(|| States::collect(&text(&gpu(Setup::Lane)), &default_bank(), &[]).unwrap());

/// Text states of prompts, [prompts, tokens, CHANNELS], and how many tokens there are.
fn encode(gpu: &Gpu, prompts: &[String]) -> (Vec<f32>, usize) {
    let tokenizer = tokenizer(MODEL);
    let text = text(gpu);
    let clip = text.clip();
    let states = prompts.iter().flat_map(|prompt| {
        let ids = tokenizer.encode(prompt).unwrap();
        let ids = Tensor::from_u32(gpu, &ids, &[1, ids.len()]).unwrap();
        clip.forward(&Cx::new(&Tape::off()), &ids, 0).unwrap().to_f32().unwrap()
    });
    (states.collect(), tokenizer.max_length())
}

/// LoRAs on the layers that a pattern selects.
fn lora(gpu: &Gpu, dtype: DType, select: &str, rank: usize, seed: u64) -> LoraSet {
    lora_of(MODEL, gpu, dtype, select, rank, seed)
}

fn lora_of(model: &str, gpu: &Gpu, dtype: DType, select: &str, rank: usize, seed: u64) -> LoraSet {
    let layers = checkpoint(model).layers().unwrap();
    let rule = Rule { select: select.into(), rank, alpha: rank as f32, lr: None };
    let matches = Selection::new(&[rule]).unwrap().resolve(&layers).unwrap();
    LoraSet::init(gpu, dtype, &matches, |path, fan_in, down| kaiming_uniform(seed, path, fan_in, down))
        .unwrap()
}

/// Updates by random gradients, after each of which `after` runs.
fn train(gpu: &Gpu, lora: &LoraSet, mut after: impl FnMut()) {
    let (params, length) = (lora.params(), lora.params().len());
    let zeros = || Tensor::zeros(gpu, &[length], DType::F32).unwrap();
    let (exp_avg, exp_avg_sq) = (zeros(), zeros());
    let mut random = Random::new("gradients");
    for step in 1..=4 {
        let grads = Tensor::from_f32(gpu, &random.normal(length), &[length], DType::F32).unwrap();
        let args = AdamW {
            lr: 0.05,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            step,
            grad_scale: 1.0,
            max_norm: 0.0,
        };
        let norm = grad_norm(&grads).unwrap();
        adamw(params, &exp_avg, &exp_avg_sq, &grads, &norm, lora.shadow(), &args).unwrap();
        after();
    }
}

fn most(deltas: &[Delta]) -> f64 {
    assert!(!deltas.is_empty() && deltas.iter().all(|delta| delta.ratio.is_finite()), "{deltas:?}");
    deltas.iter().map(|delta| delta.ratio).fold(0.0, f64::max)
}

fn least(deltas: &[Delta]) -> f64 {
    most(deltas);
    deltas.iter().map(|delta| delta.ratio).fold(f64::INFINITY, f64::min)
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

#[test]
fn the_bank_has_every_kind_of_prompt() {
    let bank = default_bank();
    assert!(bank.len() >= 500, "{}", bank.len());
    assert!(bank.contains(&String::new()), "the empty prompt");
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../trainer/src/features/bank.txt");
    let text = std::fs::read_to_string(file).unwrap();
    assert_eq!(text.lines().count() + 1, bank.len(), "a line is empty or there twice");
    let lower: BTreeSet<String> = bank.iter().map(|prompt| prompt.to_lowercase()).collect();
    assert_eq!(lower.len(), bank.len(), "two prompts differ in case alone, which CLIP does not see");
    for prompt in &bank {
        assert!(!prompt.contains('_'), "{prompt:?} looks like a tag");
        assert!(!prompt.chars().any(char::is_control) && prompt.trim() == prompt, "{prompt:?}");
    }
    let count = |kind: fn(&str) -> bool| bank.iter().filter(|prompt| kind(prompt)).count();
    assert!(count(|p| !p.contains(' ')) >= 50, "single words");
    assert!(count(|p| p.matches(',').count() >= 8) >= 10, "lists of tags");
    assert!(count(|p| p.split(' ').count() >= 30) >= 3, "long prompts");
    assert!(count(|p| !p.is_ascii()) >= 20, "other languages");
    assert!(count(|p| p.chars().all(|c| c.is_ascii_punctuation())) >= 5, "punctuation alone");
}

#[test]
fn banks_of_ones_own() {
    let folder = tempfile::tempdir().unwrap();
    let file = |content: &[u8]| put(folder.path(), "bank.txt", content);
    let bank = read_bank(&file("\u{feff}a cat\r\n\r\n  a dog \na cat\n# one\n".as_bytes())).unwrap();
    assert_eq!(bank, ["", "a cat", "a dog", "# one"]);
    refused(read_bank(&folder.path().join("none.txt")), &["cannot read prompt bank", "none.txt"]);
    refused(read_bank(folder.path()), &["cannot read prompt bank"]);
    refused(read_bank(&file(b"")), &["bank.txt", "holds no prompt", "one per line"]);
    refused(read_bank(&file(b" \n\r\n")), &["holds no prompt"]);
    refused(read_bank(&file(b"a cat\na \xff dog\n")), &["bank.txt:2", "not UTF-8"]);
}

/// The basis against states that are summed up here, one prompt at a time.
#[test]
fn a_basis_is_of_eigenvectors() {
    let prompts: Vec<String> = default_bank().into_iter().step_by(20).collect();
    let gpu = gpu(Setup::Lane);
    let (states, tokens) = encode(&gpu, &prompts);
    let twice = [prompts.clone(), prompts.clone()].concat();
    let basis = basis(&text(&gpu), &twice, &[], RANK).unwrap();
    assert_eq!((basis.channels(), basis.rank(), basis.rows().len()), (CHANNELS, RANK, 9 * CHANNELS));
    let rows: Vec<&[f32]> = basis.rows().chunks_exact(CHANNELS).collect();
    for (i, a) in rows.iter().enumerate() {
        for (j, b) in rows.iter().enumerate() {
            let want = if i == j { 1.0 } else { 0.0 };
            assert!((dot(a, b) - want).abs() <= 1e-6, "{i} · {j} is {}", dot(a, b));
        }
    }
    let bos = &states[..CHANNELS];
    let unit = dot(bos, bos).sqrt();
    for text in states.chunks_exact(tokens * CHANNELS) {
        assert!(
            dot(&text[..CHANNELS], rows[0]) >= (1.0 - 1e-6) * unit,
            "BOS comes first, and is always the same"
        );
    }
    // the second moment without BOS and what lies along it
    let mut moment = vec![0.0; CHANNELS * CHANNELS];
    let (mut total, mut along) = (0.0, 0.0);
    for text in states.chunks_exact(tokens * CHANNELS) {
        for x in text[CHANNELS..].chunks_exact(CHANNELS) {
            total += dot(x, x);
            let share = dot(x, bos) / unit;
            along += share * share;
            let x: Vec<f64> =
                x.iter().zip(bos).map(|(x, b)| f64::from(*x) - share / unit * f64::from(*b)).collect();
            for i in 0..CHANNELS * CHANNELS {
                moment[i] += x[i / CHANNELS] * x[i % CHANNELS];
            }
        }
    }
    let energies = basis.energies();
    assert_eq!(energies.len(), CHANNELS + 1);
    assert!((energies[0] - along / total).abs() <= 1e-6, "{} along BOS, not {}", energies[0], along / total);
    for (v, energy) in rows[1..].iter().zip(&energies[1..]) {
        let left = (0..CHANNELS).map(|i| {
            let mv: f64 =
                moment[i * CHANNELS..][..CHANNELS].iter().zip(*v).map(|(m, v)| m * f64::from(*v)).sum();
            (mv - energy * total * f64::from(v[i])).powi(2)
        });
        let left = left.sum::<f64>().sqrt();
        assert!(left <= 1e-6 * total, "‖M v − λ v‖ = {left:e} of {total:e}");
    }
    assert!(energies[1..].is_sorted_by(|a, b| a >= b) && *energies.last().unwrap() >= 0.0, "{energies:?}");
    assert!((energies.iter().sum::<f64>() - 1.0).abs() <= 1e-9, "{energies:?}");
    let shares = basis.shares();
    assert_eq!(shares.iter().map(|share| share.0).collect::<Vec<_>>(), [0, 4, 8, 16]);
    assert!(shares.is_sorted_by(|a, b| a.1 <= b.1) && shares[3].1 <= 1.0, "{shares:?}");
    assert!((basis.share(CHANNELS) - 1.0).abs() <= 1e-9);
}

#[test]
fn trained_loras_are_silent_where_the_tag_is_not() {
    let span = Basis::new(&BANK, RANK).unwrap();
    println!("shares of energy in the tiny model: {:?}", span.shares());
    for (setup, dtype) in [(Setup::Lane, DType::F32), (Setup::Tile, DType::F32), (Setup::Lane, DType::F16)] {
        let gpu = gpu(setup);
        if dtype == DType::F16 && !gpu.caps().f16 {
            skipped(&format!("silence [f16]: {} has no f16", gpu.caps().name));
            continue;
        }
        let tagged = States::collect(&text(&gpu), &owned(&TAGGED), &[]).unwrap();
        let unseen = owned(&["a turquoise spoon", "fourteen accordions, crayon", "lighthouse keeper asleep"]);
        let unseen = States::collect(&text(&gpu), &unseen, &[]).unwrap();
        let within = BANK.within(&span);
        let measure = |lora: &LoraSet, states: &States| deltas(&checkpoint(MODEL), lora, states).unwrap();

        let plain = lora(&gpu, dtype, "cross-attn", 4, 1);
        train(&gpu, &plain, || ());
        let loud = least(&measure(&plain, &within));
        assert!(loud >= 0.05, "a LoRA that nobody silences says {loud} within the span");

        let silenced = lora(&gpu, dtype, "cross-attn", 4, 1);
        let silence = Silence::new(&span, &silenced, &[]).unwrap();
        train(&gpu, &silenced, || silence.apply().unwrap());
        let found = measure(&silenced, &within);
        assert_eq!(found.len(), silence.layers());
        assert!(found.iter().all(|delta| reads_text(&delta.path)));
        let (inside, tag) = (most(&found), measure(&silenced, &tagged));
        let [bank, other, before] =
            [(&silenced, &*BANK), (&silenced, &unseen), (&plain, &BANK)].map(|(l, s)| most(&measure(l, s)));
        println!(
            "{setup:?} {dtype:?}: within the span {inside:.1e}, bank {bank:.3} ({before:.3} without), unseen {other:.3}, \
             tag {:.3} to {:.3}",
            least(&tag),
            most(&tag)
        );
        // what rounding `down` to 11 bits leaves
        let limit = if dtype == DType::F32 { 1e-5 } else { 2e-3 };
        assert!(inside <= limit, "{inside:e} within the span, {setup:?} {dtype:?}");
        assert!(bank <= 0.7 * before, "{bank} on the whole bank, {before} without silence");
        assert!(least(&tag) >= 0.01, "the tag is not heard: {tag:?}");
    }
}

#[test]
fn bos_is_silent_in_every_prompt() {
    let span = Basis::new(&BANK, 0).unwrap();
    assert_eq!(span.rank(), 0);
    for setup in [Setup::Lane, Setup::Tile] {
        let gpu = gpu(setup);
        let (states, tokens) = encode(&gpu, &owned(&["", "blurry", TAGGED[0], TAGGED[2]]));
        let set = lora(&gpu, DType::F32, "cross-attn", 4, 2);
        let silence = Silence::new(&span, &set, &[]).unwrap();
        train(&gpu, &set, || silence.apply().unwrap());
        let mut weights = checkpoint(MODEL).unet_weights().unwrap();
        let x = Tensor::from_f32(&gpu, &states, &[4 * tokens, CHANNELS], DType::F32).unwrap();
        for entry in set.entries().iter().filter(|entry| reads_text(&entry.path)) {
            let shape = [entry.outputs(), CHANNELS];
            let w = weights.take(&format!("{}.weight", entry.path), &shape).unwrap();
            let w = Weight::from_f32(&gpu, &w, &shape, Storage::F32).unwrap();
            let part = |start, shape: &[usize]| set.params().view(start, shape).unwrap();
            let down = part(entry.down.start, &[entry.rank, CHANNELS]);
            let up = part(entry.up.start, &[entry.outputs(), entry.rank]);
            let run = |gate| {
                let lora = Lora { down: &down, up: &up, scale: entry.scale(), gate: Gate::Scalar(gate) };
                let args = LinearArgs { loras: &[lora], ..LinearArgs::default() };
                linear(&Tape::off(), &x, &w, &args).unwrap().to_f32().unwrap()
            };
            let (base, with) = (run(0.0), run(1.0));
            let ratio = |token: usize| {
                let at = token * entry.outputs()..(token + 1) * entry.outputs();
                let diff: Vec<f32> =
                    base[at.clone()].iter().zip(&with[at.clone()]).map(|(a, b)| a - b).collect();
                (dot(&diff, &diff) / dot(&base[at.clone()], &base[at])).sqrt()
            };
            for prompt in 0..4 {
                let bos = ratio(prompt * tokens);
                assert!(bos <= 1e-5, "{}: {bos:e} on BOS of prompt {prompt}, {setup:?}", entry.path);
                assert!(ratio(prompt * tokens + 1) >= 1e-2, "{}: the next token is not heard", entry.path);
            }
        }
    }
}

/// Through all of the U-Net: a text that says nothing new gives the base model's prediction.
#[test]
fn a_silent_text_leaves_the_prediction_alone() {
    let span = Basis::new(&BANK, RANK).unwrap();
    let gpu = gpu(Setup::Lane);
    let set = lora(&gpu, DType::F32, "*.attn2.to_k, *.attn2.to_v", 4, 3);
    let silence = Silence::new(&span, &set, &[]).unwrap();
    train(&gpu, &set, || silence.apply().unwrap());

    let mut unet = unet(&gpu, MODEL, DType::F32);
    unet.attach(&set).unwrap();
    let (states, tokens) = encode(&gpu, &owned(&[TAGGED[1]]));
    let silent: Vec<f32> = states
        .chunks_exact(CHANNELS)
        .flat_map(|x| {
            let along = |u: &[f32]| dot(x, u) as f32;
            let mut inside = vec![0.0; CHANNELS];
            for u in span.rows().chunks_exact(CHANNELS) {
                inside.iter_mut().zip(u).for_each(|(sum, v)| *sum += along(u) * v);
            }
            inside
        })
        .collect();
    let noise = Random::new("latent").normal(8 * 8 * 4);
    let sample = Tensor::from_f32(&gpu, &noise, &[1, 8, 8, 4], DType::F32).unwrap();
    let predict = |context: &[f32], gate| {
        let context = Tensor::from_f32(&gpu, context, &[1, tokens, CHANNELS], DType::F32).unwrap();
        let (tape, gates) = (Tape::off(), Gates::scalars(&[gate]));
        let cx = Cx { tape: &tape, gates: &gates, taps: None };
        predict(&unet, &cx, &sample, &[500.0], &context).unwrap().to_f32().unwrap()
    };
    let drift = |context: &[f32]| {
        let (base, with) = (predict(context, 0.0), predict(context, 1.0));
        let diff: Vec<f32> = base.iter().zip(&with).map(|(a, b)| a - b).collect();
        (dot(&diff, &diff) / dot(&base, &base)).sqrt()
    };
    let (quiet, heard) = (drift(&silent), drift(&states));
    println!("drift: {quiet:.1e} within the span, {heard:.1e} with the tag");
    assert!(quiet <= 1e-5 && heard >= 1e-3, "{quiet:e} within the span, {heard:e} with the tag");
}

#[test]
fn only_what_reads_the_text_is_changed() {
    let span = Basis::new(&BANK, RANK).unwrap();
    let gpu = gpu(Setup::Lane);
    let dtype = if gpu.caps().f16 { DType::F16 } else { DType::F32 };
    let set = lora(&gpu, dtype, "attn", 4, 4);
    train(&gpu, &set, || ());
    let before = set.params().to_f32().unwrap();
    let silence = Silence::new(&span, &set, &[]).unwrap();
    let after = set.params().to_f32().unwrap();
    let mut text = vec![false; before.len()];
    let layers: Vec<_> = set.entries().iter().filter(|entry| reads_text(&entry.path)).collect();
    assert!(layers.len() < set.entries().len() && layers.len() == silence.layers());
    layers.iter().for_each(|entry| text[entry.down.clone()].fill(true));
    for i in 0..text.len() {
        assert!(text[i] || before[i] == after[i], "element {i}");
    }
    for entry in layers {
        assert!(after[entry.down.clone()] != before[entry.down.clone()], "{}", entry.path);
    }
    if let Some(shadow) = set.shadow() {
        let rounded = Tensor::from_f32(&gpu, &after, &[after.len()], dtype).unwrap();
        assert!(shadow.to_bytes().unwrap() == rounded.to_bytes().unwrap(), "the f16 copy");
    }
}

#[test]
fn features_trained_in_stages_read_other_parts_of_the_text() {
    let span = Basis::new(&BANK, RANK).unwrap();
    let gpu = gpu(Setup::Lane);
    let first = lora(&gpu, DType::F32, "*.attn2.to_k", 4, 5);
    let silence = Silence::new(&span, &first, &[]).unwrap();
    train(&gpu, &first, || silence.apply().unwrap());
    let second = lora(&gpu, DType::F32, "cross-attn", 6, 6);
    let silence = Silence::new(&span, &second, &[&first]).unwrap();
    train(&gpu, &second, || silence.apply().unwrap());
    assert_eq!(silence.layers(), 2 * first.entries().len());

    let (old, new) = (first.params().to_f32().unwrap(), second.params().to_f32().unwrap());
    let mut compared = 0;
    for entry in second.entries().iter().filter(|entry| reads_text(&entry.path)) {
        let earlier = first.entries().iter().find(|other| other.path == entry.path);
        let taken = earlier.map_or(&[][..], |other| &old[other.down.clone()]);
        for row in new[entry.down.clone()].chunks_exact(CHANNELS) {
            assert!(dot(row, row) > 1e-4, "{} still reads something", entry.path);
            for u in span.rows().chunks_exact(CHANNELS).chain(taken.chunks_exact(CHANNELS)) {
                let cosine = dot(row, u).abs() / (dot(row, row) * dot(u, u)).sqrt();
                assert!(cosine <= 1e-6, "{}: {cosine:e}", entry.path);
            }
        }
        compared += usize::from(earlier.is_some());
    }
    assert_eq!(compared, first.entries().len());

    let large = lora(&gpu, DType::F32, "*.attn2.to_k", 19, 7);
    let full = [&first, &large];
    refused(Silence::new(&span, &second, &full), &["attn2.to_k", "9 directions", "rank 23", "32 channels"]);
}

#[test]
fn what_cannot_be_silenced_is_refused() {
    let span = Basis::new(&BANK, RANK).unwrap();
    refused(Basis::new(&BANK, CHANNELS - 1), &["rank = 31", "32 channels", "at most 30"]);
    assert!(Basis::new(&BANK, CHANNELS - 2).is_ok());
    let gpu = gpu(Setup::Lane);
    let deaf = lora(&gpu, DType::F32, "ff", 4, 8);
    refused(Silence::new(&span, &deaf, &[]), &["no layer", "attn2.to_k"]);
    let other = lora_of("sd2-tiny", &gpu, DType::F32, "cross-attn", 4, 9);
    refused(Silence::new(&span, &other, &[]), &["attn2.to_k", "48 channels", "have 32", "one model"]);
    refused(basis(&text(&gpu), &[], &[], RANK), &["no prompts"]);
}
