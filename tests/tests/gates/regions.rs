//! Features that are kept to a part of the picture.

use std::collections::BTreeMap;

use strata_engine::{DType, Gpu, Tape, Tensor};
use strata_kernels::Padding;
use strata_model::{Conv2d, Cx, Gates, Layer, Pipeline, Region, RowGates, Rows, Taps};
use strata_tests::{Setup, gpu};

use super::{ALL, LEFT, SIDE, lora, output, pipeline, tensor};
use crate::support::{predict, unet};

const RIGHT: Region = Region::Box([0.5, 0.0, 1.0, 1.0]);

/// Level of a layer of the tiny U-Net: its height and width are halved so many times.
fn level(path: &str) -> usize {
    let number = |block: &str| path.strip_prefix(block).map(|rest| rest[1..2].parse::<usize>().unwrap());
    let down = number("down_blocks");
    let ends = path.starts_with("conv_").then_some(0);
    down.or_else(|| number("up_blocks").map(|i| 3 - i)).or(ends).unwrap_or(3)
}

fn convolved(layer: &Conv2d, gates: &Gates, x: &Tensor) -> Vec<f32> {
    let tape = Tape::off();
    let cx = Cx { gates, ..Cx::new(&tape) };
    let y = match layer.path.contains("downsamplers") {
        true => layer.halve(&cx, x, Padding::Same),
        false => layer.forward(&cx, x, x.dtype()),
    };
    y.unwrap().to_f32().unwrap()
}

/// Outside its region a feature adds nothing to any layer, at any level, and inside all that it ever does.
#[test]
fn a_region_keeps_layers_on_places_to_it() {
    let gpu = gpu(Setup::Lane);
    for dtype in [DType::F32, DType::F16] {
        let mut pipeline = pipeline(&gpu, dtype);
        pipeline.unet.attach(&lora(&gpu, dtype, &pipeline.unet, ALL, "x")).unwrap();
        // half of a latent of 16 × 16, of the second sample alone; as a mask it is the same
        let mask = Region::Mask { width: 2, height: 1, values: vec![1.0, 0.0] };
        for region in [LEFT, mask] {
            let places = Some(region.places([16, 16]).unwrap());
            let gates = Gates::rows(vec![RowGates { samples: vec![0.0, 1.0], text: None, places }]);
            let mut seen = BTreeMap::new();
            pipeline.unet.visit_layers(&mut |layer| {
                if Rows::of(layer.path()) != Rows::Place {
                    return;
                }
                let info = layer.info();
                let level = level(&info.path);
                // samplers write the next level: one after the picture has grown, the other makes it smaller
                let grown = usize::from(info.path.contains("upsamplers"));
                let shrinks = usize::from(info.path.contains("downsamplers"));
                let (side, from) = (16 >> (level - grown + shrinks), 16 >> (level - grown));
                *seen.entry(level).or_insert(0) += 1;
                let x = tensor(&gpu, &info.path, &[2, from, from, info.inputs], dtype);
                let run = |gates: &Gates| match &layer {
                    Layer::Linear(layer) => output(layer, gates, &x),
                    Layer::Conv(layer) => convolved(layer, gates, &x),
                };
                let base = run(&Gates::scalars(&[0.0]));
                let always = run(&Gates::scalars(&[1.0]));
                let gated = run(&gates);
                assert_eq!(gated.len(), 2 * side * side * info.outputs, "{}", info.path);
                for row in 0..2 * side * side {
                    let part = row * info.outputs..(row + 1) * info.outputs;
                    assert!(base[part.clone()] != always[part.clone()]);
                    let inside = row >= side * side && row % side < side / 2;
                    let expected = if inside { &always } else { &base };
                    assert!(gated[part.clone()] == expected[part], "{} row {row}", info.path);
                }
            });
            assert!(seen.len() == 4 && seen.values().all(|count| *count >= 12), "{seen:?}");
        }
    }
}

/// What cross-attention gives before the residual is added, with LoRAs on its keys and values alone.
fn cross_attention(gpu: &Gpu, pipeline: &Pipeline, path: &str, gates: &Gates) -> Vec<f32> {
    let sample = tensor(gpu, "sample", &[2, 16, 16, 4], DType::F32);
    let context = tensor(gpu, "context", &[2, 77, 32], DType::F32);
    let (tape, name) = (Tape::off(), path.to_string());
    let taps = Taps::new(move |path| path == name);
    let cx = Cx { tape: &tape, gates, taps: Some(&taps) };
    predict(&pipeline.unet, &cx, &sample, &[500.0, 20.0], &context).unwrap();
    taps.get(path).unwrap().to_f32().unwrap()
}

/// Keys and values belong to no place: attention with and without them is mixed place by place.
#[test]
fn a_region_keeps_cross_attention_to_it() {
    let gpu = gpu(Setup::Lane);
    let mut pipeline = pipeline(&gpu, DType::F32);
    let one = |region: Option<Region>, samples: [f32; 2]| RowGates {
        samples: samples.into(),
        text: None,
        places: region.map(|region| region.places([16, 16]).unwrap()),
    };
    let (off, on) = ([0.0, 0.0], [0.0, 1.0]);
    for block in ["down_blocks.0", "down_blocks.1", "down_blocks.2", "mid_block"] {
        let path = format!("{block}.attentions.0.transformer_blocks.0.attn2");
        pipeline.unet.detach_all();
        for seed in ["a", "b"] {
            let select = format!("{path}.to_k, {path}.to_v");
            pipeline.unet.attach(&lora(&gpu, DType::F32, &pipeline.unet, &select, seed)).unwrap();
        }
        let run = |a, b| cross_attention(&gpu, &pipeline, &path, &Gates::rows(vec![a, b]));
        let base = run(one(None, off), one(None, off));
        let (a, b) = (run(one(None, on), one(None, off)), run(one(None, off), one(None, on)));
        let both = run(one(None, on), one(None, on));
        // a feature on one side alone, a feature on each side, and both on the same side
        let alone = run(one(Some(LEFT), on), one(None, off));
        let sides = run(one(Some(LEFT), on), one(Some(RIGHT), on));
        let same = run(one(Some(LEFT), on), one(Some(LEFT), on));
        // a feature everywhere beside one that is kept to the left
        let beside = run(one(Some(LEFT), on), one(None, on));
        // 7 of 16 columns: at the second level half of the fourth column
        let soft = run(one(Some(Region::Box([0.0, 0.0, 7.0 / 16.0, 1.0])), on), one(None, off));
        let side = 16 >> level(&path);
        let channels = base.len() / (2 * side * side);
        for row in 0..2 * side * side {
            let part = |values: &Vec<f32>| values[row * channels..(row + 1) * channels].to_vec();
            let (drawn, left) = (row >= side * side, row % side < side / 2);
            assert_eq!(part(&a) != part(&base) && part(&a) != part(&b), drawn, "{path} row {row}");
            let expect = |given: &Vec<f32>, left_is: &Vec<f32>, right_is: &Vec<f32>, name: &str| {
                let expected = match (drawn, left) {
                    (false, _) => &base,
                    (true, true) => left_is,
                    (true, false) => right_is,
                };
                assert!(part(given) == part(expected), "{path} row {row}, {name}");
            };
            expect(&alone, &a, &base, "alone");
            expect(&sides, &a, &b, "sides");
            expect(&same, &both, &base, "same");
            expect(&beside, &both, &b, "beside");
            if side == 8 && row % side == 3 {
                let middle = part(&a).into_iter().zip(part(&base)).map(|(a, base)| 0.5 * a + 0.5 * base);
                let close =
                    part(&soft).into_iter().zip(middle).all(|(soft, middle)| (soft - middle).abs() < 1e-5);
                assert!(close || !drawn, "{path} row {row}, soft");
            }
        }
    }
}

/// The time embedding has no places, so a feature with a region is off there.
#[test]
fn a_region_turns_the_time_embedding_off() {
    let gpu = gpu(Setup::Lane);
    let mut unet = unet(&gpu, "sd15-tiny", DType::F32);
    let set = lora(&gpu, DType::F32, &unet, "time_embedding, *.time_emb_proj", "x");
    assert!(set.entries().len() > 20);
    unet.attach(&set).unwrap();
    let (sample, context) = (
        tensor(&gpu, "sample", &[1, SIDE, SIDE, 4], DType::F32),
        tensor(&gpu, "context", &[1, 77, 32], DType::F32),
    );
    let tape = Tape::off();
    let run = |gates: &Gates| {
        let cx = Cx { gates, ..Cx::new(&tape) };
        predict(&unet, &cx, &sample, &[500.0], &context).unwrap().to_bytes().unwrap()
    };
    let rows = |region: Option<Region>| {
        let places = region.map(|region| region.places([SIDE, SIDE]).unwrap());
        Gates::rows(vec![RowGates { samples: vec![1.0], text: None, places }])
    };
    let base = run(&Gates::scalars(&[0.0]));
    assert!(run(&rows(Some(LEFT))) == base && run(&rows(None)) != base);
}
