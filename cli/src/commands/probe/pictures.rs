//! Pictures of equal noise: without the LoRA and with it, by prompts with its tag and without.

use anyhow::Result;
use image::RgbImage;
use strata_engine::DType;
use strata_model::{Feature, GateMode, Pipeline, Sampling, Scene, Wording};
use strata_trainer::probe::{Grid, GridRow, GroupKind, Script};

/// What is drawn with, and how.
pub struct Drawing<'a> {
    pub pipeline: &'a Pipeline,
    pub dtype: DType,
    /// Whose LoRAs are attached to the pipeline.
    pub script: &'a Script,
    pub pairs: usize,
    pub steps: usize,
    pub seed: u64,
    /// Height and width of latents.
    pub size: [usize; 2],
}

/// Pictures of a pair of prompts.
pub const PER_PAIR: usize = 2 * COLUMNS.len();

/// What stands above a column, whether the LoRA is there, and when it is on.
const COLUMNS: [(&str, bool, GateMode); 3] = [
    ("base model", false, GateMode::Always),
    ("LoRA, always on", true, GateMode::Always),
    ("LoRA, on by its tag", true, GateMode::Prompt),
];

impl Drawing<'_> {
    /// The grid of a feature. `tick` is called after each step.
    pub fn grid(&self, feature: usize, tick: &mut dyn FnMut()) -> Result<Grid> {
        let mut rows = Vec::new();
        for (pair, prompts) in self.pairs(feature).into_iter().enumerate() {
            for prompt in prompts {
                let seed = self.seed.wrapping_add(pair as u64);
                let draw = |(_, there, mode)| {
                    self.picture(&prompt, seed, &self.features(feature, there, mode), tick)
                };
                let pictures = COLUMNS.into_iter().map(draw).collect::<Result<_>>()?;
                rows.push(GridRow { prompt, pictures });
            }
        }
        Ok(Grid { columns: COLUMNS.map(|(name, ..)| name.to_owned()).into(), rows })
    }

    /// Prompts with the tag, each beside one without: of the class where there is one, else an ordinary one.
    fn pairs(&self, feature: usize) -> Vec<[String; 2]> {
        let groups = self.script.groups(feature);
        let of = |kind| groups.iter().find(|group| group.kind == kind);
        let with = of(GroupKind::OwnTag).unwrap_or(&groups[0]);
        let without = of(GroupKind::Class).or(of(GroupKind::Ordinary)).unwrap_or(&groups[groups.len() - 1]);
        let text = |prompts: &[usize], i: usize| self.script.texts()[prompts[i % prompts.len()]].text.clone();
        (0..self.pairs).map(|i| [text(&with.prompts, i), text(&without.prompts, i)]).collect()
    }

    /// All LoRAs off but for that of one feature, if it is `there`.
    fn features(&self, number: usize, there: bool, mode: GateMode) -> Vec<Feature> {
        let off =
            Feature { tags: Vec::new(), mode: GateMode::Always, weight: 0.0, region: None, uncond: false };
        let mut features = vec![off; self.script.features().len()];
        if there {
            let spec = &self.script.features()[number];
            (features[number].tags, features[number].mode) = (spec.tags.clone(), mode);
            features[number].weight = spec.weight;
        }
        features
    }

    fn picture(
        &self,
        prompt: &str,
        seed: u64,
        features: &[Feature],
        tick: &mut dyn FnMut(),
    ) -> Result<RgbImage> {
        let sampling = Sampling { steps: self.steps, ..Sampling::default() };
        let wording = Wording::read(self.pipeline.text.tokenizer(), &[prompt], &[""], features)?;
        let scene = Scene::new(self.pipeline, &wording, features, &sampling, self.dtype, self.size, 0)?;
        let mut pictures = self.pipeline.decode(&scene.draw(self.pipeline, &[seed], None, tick)?)?;
        Ok(pictures.remove(0))
    }
}
