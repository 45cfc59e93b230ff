//! Pictures of equal noise: without the LoRA and with it, by prompts with its tag and without.

use anyhow::Result;
use image::RgbImage;
use strata_engine::DType;
use strata_model::{Feature, GateMode, Pipeline, Sampling, Scene, Wording};
use strata_trainer::probe::{Grid, GridRow, GroupKind, Kept, Script, Trio, gate_name};

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

/// Pictures of a pair of prompts: with each column, and the base model's of other noise.
pub const PER_PAIR: usize = 2 * COLUMNS.len() + 1;
/// Added to a seed for other noise.
const OTHER: u64 = 1 << 32;

/// What stands above a column, whether the LoRA is there, and when it is on.
const COLUMNS: [(&str, bool, GateMode); 3] = [
    ("base model", false, GateMode::Always),
    ("LoRA, always on", true, GateMode::Always),
    ("LoRA, on by its tag", true, GateMode::Prompt),
];

impl Drawing<'_> {
    /// The grid of a feature, and what its pictures keep. `tick` is called after each step.
    pub fn grid(&self, feature: usize, tick: &mut dyn FnMut()) -> Result<(Grid, Vec<Kept>)> {
        let (mut rows, mut trios) = (Vec::new(), [Vec::new(), Vec::new(), Vec::new()]);
        for (pair, prompts) in self.pairs(feature).into_iter().enumerate() {
            let seed = self.seed.wrapping_add(pair as u64);
            let draw = |prompt: &str, seed: u64, (_, there, mode), tick: &mut dyn FnMut()| {
                self.picture(prompt, seed, &self.features(feature, there, mode), tick)
            };
            let row = |prompt: &String, tick: &mut dyn FnMut()| -> Result<Vec<RgbImage>> {
                COLUMNS.into_iter().map(|column| draw(prompt, seed, column, tick)).collect()
            };
            let [with, without] = [row(&prompts[0], tick)?, row(&prompts[1], tick)?];
            let other = draw(&prompts[1], seed.wrapping_add(OTHER), COLUMNS[0], tick)?;
            for (trios, tagged) in trios.iter_mut().zip(&with) {
                let (base, tagged, other) = (without[0].clone(), tagged.clone(), other.clone());
                trios.push(Trio { base, tagged, other });
            }
            let pictures = [with, without];
            rows.extend(
                prompts.into_iter().zip(pictures).map(|(prompt, pictures)| GridRow { prompt, pictures }),
            );
        }
        let columns = COLUMNS.iter().zip(&trios).filter(|((_, there, _), _)| *there);
        let kept = columns.filter_map(|((.., mode), trios)| Kept::new(gate_name(*mode), trios)).collect();
        Ok((Grid { columns: COLUMNS.map(|(name, ..)| name.to_owned()).into(), rows }, kept))
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
