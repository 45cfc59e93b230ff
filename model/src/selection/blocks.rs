//! What others call the blocks of a U-Net.
//!
//! With n levels of u units: kohya counts `conv_in` 0, down unit j of level i 1 + (u+1) i + j (the downsampler is unit
//! u), `mid_block` (u+1) n, and on through the up blocks, which have u + 1 units. LBW's numbers start anew with the
//! up blocks, and are those of the original checkpoints' `input_blocks` and `output_blocks`.

use crate::layers::LayerInfo;
use crate::{Error, Result};

/// A block's name in other notations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockName {
    /// kohya's number: 0 to 24.
    pub kohya: usize,
    /// LBW's name: `IN00` to `IN11`, `M00`, `OUT00` to `OUT11`.
    pub lbw: String,
}

/// Levels of resolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    Low,
    Mid,
    High,
}

/// The shape of a U-Net, as far as names depend on it.
#[derive(Debug, Clone)]
pub struct Blocks {
    levels: usize,
    /// Residual blocks per down block.
    units: usize,
    /// Which up blocks have attention.
    up_attention: Vec<bool>,
}

impl Blocks {
    /// Of the U-Net that has these layers.
    pub fn new(layers: &[LayerInfo]) -> Self {
        let has = |prefix: String| layers.iter().any(|layer| layer.path.starts_with(&prefix));
        let count = |prefix: &str| (0..).take_while(|i| has(format!("{prefix}.{i}."))).count();
        let levels = count("down_blocks");
        let up_attention = (0..levels).map(|i| has(format!("up_blocks.{i}.attentions."))).collect();
        Self { levels, units: count("down_blocks.0.resnets"), up_attention }
    }

    /// kohya's number of the mid block; the up blocks end at twice that.
    fn mid(&self) -> usize {
        self.levels * (self.units + 1)
    }

    /// The block of a layer or module; `None` for the time embedding and the output layers, which are in none.
    pub fn name(&self, path: &str) -> Option<BlockName> {
        let mid = self.mid();
        let kohya = match place(path)? {
            Place::Input => 0,
            Place::Down { level, unit, .. } => 1 + (self.units + 1) * level + unit.unwrap_or(self.units),
            Place::Mid { .. } => mid,
            Place::Up { block, unit, .. } => mid + 1 + (self.units + 1) * block + unit.unwrap_or(self.units),
            Place::Output | Place::Time => return None,
        };
        let lbw = match kohya {
            k if k < mid => format!("IN{k:02}"),
            k if k == mid => "M00".into(),
            k => format!("OUT{:02}", k - mid - 1),
        };
        Some(BlockName { kohya, lbw })
    }

    /// kohya's number of a block in kohya's or LBW's notation; `None` if `term` is neither.
    pub(super) fn parse(&self, term: &str) -> Result<Option<usize>> {
        let mid = self.mid();
        let error = |message: String| Error::Pattern { pattern: term.into(), message };
        let within = |number: &str, last: usize, shown: &str| match number.parse::<usize>() {
            Ok(number) if number <= last => Ok(number),
            _ => Err(error(format!("no such block; this U-Net has {shown}"))),
        };
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if let Some(number) = term.strip_prefix("kohya:") {
            return within(number, 2 * mid, &format!("kohya:0 to kohya:{}", 2 * mid)).map(Some);
        }
        if let Some(number) = term.strip_prefix("IN").filter(|n| digits(n)) {
            return within(number, mid - 1, &format!("IN00 to IN{:02}", mid - 1)).map(Some);
        }
        if let Some(number) = term.strip_prefix("OUT").filter(|n| digits(n)) {
            let number = within(number, mid - 1, &format!("OUT00 to OUT{:02}", mid - 1))?;
            return Ok(Some(mid + 1 + number));
        }
        match term {
            "M00" | "MID" => Ok(Some(mid)),
            "BASE" => {
                Err(error("the text encoder, which Strata does not train; choose blocks of the U-Net".into()))
            }
            _ => Ok(None),
        }
    }

    /// The resolution a layer works at; `None` for the time embedding.
    pub(super) fn level(&self, path: &str) -> Option<Level> {
        let level = match place(path)? {
            Place::Input | Place::Output => 0,
            Place::Down { level, .. } => level,
            Place::Mid { .. } => return Some(Level::Low),
            Place::Up { block, .. } => (self.levels - 1).checked_sub(block)?,
            Place::Time => return None,
        };
        Some(match level {
            0 => Level::High,
            level if level >= self.levels / 2 => Level::Low,
            _ => Level::Mid,
        })
    }

    /// A layer's or norm's name in the original checkpoints, without `model.diffusion_model.`.
    pub(crate) fn ldm_path(&self, path: &str) -> Option<String> {
        let kohya = self.name(path).map(|name| name.kohya);
        let input = || kohya.map(|k| format!("input_blocks.{k}"));
        let output = || kohya.map(|k| format!("output_blocks.{}", k - self.mid() - 1));
        Some(match place(path)? {
            Place::Input => "input_blocks.0.0".into(),
            Place::Output => if path == "conv_norm_out" { "out.0" } else { "out.2" }.into(),
            Place::Time => path
                .replace("time_embedding.linear_1", "time_embed.0")
                .replace("time_embedding.linear_2", "time_embed.2"),
            Place::Down { unit: None, .. } => format!("{}.0.op", input()?),
            Place::Down { attention, rest, .. } => format!("{}.{}", input()?, inner(attention, rest)),
            Place::Mid { unit, attention: true, rest } => format!("middle_block.{}.{rest}", unit + 1),
            Place::Mid { unit, rest, .. } => format!("middle_block.{}.{}", 2 * unit, resnet(rest)),
            Place::Up { unit: None, block, .. } => {
                format!("{}.{}.conv", output()?, 1 + usize::from(*self.up_attention.get(block)?))
            }
            Place::Up { attention, rest, .. } => format!("{}.{}", output()?, inner(attention, rest)),
        })
    }
}

/// Where a layer lies. `rest` is its name within its unit; `unit` is `None` for samplers.
enum Place<'a> {
    Input,
    Output,
    Time,
    Down { level: usize, unit: Option<usize>, attention: bool, rest: &'a str },
    Mid { unit: usize, attention: bool, rest: &'a str },
    Up { block: usize, unit: Option<usize>, attention: bool, rest: &'a str },
}

fn place(path: &str) -> Option<Place<'_>> {
    let (first, after) = path.split_once('.').unwrap_or((path, ""));
    // number, `resnets` or the like, number, the rest
    let unit = |text| -> Option<(Option<usize>, bool, &str)> {
        let mut parts = str::splitn(text, 3, '.');
        let (kind, number) = (parts.next()?, parts.next()?.parse().ok()?);
        let unit = if kind.ends_with("samplers") { None } else { Some(number) };
        Some((unit, kind == "attentions", parts.next().unwrap_or("")))
    };
    Some(match first {
        "conv_in" => Place::Input,
        "conv_norm_out" | "conv_out" => Place::Output,
        "time_embedding" => Place::Time,
        "mid_block" => {
            let (number, attention, rest) = unit(after)?;
            Place::Mid { unit: number?, attention, rest }
        }
        "down_blocks" | "up_blocks" => {
            let (number, after) = after.split_once('.')?;
            let (block, (unit, attention, rest)) = (number.parse().ok()?, unit(after)?);
            match first {
                "down_blocks" => Place::Down { level: block, unit, attention, rest },
                _ => Place::Up { block, unit, attention, rest },
            }
        }
        _ => return None,
    })
}

/// A unit's residual block is number 0, its attention number 1.
fn inner(attention: bool, rest: &str) -> String {
    if attention { format!("1.{rest}") } else { format!("0.{}", resnet(rest)) }
}

fn resnet(layer: &str) -> &str {
    match layer {
        "norm1" => "in_layers.0",
        "conv1" => "in_layers.2",
        "time_emb_proj" => "emb_layers.1",
        "norm2" => "out_layers.0",
        "conv2" => "out_layers.3",
        "conv_shortcut" => "skip_connection",
        other => other,
    }
}
