//! What a probe found, and how it is written: JSON, text, a page, and pictures.

use std::path::{Path, PathBuf};

use image::RgbImage;
use serde::Serialize;
use strata_engine::DType;
use strata_model::write_atomic;

use super::table::{self, short, tables};
use super::{Kept, Matrix, Probe, heat};
use crate::inspection::sheet::Sheet;
use crate::{Error, Result};

/// Characters in a line of text.
const WIDTH: usize = 100;
/// Pixels between pictures.
const GAP: u32 = 4;

/// All that a probe found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Version of Strata.
    pub strata_version: &'static str,
    /// The base model.
    pub model: String,
    /// Number format of weights and activations.
    pub dtype: &'static str,
    /// What all chance came from.
    pub seed: u64,
    /// Draws in each band.
    pub samples: usize,
    /// First timestep of each band, and the first one after it.
    pub bands: Vec<[usize; 2]>,
    /// t of each draw, band after band.
    pub timesteps: Vec<usize>,
    /// What noise was added to.
    pub latents: Latents,
    /// The prompts, in the order that groups count them.
    pub prompts: Vec<PromptSummary>,
    /// The features.
    pub features: Vec<FeatureReport>,
}

/// What noise was added to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Latents {
    /// `normal` numbers, or the `pictures` of a folder.
    pub source: &'static str,
    /// The folder.
    pub folder: Option<String>,
    /// Height, width and channels.
    pub shape: [usize; 3],
}

/// A prompt, and the tags in it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PromptSummary {
    /// As it is written.
    pub text: String,
    /// Tokens, over all chunks.
    pub tokens: usize,
    /// The tags of all features.
    pub mentions: Vec<MentionSummary>,
}

/// A tag in a prompt.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MentionSummary {
    /// The feature's place.
    pub feature: usize,
    /// The tag.
    pub tag: String,
    /// Its first token, and the first one after it.
    pub tokens: [usize; 2],
    /// Its weight in the prompt.
    pub weight: f32,
}

/// What was found about one feature.
#[derive(Debug, Clone, Serialize)]
pub struct FeatureReport {
    /// Its name.
    pub name: String,
    /// The LoRA's file.
    pub file: String,
    /// What the LoRA was multiplied by.
    pub weight: f32,
    /// The words that it should answer to.
    pub tags: Vec<String>,
    /// What it is a special case of.
    pub class: Option<String>,
    /// Drift and leak for each way of gating.
    pub gates: Vec<Matrix>,
    /// Each block alone; empty where that was not asked for.
    pub blocks: Vec<Block>,
    /// What pictures with its tag keep, for some ways of gating; empty where none were drawn.
    pub kept: Vec<Kept>,
    /// What it looks like.
    #[serde(skip)]
    pub pictures: Option<Grid>,
}

/// What the LoRA of one block does alone.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Block {
    /// The block.
    pub block: String,
    /// Its layers that have a LoRA.
    pub layers: usize,
    /// Numbers in these.
    pub parameters: usize,
    /// Its drift with the tag, divided by the sum of all blocks'; 0 where none has any.
    pub share: f64,
    /// Drift and leak, always on.
    pub alone: Matrix,
}

/// Pictures of equal noise, prompts down the side and ways of drawing along the top.
#[derive(Debug, Clone)]
pub struct Grid {
    /// How each column was drawn.
    pub columns: Vec<String>,
    /// The rows; all pictures are of one size.
    pub rows: Vec<GridRow>,
}

/// Pictures of one prompt.
#[derive(Debug, Clone)]
pub struct GridRow {
    /// The prompt.
    pub prompt: String,
    /// One for each column.
    pub pictures: Vec<RgbImage>,
}

impl Report {
    /// Puts together what a probe found about its features, which come in its order.
    pub fn new(
        probe: &Probe,
        model: String,
        dtype: DType,
        seed: u64,
        folder: Option<String>,
        features: Vec<FeatureReport>,
    ) -> Self {
        let draws = probe.draws();
        let prompts = probe.script().texts().iter().map(|text| PromptSummary {
            text: text.text.clone(),
            tokens: text.prompt.ids().len(),
            mentions: text
                .prompt
                .mentions()
                .iter()
                .map(|mention| MentionSummary {
                    feature: mention.feature,
                    tag: mention.tag.clone(),
                    tokens: [mention.tokens.start, mention.tokens.end],
                    weight: mention.weight,
                })
                .collect(),
        });
        Self {
            strata_version: env!("CARGO_PKG_VERSION"),
            model,
            dtype: dtype.wgsl(),
            seed,
            samples: draws.samples(),
            bands: draws.bands().iter().map(|band| [band.start, band.end]).collect(),
            timesteps: draws.draws().iter().map(|draw| draw.timestep).collect(),
            latents: Latents {
                source: if folder.is_some() { "pictures" } else { "normal" },
                folder,
                shape: draws.shape(),
            },
            prompts: prompts.collect(),
            features,
        }
    }

    /// As JSON.
    ///
    /// # Errors
    /// A name or a path cannot be written as JSON.
    pub fn to_json(&self) -> Result<String> {
        let json = serde_json::to_string_pretty(self);
        json.map_err(|e| Error::Probe(format!("the report cannot be written as JSON: {e}")))
    }

    /// As tables, in lines of at most 100 characters.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for feature in &self.features {
            let file = Path::new(&feature.file).file_name().unwrap_or_default().display();
            let tags = feature.tags.join(", ");
            let title = format!("{}: {tags} ({file}, weight {})", feature.name, feature.weight);
            text += &format!("{}\n", short(&title, WIDTH));
            for table in tables(feature, &self.bands) {
                text += &format!("\n{}", table.to_text());
            }
            text.push('\n');
        }
        text + &table::overview(self).to_text()
    }

    /// Writes `report.html`, `probe.json`, a heat map for each table and a picture of each grid. Returns the files.
    ///
    /// # Errors
    /// The folder is missing or cannot be written.
    pub fn write(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        let mut files = vec![
            ("report.html".to_owned(), self.to_html()?.into_bytes()),
            ("probe.json".to_owned(), self.to_json()?.into_bytes()),
            ("overview.png".to_owned(), heat::png(&table::overview(self))?),
        ];
        for (i, feature) in self.features.iter().enumerate() {
            let plain = |c: char| if c.is_alphanumeric() || "-_".contains(c) { c } else { '_' };
            let name: String = feature.name.chars().take(60).map(plain).collect();
            let file = |what: &str| format!("{}-{name}-{what}.png", i + 1);
            for table in tables(feature, &self.bands) {
                files.push((file(table.slug), heat::png(&table)?));
            }
            if let Some(grid) = &feature.pictures {
                files.push((file("pictures"), grid.to_sheet()?.to_png()?));
            }
        }
        let write = |(name, bytes): (String, Vec<u8>)| {
            let path = folder.join(name);
            write_atomic(&path, |out| out.write_all(&bytes))?;
            Ok(path)
        };
        files.into_iter().map(write).collect()
    }
}

impl Grid {
    /// All pictures in one.
    fn to_sheet(&self) -> Result<Sheet> {
        let first = self.rows.iter().find_map(|row| row.pictures.first());
        let (width, height) = first.map_or((0, 0), image::ImageBuffer::dimensions);
        let side = |count: usize, size: u32| count as u32 * (size + GAP);
        let mut sheet = Sheet::new(side(self.columns.len(), width), side(self.rows.len(), height));
        for (j, row) in self.rows.iter().enumerate() {
            for (i, picture) in row.pictures.iter().enumerate() {
                sheet.place(picture, [side(i, width), side(j, height)]);
            }
        }
        Ok(sheet)
    }
}
