//! The probe: against PyTorch, against what must be so, and its reports.

mod prompts;
mod reports;

use strata_engine::{DType, Gpu};
use strata_model::{GateMode, LoraSet, LoraWeights, Pipeline, Rule, Selection, Tag};
use strata_tests::{Random, Setup, gpu};
use strata_trainer::probe::{Cell, Draws, GroupKind, Matrix, Probe, ProbeFeature, Script, parts};

use crate::support::{golden, refused};

/// Few, to be quick: two carriers and two ordinary prompts.
const LINES: [&str; 4] = ["a photo of {}", "{} in the rain", "a red chair", "an old house by the sea"];
const TOKEN: GateMode = GateMode::Token { after: false };

fn pipeline(gpu: &Gpu) -> Pipeline {
    crate::support::pipeline(gpu, "sd15-tiny", DType::F32)
}

fn lora(name: &str) -> LoraWeights {
    LoraWeights::read(&golden("sd15-tiny", &format!("lora/{name}_kohya.safetensors"))).unwrap()
}

fn attach(gpu: &Gpu, pipeline: &mut Pipeline, lora: &LoraWeights) {
    let set = LoraSet::from_weights(gpu, DType::F32, lora, &pipeline.unet).unwrap();
    pipeline.unet.attach(&set).unwrap();
}

fn feature(pipeline: &Pipeline, tag: &str, class: Option<&str>, weight: f32) -> ProbeFeature {
    let tags = vec![Tag::new(pipeline.text.tokenizer(), tag).unwrap()];
    ProbeFeature { name: format!("feature {tag}"), tags, class: class.map(str::to_owned), weight }
}

fn script(pipeline: &Pipeline, features: Vec<ProbeFeature>, lines: &[&str]) -> Script {
    let lines: Vec<String> = lines.iter().map(|text| text.to_string()).collect();
    let states = |prompt: &_| Ok(pipeline.text.encode(std::slice::from_ref(prompt), 0)?.states);
    Script::new(pipeline.text.tokenizer(), features, &lines, states).unwrap()
}

fn probe(gpu: &Gpu, pipeline: &Pipeline, features: Vec<ProbeFeature>, batch: usize) -> Probe {
    let script = script(pipeline, features, &LINES);
    let draws = Draws::new(&pipeline.schedule, [8, 8, 4], 3, 1, &[]).unwrap();
    Probe::new(gpu, &pipeline.unet, DType::F32, script, draws, batch, &mut || ()).unwrap()
}

fn run(probe: &Probe, pipeline: &Pipeline, feature: usize, mode: GateMode) -> Matrix {
    probe.run(&pipeline.unet, feature, mode, &mut || ()).unwrap()
}

/// Every cell, over all timesteps and by band.
fn cells(matrix: &Matrix) -> impl Iterator<Item = &Cell> {
    matrix.rows.iter().flat_map(|row| std::iter::once(&row.all).chain(&row.bands))
}

/// Drift with the own tag and mean leak, always, by prompt and by token, as tools/probe_torch.py computed them with
/// diffusers and peft, in f64, from the same draws and text states.
const HAIR: [[f64; 2]; 3] = [[4.816573e-2, 0.758467], [4.816573e-2, 0.0], [4.291963e-2, 0.0]];
const COAT: [[f64; 2]; 3] = [[5.093512e-1, 0.939629], [5.093512e-1, 0.0], [4.462980e-1, 0.0]];
/// Of each block alone, for the first.
const BLOCKS: [(&str, [f64; 2]); 3] = [
    ("down_blocks.1", [2.101281e-2, 0.805167]),
    ("mid_block", [6.722186e-5, 0.628786]),
    ("up_blocks.2", [2.463574e-2, 0.832374]),
];

#[test]
fn drift_and_leak_are_pytorchs() {
    let gpu = gpu(Setup::Lane);
    let mut pipeline = pipeline(&gpu);
    let files = ["attn_sel", "attn_all"].map(lora);
    files.iter().for_each(|file| attach(&gpu, &mut pipeline, file));
    let hair = feature(&pipeline, "hair_style_a", Some("hair"), 1.0);
    let coat = feature(&pipeline, "coat b", None, 0.5);
    let probe = probe(&gpu, &pipeline, vec![hair, coat], 4);
    let close = |what: &str, found: f64, expected: f64| {
        let error = (found - expected).abs();
        assert!(error <= 3e-4 * expected.abs(), "{what}: {found}, but PyTorch says {expected}");
    };
    let whole = [
        (0, GateMode::Always, HAIR[0]),
        (0, GateMode::Prompt, HAIR[1]),
        (0, TOKEN, HAIR[2]),
        (1, GateMode::Always, COAT[0]),
        (1, GateMode::Prompt, COAT[1]),
        (1, TOKEN, COAT[2]),
    ];
    for (feature, mode, [drift, leak]) in whole {
        let matrix = run(&probe, &pipeline, feature, mode);
        close(&format!("{feature} {mode:?} drift"), matrix.drift(), drift);
        close(&format!("{feature} {mode:?} leak"), matrix.leak.unwrap(), leak);
    }
    let parts = parts(&files[0], pipeline.unet.layers());
    let blocks = probe.blocks(&mut pipeline.unet, 0, &parts, &mut || ()).unwrap();
    let total: f64 = BLOCKS.iter().map(|(_, [drift, _])| drift).sum();
    for (block, (name, [drift, leak])) in blocks.iter().zip(BLOCKS) {
        assert_eq!(block.block, name);
        close(name, block.alone.drift(), drift);
        close(name, block.alone.leak.unwrap(), leak);
        close(name, block.share, drift / total);
    }
    assert_eq!(blocks.len(), BLOCKS.len());
    assert_eq!(pipeline.unet.features(), 0, "no LoRA is left on");
}

#[test]
fn a_gate_by_prompt_or_token_does_not_leak() {
    let gpu = gpu(Setup::Lane);
    let mut pipeline = pipeline(&gpu);
    attach(&gpu, &mut pipeline, &lora("attn_all"));
    attach(&gpu, &mut pipeline, &lora("attn_sel"));
    let features = [feature(&pipeline, "hair_a", Some("hair"), 1.0), feature(&pipeline, "coat_b", None, 1.0)];
    let probe = probe(&gpu, &pipeline, features.into(), 4);
    let always = run(&probe, &pipeline, 0, GateMode::Always);
    let kinds: Vec<GroupKind> = always.rows.iter().map(|row| row.group.kind).collect();
    use GroupKind::{Class, Empty, Ordinary, OtherTag, OwnTag};
    assert_eq!(kinds, [OwnTag, OtherTag, Class, Ordinary, Empty]);
    assert!(always.rows[1..].iter().all(|row| row.all.leak > Some(0.1)), "it is always on: {always:?}");
    let [by_prompt, by_token] = [GateMode::Prompt, TOKEN].map(|mode| run(&probe, &pipeline, 0, mode));
    assert_eq!(
        (&by_prompt.rows[0].all, &by_prompt.rows[0].bands),
        (&always.rows[0].all, &always.rows[0].bands)
    );
    let on = by_token.drift();
    assert!(on > 0.0 && on != always.drift(), "{on} by token, {} always", always.drift());
    for matrix in [by_prompt, by_token] {
        assert_eq!(matrix.leak, Some(0.0), "{}", matrix.gate);
        for row in &matrix.rows[1..] {
            let zero = Cell { drift: 0.0, leak: Some(0.0) };
            assert!(
                row.all == zero && row.bands.iter().all(|cell| *cell == zero),
                "{}: {row:?}",
                matrix.gate
            );
        }
    }
}

/// As in training: made once, and run whenever the LoRA has changed.
#[test]
fn a_live_lora_is_seen_as_it_is() {
    let gpu = gpu(Setup::Lane);
    let mut pipeline = pipeline(&gpu);
    let rule = Rule { select: "up_blocks.2 attn".into(), rank: 2, alpha: 2.0, lr: None };
    let matches = Selection::new(&[rule]).unwrap().resolve(pipeline.unet.layers()).unwrap();
    let mut random = Random::new("live");
    let fill = |_: &str, inputs: usize, down: &mut [f32]| {
        let values = random.normal(down.len());
        down.iter_mut().zip(values).for_each(|(d, v)| *d = v / (inputs as f32).sqrt());
    };
    let set = LoraSet::init(&gpu, DType::F32, &matches, fill).unwrap();
    pipeline.unet.attach(&set).unwrap();
    let new = |batch| probe(&gpu, &pipeline, vec![feature(&pipeline, "hair_a", None, 1.0)], batch);
    let first = new(4);
    let untrained = run(&first, &pipeline, 0, GateMode::Always);
    assert!(cells(&untrained).all(|cell| *cell == Cell { drift: 0.0, leak: None }), "{untrained:?}");
    assert_eq!(untrained.leak, None, "nothing, divided by nothing");

    let mut values = set.params().to_f32().unwrap();
    for entry in set.entries() {
        values[entry.up.clone()].copy_from_slice(&Random::new(&entry.path).normal(entry.up.len()));
    }
    set.params().write(&values).unwrap();
    let trained = run(&first, &pipeline, 0, GateMode::Always);
    assert!(cells(&trained).all(|cell| cell.drift > 1e-4), "{trained:?}");
    // the base is what it was, so a probe that is made now says the same, however its draws are batched
    assert_eq!(run(&new(4), &pipeline, 0, GateMode::Always), trained);
    let other = run(&new(3), &pipeline, 0, GateMode::Always);
    for (a, b) in cells(&trained).zip(cells(&other)) {
        assert!((a.drift - b.drift).abs() <= 1e-4 * a.drift, "{a:?} {b:?}");
    }
}

/// ε_LoRA − ε_base is linear in a small LoRA, and drift is its square.
#[test]
fn a_small_lora_of_twice_the_weight_drifts_four_times_as_far() {
    let gpu = gpu(Setup::Lane);
    let mut pipeline = pipeline(&gpu);
    attach(&gpu, &mut pipeline, &lora("attn_sel"));
    let weighted = |weight| {
        let probe = probe(&gpu, &pipeline, vec![feature(&pipeline, "hair_a", None, weight)], 4);
        run(&probe, &pipeline, 0, GateMode::Always)
    };
    let (once, twice) = (weighted(0.005), weighted(0.01));
    for (a, b) in cells(&once).zip(cells(&twice)) {
        let ratio = b.drift / a.drift;
        assert!((ratio - 4.0).abs() < 0.1, "{ratio}: {a:?} {b:?}");
    }
    let silent = weighted(0.0);
    assert!(cells(&silent).all(|cell| cell.drift == 0.0), "{silent:?}");
}

#[test]
fn a_lora_in_one_block_has_all_of_its_share_there() {
    let gpu = gpu(Setup::Lane);
    let mut pipeline = pipeline(&gpu);
    let mut file = lora("attn_sel");
    file.modules.retain(|name, _| name.1.starts_with("mid_block"));
    attach(&gpu, &mut pipeline, &file);
    let probe = probe(&gpu, &pipeline, vec![feature(&pipeline, "hair_a", None, 1.0)], 4);
    let whole = run(&probe, &pipeline, 0, GateMode::Always);
    let parts = parts(&file, pipeline.unet.layers());
    let blocks = probe.blocks(&mut pipeline.unet, 0, &parts, &mut || ()).unwrap();
    assert_eq!(blocks.len(), 1);
    let mid = &blocks[0];
    assert_eq!((mid.block.as_str(), mid.layers, mid.share), ("mid_block", file.modules.len(), 1.0));
    assert_eq!(mid.alone, whole);
    assert!(whole.drift() > 0.0);
}

#[test]
fn draws_are_counted_and_within_their_bands() {
    let gpu = gpu(Setup::Lane);
    let schedule = pipeline(&gpu).schedule;
    let shape = [4, 6, 4];
    let draw = |seed, samples, latents: &[Vec<f32>]| Draws::new(&schedule, shape, seed, samples, latents);
    let draws = draw(7, 3, &[]).unwrap();
    assert_eq!(draws.bands(), [0..250, 250..500, 500..750, 750..1000]);
    assert_eq!((draws.draws().len(), draws.samples(), draws.shape()), (12, 3, shape));
    for (i, one) in draws.draws().iter().enumerate() {
        assert!(draws.bands()[i / 3].contains(&one.timestep), "{i}: {}", one.timestep);
        assert!(draws.draws()[..i].iter().all(|other| other.noisy != one.noisy));
        let spread = one.noisy.iter().map(|v| v * v).sum::<f32>() / 96.0;
        assert!((0.5..2.0).contains(&spread), "of unit variance, but {spread}");
    }
    let more = draw(7, 5, &[]).unwrap();
    let kept = |band: usize| draws.draws()[band * 3..][..3] == more.draws()[band * 5..][..3];
    assert!((0..4).all(kept), "more samples keep those that there were");
    assert!(draw(8, 3, &[]).unwrap() != draws, "another seed");

    // latents are taken in turn: z_t less that of zeros is √ᾱ z_0
    let zeros = draw(7, 3, &[vec![0.0; 96]]).unwrap();
    let two = draw(7, 3, &[vec![1.0; 96], vec![-2.0; 96]]).unwrap();
    for (i, (zero, one)) in zeros.draws().iter().zip(two.draws()).enumerate() {
        assert_eq!(zero.timestep, draws.draws()[i].timestep);
        let signal = schedule.alpha_cumprod(one.timestep).unwrap().sqrt() as f32 * [1.0, -2.0][i % 2];
        assert!(zero.noisy.iter().zip(&one.noisy).all(|(z, o)| (o - z - signal).abs() < 1e-5), "{i}");
    }
    refused(draw(7, 3, &[vec![0.0; 95]]), &["95", "[4, 6, 4]", "96"]);
    refused(draw(7, 0, &[]), &["0 samples"]);
}

#[test]
fn a_probe_refuses_what_it_cannot_run() {
    let gpu = gpu(Setup::Lane);
    let mut pipeline = pipeline(&gpu);
    let probe = probe(&gpu, &pipeline, vec![feature(&pipeline, "hair_a", None, f32::MAX)], 4);
    let run = |pipeline: &Pipeline, feature| probe.run(&pipeline.unet, feature, GateMode::Always, &mut || ());
    refused(run(&pipeline, 0), &["LoRA set number 0", "0 sets are attached"]);
    attach(&gpu, &mut pipeline, &lora("attn_sel"));
    refused(run(&pipeline, 1), &["feature number 1", "1 features"]);
    refused(run(&pipeline, 0), &["not finite", "hair_a"]);
}
