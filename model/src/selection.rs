//! Which layers get a LoRA, of which rank.

mod blocks;
mod glob;
mod nearest;
#[cfg(test)]
mod tests;

use crate::formats::kohya::kohya_name;
use crate::layers::{LayerInfo, LayerKind};
use crate::{Error, Part, Result};
use blocks::Level;
pub use blocks::{BlockName, Blocks};

/// The layers that `select` selects get a LoRA.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Terms, as [`Selection`] describes them.
    pub select: String,
    /// r. 0 takes away what an earlier rule gave.
    pub rank: usize,
    /// The LoRA's output is multiplied by alpha / r.
    pub alpha: f32,
    /// Learning rate of its own, if any.
    pub lr: Option<f32>,
}

/// A layer that gets a LoRA.
#[derive(Debug, Clone, PartialEq)]
pub struct Match {
    /// The layer.
    pub layer: LayerInfo,
    /// r.
    pub rank: usize,
    /// The LoRA's output is multiplied by alpha / r.
    pub alpha: f32,
    /// Learning rate of its own, if any.
    pub lr: Option<f32>,
    /// Which rule it comes from, counted from 0.
    pub rule: usize,
}

/// Rules that say which layers get a LoRA; a later rule overrides an earlier one on the same layer. The `select` of a rule
/// is one or more terms: a space or `&` between terms takes the layers that are in both, `,` or `|` those that are in
/// either, and binds less. A term is
///
/// * a path of diffusers' (`up_blocks.1`, `mid_block.attentions.0`) or of the original checkpoints'
///   (`input_blocks.4`, `middle_block`, `output_blocks.3.1`): the module of that name and all within it;
/// * such a path with wildcards: a component `*` stands for one or more components, `**` for none or more; within a
///   component `*` stands for any letters and `?` for one. `down_blocks.1.*.attn2.to_k` is every such layer in the block;
/// * a group: `attn`, `self-attn`, `cross-attn`, `ff`, `proj` (`proj_in`, `proj_out`), `transformer` (all four:
///   kohya's default), `resnet` (the residual blocks), `conv` (the convolutions of the blocks, 3×3 and 1×1);
/// * a block as kohya counts them, `kohya:0` to `kohya:24`, or as LBW does, `IN00` to `IN11`, `M00` or `MID`, `OUT00` to
///   `OUT11`;
/// * a module in kohya's naming, `lora_unet_down_blocks_1_attentions_0`: the same as its path;
/// * a level: `high` (the finest resolution), `mid` (between), `low` (the coarser half of the levels, and `mid_block`).
///   With four levels and pictures of 512 × 512 pixels: latents of 64 × 64; 32 × 32; 16 × 16 and 8 × 8.
///
/// 3×3 convolutions are only in what asks for them: the groups `resnet` and `conv`, a path that names the layer
/// (`conv_in`, `**.conv1`), and such a term with others (`up_blocks.1 & conv`). A subtree, a block or a level alone has none,
/// like kohya's trainers without a `conv_dim`: a 3×3 convolution costs nine times the parameters of a linear layer of its
/// size. `transformer, resnet, conv` is all that kohya's have with a `conv_dim`.
///
/// ```
/// use strata_model::{Rule, Selection, UnetConfig, layers_of};
///
/// let rule = Rule { select: "up_blocks.1 & cross-attn".into(), rank: 8, alpha: 8.0, lr: None };
/// let layers = Selection::new(&[rule])?.resolve(&layers_of(&UnetConfig::sd15())?)?;
/// // three transformers with to_q, to_k, to_v and to_out each
/// assert_eq!(layers.len(), 12);
/// # Ok::<(), strata_model::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Selection {
    rules: Vec<Rule>,
}

/// The largest rank of a rule: more than any layer's full rank.
pub const MAX_RANK: usize = 4096;
const GROUPS: [&str; 8] = ["attn", "self-attn", "cross-attn", "ff", "proj", "transformer", "resnet", "conv"];
const KOHYA: &str = "lora_unet_";
const LEVELS: [(&str, Level); 3] = [("low", Level::Low), ("mid", Level::Mid), ("high", Level::High)];

impl Selection {
    /// Takes rules as they are written.
    ///
    /// # Errors
    /// [`Error::Pattern`] where there is no term, the rank is above 4096, or alpha or a learning rate is not a number that can work.
    pub fn new(rules: &[Rule]) -> Result<Self> {
        for rule in rules {
            let error = |message: String| Err(Error::Pattern { pattern: rule.select.clone(), message });
            if rule.select.split([',', '|', '&']).any(|terms| terms.trim().is_empty()) {
                return error(
                    "a term is missing; give a path, a group, a block or a level, such as `attn`".into(),
                );
            }
            if rule.rank > MAX_RANK {
                let rank = rule.rank;
                return error(format!(
                    "rank {rank} is above {MAX_RANK}; a layer has nothing more to learn above its own width, at most 1280 in \
                     Stable Diffusion"
                ));
            }
            if !rule.alpha.is_finite() {
                return error(format!(
                    "alpha is {}; choose a number, such as the rank {}",
                    rule.alpha, rule.rank
                ));
            }
            if let Some(lr) = rule.lr.filter(|lr| !(lr.is_finite() && *lr >= 0.0)) {
                return error(format!("lr is {lr}; choose a number of at least 0"));
            }
        }
        Ok(Self { rules: rules.to_vec() })
    }

    /// The layers that get a LoRA, in the order of `layers`, which are all of a U-Net's.
    ///
    /// # Errors
    /// [`Error::Pattern`] where a rule selects nothing, or only 3×3 convolutions that it does not ask for.
    pub fn resolve(&self, layers: &[LayerInfo]) -> Result<Vec<Match>> {
        let blocks = Blocks::new(layers);
        let mut chosen: Vec<Option<usize>> = vec![None; layers.len()];
        for (i, rule) in self.rules.iter().enumerate() {
            for (slot, hit) in chosen.iter_mut().zip(select(&rule.select, layers, &blocks)?) {
                if hit {
                    *slot = Some(i);
                }
            }
        }
        let chosen = layers.iter().zip(chosen).filter_map(|(layer, rule)| Some((layer, rule?)));
        let matches = chosen.map(|(layer, i)| {
            let Rule { rank, alpha, lr, .. } = self.rules[i];
            Match { layer: layer.clone(), rank, alpha, lr, rule: i }
        });
        Ok(matches.filter(|m| m.rank > 0).collect())
    }
}

/// The alternatives of a select, each with the terms that must all hold.
fn unions(select: &str) -> impl Iterator<Item = Vec<&str>> {
    select
        .split([',', '|'])
        .map(|part| part.split([' ', '\t', '\n', '&']).filter(|term| !term.is_empty()).collect())
}

/// Which layers terms mean, as a rule's `select` has them, and 3×3 convolutions wherever they are: for what layers have already.
///
/// # Errors
/// [`Error::Pattern`] where a term hits nothing.
pub(crate) fn meant(text: &str, layers: &[LayerInfo]) -> Result<Vec<bool>> {
    let (blocks, mut meant) = (Blocks::new(layers), vec![false; layers.len()]);
    for terms in unions(text) {
        let mut all = vec![true; layers.len()];
        for term in &terms {
            let hits = hits(term, &Term::parse(term, &blocks)?, layers, &blocks)?;
            all.iter_mut().zip(hits).for_each(|(all, hit)| *all &= hit);
        }
        meant.iter_mut().zip(all).for_each(|(meant, hit)| *meant |= hit);
    }
    Ok(meant)
}

/// Whether a term holds of each layer.
fn hits(term: &str, parsed: &Term<'_>, layers: &[LayerInfo], blocks: &Blocks) -> Result<Vec<bool>> {
    let hits: Vec<bool> = layers.iter().map(|layer| parsed.holds(layer, blocks)).collect();
    if hits.contains(&true) { Ok(hits) } else { Err(nearest::no_hit(term, layers, blocks)) }
}

/// Whether each layer is selected.
fn select(text: &str, layers: &[LayerInfo], blocks: &Blocks) -> Result<Vec<bool>> {
    let mut selected = vec![false; layers.len()];
    for terms in unions(text) {
        let (mut all, mut asked) = (vec![true; layers.len()], vec![false; layers.len()]);
        for term in &terms {
            let parsed = Term::parse(term, blocks)?;
            let hits = hits(term, &parsed, layers, blocks)?;
            all.iter_mut().zip(hits).for_each(|(all, hit)| *all &= hit);
            let asks = layers.iter().map(|layer| parsed.asks_for_convolutions(layer, blocks));
            asked.iter_mut().zip(asks).for_each(|(asked, asks)| *asked |= asks);
        }
        let part = terms.join(" & ");
        let error = |message: &str| Err(Error::Pattern { pattern: part.clone(), message: message.into() });
        let hits = layers.iter().zip(&all).filter(|(_, hit)| **hit).map(|(layer, _)| layer);
        let Some(first) = hits.min_by_key(|layer| layer.side()) else {
            return error(
                "each of these terms has layers, but no layer is in all of them; `,` between terms takes the layers of either",
            );
        };
        let taken = layers
            .iter()
            .zip(all)
            .zip(asked)
            .map(|((layer, hit), asked)| hit && (layer.side() == 1 || asked));
        let taken: Vec<bool> = taken.collect();
        if !taken.contains(&true) {
            return error(&format!(
                "here are only 3×3 convolutions, which get a LoRA where they are asked for: by the group `conv` or `resnet` \
                 beside it, or by name, such as `{}`",
                first.path
            ));
        }
        selected.iter_mut().zip(taken).for_each(|(selected, taken)| *selected |= taken);
    }
    Ok(selected)
}

/// One term, understood.
enum Term<'a> {
    Group(&'a str),
    Level(Level),
    /// By kohya's number.
    Block(usize),
    Path(Vec<&'a str>),
    /// A module as kohya's files name it.
    Kohya(&'a str),
}

impl<'a> Term<'a> {
    fn parse(term: &'a str, blocks: &Blocks) -> Result<Self> {
        if GROUPS.contains(&term) {
            return Ok(Self::Group(term));
        }
        if let Some((_, level)) = LEVELS.iter().find(|(name, _)| *name == term) {
            return Ok(Self::Level(*level));
        }
        if let Some(block) = blocks.parse(term)? {
            return Ok(Self::Block(block));
        }
        if term.starts_with(KOHYA) {
            return Ok(Self::Kohya(term));
        }
        Ok(Self::Path(term.split('.').collect()))
    }

    fn holds(&self, layer: &LayerInfo, blocks: &Blocks) -> bool {
        match self {
            Self::Group(group) => in_group(group, layer),
            Self::Level(level) => blocks.level(&layer.path) == Some(*level),
            Self::Block(index) => blocks.name(&layer.path).is_some_and(|name| name.kohya == *index),
            Self::Path(pattern) => {
                let within = |path: &str| glob::contains(pattern, &path.split('.').collect::<Vec<_>>());
                within(&layer.path) || blocks.ldm_path(&layer.path).is_some_and(|path| within(&path))
            }
            Self::Kohya(name) => modules(&layer.path).any(|module| kohya_name(Part::Unet, module) == *name),
        }
    }

    /// Whether the term means a layer even if it is a 3×3 convolution.
    fn asks_for_convolutions(&self, layer: &LayerInfo, blocks: &Blocks) -> bool {
        match self {
            Self::Group(group) => matches!(*group, "resnet" | "conv"),
            Self::Level(_) | Self::Block(_) => false,
            Self::Path(pattern) => {
                let named = |path: &str| glob::names(pattern, &path.split('.').collect::<Vec<_>>());
                named(&layer.path) || blocks.ldm_path(&layer.path).is_some_and(|path| named(&path))
            }
            Self::Kohya(name) => kohya_name(Part::Unet, &layer.path) == *name,
        }
    }
}

/// The modules around a layer, from the outermost, and the layer itself.
fn modules(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('.').map(|(at, _)| at).chain([path.len()]).map(|end| &path[..end])
}

fn in_group(group: &str, layer: &LayerInfo) -> bool {
    let has = |name: &str| layer.path.split('.').any(|part| part == name);
    match group {
        "attn" => has("attn1") || has("attn2"),
        "self-attn" => has("attn1"),
        "cross-attn" => has("attn2"),
        "ff" => has("ff"),
        "proj" => has("proj_in") || has("proj_out"),
        "transformer" => has("attentions"),
        "resnet" => has("resnets"),
        // others leave conv_in and conv_out alone
        "conv" => layer.kind != LayerKind::Linear && layer.path.contains('.'),
        _ => false,
    }
}
