//! What a LoRA is.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use strata_model::{Blocks, LoraModule, LoraWeights, Part, UnetConfig, counted, layers_of, tags_of};

use super::Line;
use crate::commands::layers::unit_path;
use crate::commands::thousands;

/// What is told of metadata in lines; JSON has all.
const METADATA: [&str; 8] = [
    "ss_output_name",
    "ss_base_model_version",
    "ss_sd_model_name",
    "ss_network_module",
    "ss_steps",
    "ss_num_train_images",
    "modelspec.title",
    "modelspec.architecture",
];

/// Modules of one block.
#[derive(Default)]
struct Block {
    modules: usize,
    parameters: usize,
    /// Of ‖ΔW‖².
    squares: f64,
}

/// As JSON, and as lines.
pub fn describe(path: &Path) -> Result<(Value, Vec<Line>)> {
    let lora = LoraWeights::read(path)?;
    let tags = tags_of(&lora.metadata).with_context(|| path.display().to_string())?;
    let mut counts: BTreeMap<Part, usize> = BTreeMap::new();
    let mut blocks: BTreeMap<(Part, String), Block> = BTreeMap::new();
    for ((part, layer), module) in &lora.modules {
        *counts.entry(*part).or_default() += 1;
        let unit = if *part == Part::Unet { unit_path(layer) } else { "" };
        let block = blocks.entry((*part, unit.to_owned())).or_default();
        block.modules += 1;
        block.parameters += module.down.len() + module.up.len();
        block.squares += module.norm().powi(2);
    }
    let ranks = distinct(&lora, |module| module.rank().to_string());
    let alphas = distinct(&lora, |module| module.alpha.to_string());
    let parameters: usize = blocks.values().map(|block| block.parameters).sum();
    let of: Vec<String> = counts.iter().map(|(part, n)| format!("{n} of {part}")).collect();
    let mut lines = vec![
        ("LoRA", path.display().to_string()),
        ("numbers", lora.dtype.wgsl().to_owned()),
        ("modules", format!("{}; {} parameters", of.join(", "), thousands(parameters))),
        ("ranks", ranks.join(" ")),
        ("alphas", alphas.join(" ")),
    ];
    if !tags.is_empty() {
        lines.push(("tags", tags.join(", ")));
    }
    let told = METADATA.iter().filter_map(|key| Some(format!("{key} {}", lora.metadata.get(*key)?)));
    let told: Vec<String> = told.collect();
    if !lora.metadata.is_empty() {
        lines.push((
            "metadata",
            format!("{} of {} keys: {}", told.len(), lora.metadata.len(), told.join(", ")),
        ));
    }
    let layers = layers_of(&UnetConfig::sd15())?;
    let names = Blocks::new(&layers);
    let lbw = |unit: &str| {
        // other models have other blocks under these names
        let known = layers.iter().any(|layer| unit_path(&layer.path) == unit);
        known.then(|| names.name(unit)).flatten().map(|name| name.lbw)
    };
    let mut rows = Vec::new();
    for ((part, unit), block) in &blocks {
        let name = if unit.is_empty() { part.to_string() } else { unit.clone() };
        let (lbw, norm) = (lbw(unit), block.squares.sqrt());
        let text = format!(
            "{name:30} {:6} {:4} modules, {:>10} parameters, norm {norm:.4}",
            lbw.as_deref().unwrap_or(""),
            block.modules,
            thousands(block.parameters)
        );
        lines.push((if rows.is_empty() { "blocks" } else { "" }, text));
        rows.push(json!({
            "block": name,
            "lbw": lbw,
            "modules": block.modules,
            "parameters": block.parameters,
            "norm": norm,
        }));
    }
    lines.push(("Strata", does(&counts, &tags)));
    let value = json!({
        "kind": "lora",
        "path": path,
        "dtype": lora.dtype.wgsl(),
        "modules": counts.iter().map(|(part, n)| (part.to_string(), *n)).collect::<BTreeMap<_, _>>(),
        "parameters": parameters,
        "ranks": ranks,
        "alphas": alphas,
        "tags": tags,
        "blocks": rows,
        "metadata": lora.metadata,
    });
    Ok((value, lines))
}

/// What Strata does with it.
fn does(counts: &BTreeMap<Part, usize>, tags: &[String]) -> String {
    let when = match tags {
        [] => "always on in `strata generate`; a tag can be given, --lora FILE,tag=WORD".to_owned(),
        tags => format!("on in `strata generate` where the prompt has {}", tags.join(" or ")),
    };
    let others = counts.get(&Part::TextEncoder2).copied().unwrap_or(0);
    match others {
        0 => when,
        n => format!(
            "{when}; {} of {} have no use, which --allow-unused permits",
            counted(n, "module"),
            Part::TextEncoder2
        ),
    }
}

/// What the modules have, each once, numbers in order.
fn distinct(lora: &LoraWeights, of: impl Fn(&LoraModule) -> String) -> Vec<String> {
    let all: BTreeSet<String> = lora.modules.values().map(of).collect();
    let mut all: Vec<String> = all.into_iter().collect();
    all.sort_by(|a, b| a.parse::<f64>().unwrap_or(0.0).total_cmp(&b.parse().unwrap_or(0.0)));
    all
}
