//! `strata layers`

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::json;
use strata_model::{
    BlockName, Blocks, Checkpoint, LayerInfo, LayerKind, Match, ModelOptions, Rule, Selection, counted,
};

use super::{rank, thousands};

/// Show which layers of a U-Net a selection hits
///
/// Needs no GPU. Beside each block stand the names that kohya's trainers and LBW have for it, both of which --select
/// understands.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  strata layers sd15
  strata layers model.safetensors --all
  strata layers sd15 --select 'up_blocks.1 cross-attn' --select mid_block:16 --rank 4
  strata layers sd15 --select lora_unet_down_blocks_1_attentions_0_proj_in
  strata layers sd15/unet --select IN04,OUT08 --json

RULE is a path (up_blocks.1, down_blocks.*.attn2.to_k), a group (attn, self-attn, cross-attn, ff, proj, transformer,
resnet, conv), a block (IN04, M00, OUT08, kohya:16), a level (low, mid, high) or a module of kohya's LoRA files
(lora_unet_mid_block_attentions_0). `A B` is what is in both, `A,B` what
is in either. 3x3 convolutions are hit by resnet, conv and their own names alone; `OUT08 conv` is those of a block. A later
rule overrides an earlier one on the same layer, and may have a rank of its own after a colon.")]
pub struct Layers {
    /// A Stable Diffusion model: a checkpoint in one .safetensors file, a folder in diffusers layout, or that of a U-Net
    model: PathBuf,
    /// Of a model in one file: a folder in diffusers layout that has the U-Net's configuration [default: Stable Diffusion's]
    #[arg(long, value_name = "FOLDER")]
    config: Option<PathBuf>,
    /// What gets a LoRA; may be given several times [default: attn]
    #[arg(long, value_name = "RULE[:RANK]")]
    select: Vec<String>,
    /// Rank of rules that have none of their own
    #[arg(long, default_value_t = 8, value_parser = rank)]
    rank: usize,
    /// Show the layers that are not selected as well
    #[arg(long)]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A residual block, an attention, a sampler, or a layer that is in none of these.
struct Unit<'a> {
    path: String,
    name: Option<BlockName>,
    layers: Vec<(&'a LayerInfo, Option<&'a Match>)>,
}

/// The units of a U-Net, and which of them are shown.
struct Units<'a> {
    units: Vec<Unit<'a>>,
    all: bool,
}

impl Layers {
    pub fn run(&self, out: &mut impl Write) -> Result<()> {
        let options = ModelOptions { config: self.config.clone(), ..ModelOptions::default() };
        let checkpoint = Checkpoint::open_unet(&self.model, &options)?;
        checkpoint.check_unet()?;
        let layers = checkpoint.layers()?;
        let matches = Selection::new(&self.rules()?)?.resolve(&layers)?;
        let units = Units { units: units(&layers, &matches), all: self.all };
        match self.json {
            true => print_json(out, &units),
            false => print(out, &units),
        }
    }

    fn rules(&self) -> Result<Vec<Rule>> {
        let default = ["attn".to_owned()];
        let texts = if self.select.is_empty() { &default[..] } else { &self.select };
        let rule = |text: &String| {
            // kohya:16 is a block
            let ranked = text.rsplit_once(':').filter(|(select, _)| !select.ends_with("kohya"));
            let (select, rank) = match ranked {
                Some((select, after)) => {
                    let what = || format!("--select {text}: `{after}` after the colon is no rank");
                    (select, rank(after).with_context(what)?)
                }
                None => (text.as_str(), self.rank),
            };
            Ok(Rule { select: select.to_owned(), rank, alpha: rank as f32, lr: None })
        };
        texts.iter().map(rule).collect()
    }
}

/// Brings the layers of a unit together, in the order in which the units first occur.
fn units<'a>(layers: &'a [LayerInfo], matches: &'a [Match]) -> Vec<Unit<'a>> {
    let blocks = Blocks::new(layers);
    let hits: BTreeMap<&str, &Match> = matches.iter().map(|m| (m.layer.path.as_str(), m)).collect();
    let mut units: Vec<Unit> = Vec::new();
    for layer in layers {
        let (path, hit) = (unit_path(&layer.path), hits.get(layer.path.as_str()).copied());
        match units.iter_mut().find(|unit| unit.path == path) {
            Some(unit) => unit.layers.push((layer, hit)),
            None => {
                let name = blocks.name(&layer.path);
                units.push(Unit { path: path.to_owned(), name, layers: vec![(layer, hit)] });
            }
        }
    }
    units
}

/// `down_blocks.0.attentions.1`, `mid_block.resnets.0`, `time_embedding`, `conv_in`: the unit of a layer.
pub(super) fn unit_path(path: &str) -> &str {
    let dots = match path.split('.').next() {
        Some("down_blocks" | "up_blocks") => 4,
        Some("mid_block") => 3,
        _ => 1,
    };
    path.match_indices('.').nth(dots - 1).map_or(path, |(at, _)| &path[..at])
}

fn parameters(m: &Match) -> usize {
    m.layer.parameters(m.rank)
}

fn kind(kind: LayerKind) -> &'static str {
    match kind {
        LayerKind::Linear => "linear",
        LayerKind::Conv1x1 => "conv 1x1",
        LayerKind::Conv3x3 => "conv 3x3",
    }
}

impl Unit<'_> {
    fn hits(&self) -> impl Iterator<Item = &Match> {
        self.layers.iter().filter_map(|(_, hit)| *hit)
    }
}

impl Units<'_> {
    fn shown(&self) -> impl Iterator<Item = &Unit<'_>> {
        self.units.iter().filter(|unit| self.all || unit.hits().next().is_some())
    }

    fn shown_of<'a>(
        &self,
        unit: &'a Unit<'a>,
    ) -> impl Iterator<Item = &'a (&'a LayerInfo, Option<&'a Match>)> {
        let all = self.all;
        unit.layers.iter().filter(move |(_, hit)| all || hit.is_some())
    }

    fn hits(&self) -> impl Iterator<Item = &Match> {
        self.units.iter().flat_map(Unit::hits)
    }

    fn layers(&self) -> usize {
        self.units.iter().map(|unit| unit.layers.len()).sum()
    }
}

fn print(out: &mut impl Write, units: &Units) -> Result<()> {
    let mut block = "";
    for unit in units.shown() {
        let (parent, own) = match unit.path.match_indices(['.']).nth_back(1) {
            Some((at, _)) => (&unit.path[..at], &unit.path[at + 1..]),
            None => ("", unit.path.as_str()),
        };
        if parent != block && !parent.is_empty() {
            writeln!(out, "{parent}")?;
        }
        block = parent;
        let indent = if parent.is_empty() { "" } else { "  " };
        let name = unit.name.as_ref().map_or(String::new(), |n| format!("kohya:{} {}", n.kohya, n.lbw));
        let (count, numbers) = (unit.hits().count(), unit.hits().map(parameters).sum());
        let hit = match count {
            0 => String::new(),
            _ => format!(
                "{count} of {}, {} parameters",
                counted(unit.layers.len(), "layer"),
                thousands(numbers)
            ),
        };
        writeln!(out, "{}", format!("{indent}{own:24}  {name:15}  {hit}").trim_end())?;
        for (layer, hit) in units.shown_of(unit) {
            let path = match layer.path[unit.path.len()..].trim_start_matches('.') {
                "" => own,
                inner => inner,
            };
            let size = format!("{} -> {}", layer.inputs, layer.outputs);
            let (mark, lora) = match hit {
                Some(m) => ("*", format!("rank {:<4} {}", m.rank, thousands(parameters(m)))),
                None => ("-", String::new()),
            };
            let line = format!("{indent}  {mark} {path:38}  {:8}  {size:12}  {lora}", kind(layer.kind));
            writeln!(out, "{}", line.trim_end())?;
        }
    }
    let (count, numbers): (usize, usize) = (units.hits().count(), units.hits().map(parameters).sum());
    let layers = units.layers();
    let kilobytes = thousands((2 * numbers).div_ceil(1000));
    writeln!(
        out,
        "\n* {count} of {}, {} parameters, {kilobytes} kB as f16",
        counted(layers, "layer"),
        thousands(numbers)
    )?;
    Ok(())
}

fn print_json(out: &mut impl Write, units: &Units) -> Result<()> {
    let block = |unit: &Unit| {
        let layer = |(layer, hit): &(&LayerInfo, Option<&Match>)| {
            json!({
                "path": layer.path,
                "kind": kind(layer.kind),
                "inputs": layer.inputs,
                "outputs": layer.outputs,
                "selected": hit.is_some(),
                "rule": hit.map(|m| m.rule),
                "rank": hit.map(|m| m.rank),
                "parameters": hit.map_or(0, parameters),
            })
        };
        json!({
            "path": unit.path,
            "kohya": unit.name.as_ref().map(|name| name.kohya),
            "lbw": unit.name.as_ref().map(|name| &name.lbw),
            "selected": unit.hits().count(),
            "parameters": unit.hits().map(parameters).sum::<usize>(),
            "layers": units.shown_of(unit).map(layer).collect::<Vec<_>>(),
        })
    };
    let value = json!({
        "blocks": units.shown().map(block).collect::<Vec<_>>(),
        "layers": units.layers(),
        "selected": units.hits().count(),
        "parameters": units.hits().map(parameters).sum::<usize>(),
    });
    writeln!(out, "{}", serde_json::to_string_pretty(&value)?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_after_a_colon() {
        let select = ["attn", "mid_block:16", "kohya:16", "kohya:16:4"].map(String::from).to_vec();
        let layers = Layers { model: "m".into(), config: None, select, rank: 8, all: false, json: false };
        let rules = layers.rules().unwrap();
        let parsed: Vec<(&str, usize)> = rules.iter().map(|rule| (rule.select.as_str(), rule.rank)).collect();
        assert_eq!(parsed, [("attn", 8), ("mid_block", 16), ("kohya:16", 8), ("kohya:16", 4)]);
    }

    #[test]
    fn ranks_that_are_none_are_told() {
        for (text, after) in
            [("attn:abc", "abc"), ("attn:-1", "-1"), ("attn:0", "0"), ("attn:8,ff", "8,ff"), ("a:", "")]
        {
            let layers = Layers {
                model: "m".into(),
                config: None,
                select: vec![text.into()],
                rank: 8,
                all: false,
                json: false,
            };
            let message = format!("{:#}", layers.rules().unwrap_err());
            let told = format!(
                "--select {text}: `{after}` after the colon is no rank: a rank is a whole number from 1 to 4096"
            );
            assert_eq!(message, told);
        }
    }

    #[test]
    fn units_of_layers() {
        let cases = [
            ("conv_in", "conv_in"),
            ("time_embedding.linear_1", "time_embedding"),
            ("mid_block.resnets.1.conv2", "mid_block.resnets.1"),
            ("up_blocks.3.attentions.2.transformer_blocks.0.attn1.to_q", "up_blocks.3.attentions.2"),
            ("down_blocks.0.downsamplers.0.conv", "down_blocks.0.downsamplers.0"),
        ];
        cases.into_iter().for_each(|(path, unit)| assert_eq!(unit_path(path), unit));
    }
}
