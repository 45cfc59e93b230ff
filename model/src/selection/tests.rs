use super::*;
use crate::build::sketch;
use crate::config::UnetConfig;

/// The layers and number of weights of a full-size U-Net; `settings` go into its config.json.
fn unet(settings: &str) -> (Vec<LayerInfo>, usize) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), settings).unwrap();
    let config = UnetConfig::open(&folder.path().join("config.json")).unwrap();
    let layers = crate::layers_of(&config).unwrap();
    let weights = sketch(&config).unwrap().1.iter().map(|w| w.shapes[0].iter().product::<usize>()).sum();
    (layers, weights)
}

fn sd15() -> Vec<LayerInfo> {
    unet(r#"{"cross_attention_dim": 768, "attention_head_dim": 8}"#).0
}

fn rule(select: &str) -> Rule {
    Rule { select: select.into(), rank: 4, alpha: 4.0, lr: None }
}

fn matches(rules: &[Rule], layers: &[LayerInfo]) -> Result<Vec<Match>> {
    Selection::new(rules)?.resolve(layers)
}

fn hits(select: &str, layers: &[LayerInfo]) -> Vec<String> {
    let matches = matches(&[rule(select)], layers).unwrap_or_else(|e| panic!("{e}"));
    matches.into_iter().map(|m| m.layer.path).collect()
}

fn message(select: &str, layers: &[LayerInfo]) -> String {
    matches(&[rule(select)], layers).unwrap_err().to_string()
}

/// Parameters of a LoRA of rank 1.
fn parameters(select: &str, layers: &[LayerInfo]) -> usize {
    matches(&[rule(select)], layers).unwrap().iter().map(|m| m.layer.parameters(1)).sum()
}

#[test]
fn full_size_models() {
    let (layers, weights) = unet(r#"{"cross_attention_dim": 768, "attention_head_dim": 8}"#);
    assert_eq!((layers.len(), weights), (282, 859_520_964));
    assert_eq!(layers.iter().filter(|l| l.kind == LayerKind::Conv3x3).count(), 52);
    let (layers, weights) = unet(
        r#"{"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": true}"#,
    );
    assert_eq!((layers.len(), weights), (282, 865_910_724));
    assert_eq!(hits("transformer", &layers).len(), 192);
    assert_eq!(hits("conv", &layers).len(), 14 + 50);
    assert_eq!(hits("transformer, resnet, conv", &layers).len(), 278);
}

#[test]
fn groups_are_the_ones_others_train() {
    let layers = sd15();
    for (select, count) in [
        ("transformer", 192),
        ("attn, ff | proj", 192),
        ("attn", 128),
        ("self-attn", 64),
        ("cross-attn", 64),
        ("ff", 32),
        ("proj", 32),
        ("resnet", 36 + 44),
        ("conv", 46 + 50),
        // kohya's with a conv_dim
        ("transformer, resnet, conv", 278),
        ("transformer & high", 60),
        ("transformer mid", 60),
        ("transformer low", 72),
        ("**", 230),
    ] {
        assert_eq!(hits(select, &layers).len(), count, "{select}");
    }
    assert_eq!(parameters("transformer", &layers), 423_936);
    assert_eq!(parameters("**.time_emb_proj, **.conv_shortcut", &layers), 82_880);
    assert_eq!(parameters("transformer, resnet, conv", &layers), 1_050_816);
    assert_eq!(parameters("*.attn2.to_k, *.attn2.to_v", &layers), 49_536);
}

#[test]
fn blocks_have_the_names_of_every_notation() {
    let layers = sd15();
    // kohya, LBW, LDM, diffusers, parameters of its attention at rank 1
    for (kohya, lbw, ldm, paths, count) in [
        (1, "IN01", "input_blocks.1", "down_blocks.0.*.0", 11_776),
        (2, "IN02", "input_blocks.2", "down_blocks.0.attentions.1, down_blocks.0.resnets.1", 11_776),
        (5, "IN05", "input_blocks.5", "down_blocks.1.attentions.1, down_blocks.1.resnets.1", 22_016),
        (8, "IN08", "input_blocks.8", "down_blocks.2.attentions.1, down_blocks.2.resnets.1", 42_496),
        (12, "M00", "middle_block", "mid_block", 42_496),
        (12, "MID", "middle_block.*", "mid_block.**", 42_496),
        (16, "OUT03", "output_blocks.3", "up_blocks.1.attentions.0, up_blocks.1.resnets.0", 42_496),
        (18, "OUT05", "output_blocks.5", "up_blocks.1.attentions.2, up_blocks.1.resnets.2", 42_496),
        (21, "OUT08", "output_blocks.8", "up_blocks.2.attentions.2, up_blocks.2.resnets.2", 22_016),
        (24, "OUT11", "output_blocks.11", "up_blocks.3.attentions.2, up_blocks.3.resnets.2", 11_776),
    ] {
        let expected = hits(&format!("kohya:{kohya}"), &layers);
        assert_eq!(hits(lbw, &layers), expected);
        assert_eq!(hits(ldm, &layers), expected);
        if kohya != 1 {
            assert_eq!(hits(paths, &layers), expected);
        }
        assert_eq!(parameters(&format!("{lbw} & transformer"), &layers), count);
    }
    let blocks = Blocks::new(&layers);
    let name = |path| blocks.name(path).map(|name| (name.kohya, name.lbw));
    assert_eq!(name("up_blocks.2.upsamplers.0.conv"), Some((21, "OUT08".into())));
    assert_eq!(name("down_blocks.2.downsamplers.0.conv"), Some((9, "IN09".into())));
    assert_eq!(name("time_embedding.linear_1"), None);
    let ldm = |path| blocks.ldm_path(path).unwrap();
    assert_eq!(ldm("down_blocks.1.resnets.1.time_emb_proj"), "input_blocks.5.0.emb_layers.1");
    assert_eq!(ldm("down_blocks.0.downsamplers.0.conv"), "input_blocks.3.0.op");
    assert_eq!(ldm("mid_block.resnets.1.conv2"), "middle_block.2.out_layers.3");
    assert_eq!(ldm("mid_block.attentions.0.proj_in"), "middle_block.1.proj_in");
    assert_eq!(ldm("up_blocks.0.upsamplers.0.conv"), "output_blocks.2.1.conv");
    assert_eq!(ldm("up_blocks.2.upsamplers.0.conv"), "output_blocks.8.2.conv");
    assert_eq!(ldm("time_embedding.linear_2"), "time_embed.2");
}

#[test]
fn terms_narrow_and_widen() {
    let layers = sd15();
    assert_eq!(hits("down_blocks.1.attentions.*.attn2.to_k", &layers).len(), 2);
    assert_eq!(hits("up_blocks.1", &layers).len(), 36 + 3 + 3);
    assert_eq!(hits("up_blocks.1 & attn", &layers).len(), 24);
    assert_eq!(hits("up_blocks.1 attn", &layers), hits("attn & up_blocks.1", &layers));
    assert_eq!(hits("MID cross-attn, OUT11 self-attn", &layers).len(), 8);
    assert_eq!(hits("**.to_?", &layers).len(), 96);
    assert_eq!(hits("time_embedding", &layers).len(), 2);
}

#[test]
fn modules_have_kohyas_names_too() {
    let layers = sd15();
    let paths: Vec<&str> = layers.iter().flat_map(|layer| modules(&layer.path)).collect();
    for path in paths {
        let ours = matches(&[rule(path)], &layers).map(|matches| matches.len()).map_err(|_| ());
        let kohyas = matches(&[rule(&kohya_name(Part::Unet, path))], &layers)
            .map(|matches| matches.len())
            .map_err(|_| ());
        assert_eq!(ours, kohyas, "{path}");
    }
    assert_eq!(
        hits("lora_unet_down_blocks_1_attentions_0_proj_in", &layers),
        ["down_blocks.1.attentions.0.proj_in"]
    );
    assert_eq!(hits("lora_unet_up_blocks_1 & attn", &layers), hits("up_blocks.1 & attn", &layers));
    // no part of a name is a module
    assert!(matches(&[rule("lora_unet_down_blocks_1_attentions_0_proj")], &layers).is_err());
}

/// A 3×3 convolution is in what names it, and in no subtree, block or level.
#[test]
fn convolutions_are_asked_for() {
    let layers = sd15();
    let convs = |select: &str| {
        let matches = matches(&[rule(select)], &layers).unwrap();
        matches.iter().filter(|m| m.layer.kind == LayerKind::Conv3x3).count()
    };
    for (select, count) in [
        ("up_blocks.1", 0),
        ("up_blocks.1.*", 0),
        ("**", 0),
        ("OUT03", 0),
        ("high", 0),
        ("output_blocks.2", 0),
        ("up_blocks.1 & conv", 7),
        ("up_blocks.1 resnet", 6),
        ("OUT05 conv", 3),
        ("IN03 conv", 1),
        ("mid & conv", 5 + 7),
        ("conv_in", 1),
        ("**.conv1", 22),
        ("output_blocks.2.1.conv", 1),
        ("*.downsamplers.0.conv, conv_out", 4),
        ("up_blocks.1, mid_block conv", 4),
    ] {
        assert_eq!(convs(select), count, "{select}");
    }
    assert_eq!(parameters("OUT05 conv, OUT05 resnet, OUT05 transformer", &layers), 92_416);
    assert_eq!(parameters("MID conv, MID", &layers), 98_816);
}

#[test]
fn a_later_rule_overrides() {
    let layers = sd15();
    let rules = [
        rule("attn"),
        Rule { rank: 16, lr: Some(1e-5), ..rule("MID") },
        Rule { rank: 0, ..rule("cross-attn high") },
    ];
    let matches = matches(&rules, &layers).unwrap();
    let of_rule = |i| matches.iter().filter(|m| m.rule == i).count();
    assert_eq!([of_rule(0), of_rule(1), of_rule(2)], [128 - 8 - 20, 12 + 2, 0]);
    assert!(matches.iter().filter(|m| m.rule == 1).all(|m| (m.rank, m.lr) == (16, Some(1e-5))));
}

#[test]
fn mistakes_are_explained() {
    let layers = sd15();
    for (select, part) in [
        ("down_blocks.1.attentions.0.atn2", "`down_blocks.1.attentions.0"),
        ("crossattn", "`cross-attn`"),
        ("attn2.to_k", "`**.attn2.to_k`"),
        ("attn, nothing.here", "`nothing.here`"),
        ("IN04 & OUT04", "no layer is in all of them"),
        ("kohya:0", "by name, such as `conv_in`"),
        ("IN03", "only 3×3 convolutions"),
        ("down_blocks.0.downsamplers", "such as `down_blocks.0.downsamplers.0.conv`"),
        ("kohya:25", "kohya:0 to kohya:24"),
        ("IN12", "IN00 to IN11"),
        ("BASE", "text encoder"),
        ("lora_unet_mid_blok_attentions_0", "`lora_unet_mid_block_attentions_0`"),
        ("", "a term is missing"),
        ("attn,", "a term is missing"),
        ("mid & ", "a term is missing"),
        ("& attn", "a term is missing"),
        ("mid && attn", "a term is missing"),
    ] {
        let message = message(select, &layers);
        assert!(message.contains(part), "{select}: {message}");
    }
    let message = matches(&[Rule { rank: 4_000_000_000, ..rule("attn") }], &layers).unwrap_err().to_string();
    assert!(message.contains("rank 4000000000 is above 4096"), "{message}");
    assert!(matches(&[Rule { alpha: f32::NAN, ..rule("attn") }], &layers).is_err());
    assert!(matches(&[Rule { lr: Some(-1.0), ..rule("attn") }], &layers).is_err());
}
