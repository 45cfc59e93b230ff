//! `strata probe`

mod dump;
mod loras;
mod pictures;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use strata_engine::{DType, Gpu};
use strata_model::progress::bar;
use strata_model::{GateMode, LoraSet, Pipeline, Tag, check_folder, keys_of, make_folder};
use strata_trainer::Resolution;
use strata_trainer::probe::{
    Draws, FeatureReport, Part, Probe as Prober, ProbeFeature, Report, Script, latents_of, parts,
};

use super::generate::open;
use super::model::ModelArgs;
use super::{GpuArgs, MAX_SAMPLING_STEPS, MAX_SIDE, check_file, number_format, seed, supported};
use loras::Loras;
use pictures::Drawing;

const GATES: [GateMode; 3] = [GateMode::Always, GateMode::Prompt, GateMode::Token { after: false }];

/// Measure how far LoRAs move what a model predicts, with their tags and without
///
/// Drift is the mean of ‖ε_LoRA − ε_base‖² / ‖ε_base‖² over fixed noise, timesteps and prompts: with the feature's own tag,
/// other features' tags, a class word, ordinary prompts and the empty one. Leak is the drift without the tag, divided by
/// the drift with it: 0 is silence, 1 is a LoRA that does not listen to its tag. Works for any LoRA that `strata generate`
/// takes. Each way of gating is measured: always on, as other programs have it; by prompt; by token.
///
/// Kept says what a picture with the tag leaves of the base model's picture of the same noise without it: 1 is all but the feature,
/// 0 as little as a picture of other noise. The quarter of the pixels that change most is taken for the feature's own place.
#[derive(clap::Args)]
#[command(after_help = "\
Each --lora is followed by its own --tag and --class, or has them after commas: tag=WORD, class=WORD. A file whose
metadata names its tags needs no tag. Other options that `strata generate` takes after commas have no meaning here.

Lines of --prompts with {} are prompts with a place for tags and class words; others that have a LoRA's tag are such
prompts of that LoRA; all others are ordinary prompts. Empty lines, and those that begin with #, do not count.

Examples:
  strata probe sd15 --lora hair.safetensors --tag hair_style_a --class hair
  strata probe sd15 --lora hair.safetensors,tag=hair_style_a,class=hair
  strata probe sd15 --lora hair.safetensors:0.8 --tag hair_a --lora coat.safetensors --tag coat_b --out report
  strata probe sd15 --lora mine.safetensors --prompts prompts.txt --pictures-from photos --samples 8 --json")]
pub struct Probe {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    loras: Loras,
    /// Leave unused what of a LoRA file cannot be applied, such as its modules of the text encoder, and say so
    #[arg(long)]
    allow_unused: bool,
    /// Prompts to try, one per line (see below) [default: built-in ones]
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Add noise to the pictures of this folder [default: to standard normal numbers]
    #[arg(long, value_name = "FOLDER")]
    pictures_from: Option<PathBuf>,
    /// Draws of noise and timestep in each of four bands of timesteps
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1000))]
    samples: u16,
    /// All chance comes from this number
    #[arg(long, default_value_t = 0, value_parser = seed)]
    seed: u64,
    /// Pixels of a side [default: what the model was trained on]
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(1..=MAX_SIDE))]
    size: Option<u32>,
    /// Draws that go through the model at once
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    batch: u16,
    /// Do not measure each block alone, which takes a run for each
    #[arg(long)]
    no_blocks: bool,
    /// Number format of weights and activations
    #[arg(long, value_parser = number_format(), default_value = "f32")]
    dtype: DType,
    /// Write report.html, probe.json, heat maps and pictures to this folder
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Pairs of prompts, with the tag and without, to draw: the report shows them, and `kept` is measured on them
    /// [default: 2 with --out, else 0]
    #[arg(long, value_name = "PAIRS", value_parser = clap::value_parser!(u16).range(..=100))]
    pictures: Option<u16>,
    /// Times that the model is run for a picture
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=MAX_SAMPLING_STEPS))]
    steps: u32,
    /// Write latents, timesteps and text states as safetensors, for comparisons with other programs
    #[arg(long, value_name = "FILE")]
    dump: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    gpu: GpuArgs,
}

impl Probe {
    pub fn run(&self, out: &mut impl Write) -> Result<()> {
        self.run_on(|| self.gpu.open(), out)
    }

    /// Runs on the GPU adapter that `gpu` gives.
    pub fn run_on(&self, gpu: impl FnOnce() -> Result<Gpu>, out: &mut impl Write) -> Result<()> {
        let loras = self.loras.open(self.allow_unused)?;
        let lines = self.prompts.as_deref().map(lines).transpose()?.unwrap_or_default();
        self.check_paths()?;
        let gpu = gpu()?;
        let dtype = supported(self.dtype, &gpu)?;
        let mut checkpoint = self.model.open()?;
        checkpoint
            .add_embeddings(loras.iter().flat_map(|(_, lora)| lora.file.embeddings.values().cloned()))?;
        let mut pipeline = open(&gpu, &checkpoint, dtype)?;
        let [h, w, channels] = self.latent_shape(&pipeline)?;
        let mut features = Vec::new();
        for (name, lora) in &loras {
            let context = || lora.path.display().to_string();
            let set = LoraSet::from_weights(&gpu, dtype, &lora.file, &pipeline.unet).with_context(context)?;
            pipeline.unet.attach(&set).with_context(context)?;
            let keys = keys_of(&lora.file.metadata).with_context(context)?;
            let tags = Tag::all(pipeline.text.tokenizer(), &lora.tags, &keys).with_context(context)?;
            let name = name.clone();
            features.push(ProbeFeature { name, tags, class: lora.class.clone(), weight: lora.weight });
        }
        let states = |prompt: &_| Ok(pipeline.text.encode(std::slice::from_ref(prompt), 0)?.states);
        let script = Script::new(pipeline.text.tokenizer(), features, &lines, states)?;
        let latents = self.latents(&gpu, &pipeline, [h, w])?;
        let samples = usize::from(self.samples);
        let draws = Draws::new(&pipeline.schedule, [h, w, channels], self.seed, samples, &latents)?;
        let layers = pipeline.unet.layers();
        let parts: Vec<Vec<Part>> = loras
            .iter()
            .map(|(_, lora)| if self.no_blocks { vec![] } else { parts(&lora.file, layers) })
            .collect();

        let progress = bar(self.passes(&script, &draws, &parts) as u64, "passes");
        let tick = &mut || progress.inc(1);
        let probe = Prober::new(&gpu, &pipeline.unet, dtype, script, draws, self.batch.into(), tick)?;
        let drawing = Drawing {
            pipeline: &pipeline,
            dtype,
            script: probe.script(),
            pairs: self.pairs(),
            steps: self.steps as usize,
            seed: self.seed,
            size: [h, w],
        };
        let mut reports = Vec::new();
        for (i, (name, lora)) in loras.iter().enumerate() {
            let gates = GATES.iter().map(|mode| probe.run(&pipeline.unet, i, *mode, tick));
            let gates = gates.collect::<Result<_, _>>()?;
            let (pictures, kept) = (self.pairs() > 0).then(|| drawing.grid(i, tick)).transpose()?.unzip();
            reports.push(FeatureReport {
                name: name.clone(),
                file: lora.path.display().to_string(),
                weight: lora.weight,
                tags: lora.tags.clone(),
                class: lora.class.clone(),
                gates,
                blocks: Vec::new(),
                kept: kept.unwrap_or_default(),
                pictures,
            });
        }
        for (i, report) in reports.iter_mut().enumerate() {
            report.blocks = probe.blocks(&mut pipeline.unet, i, &parts[i], tick)?;
        }
        progress.finish_and_clear();

        let folder = self.pictures_from.as_ref().map(|folder| folder.display().to_string());
        let report =
            Report::new(&probe, self.model.model.display().to_string(), dtype, self.seed, folder, reports);
        if let Some(file) = &self.dump {
            dump::write(&probe, file)?;
        }
        let mut files = Vec::new();
        if let Some(folder) = &self.out {
            make_folder(folder)?;
            files = report.write(folder)?;
        }
        if self.json {
            writeln!(out, "{}", report.to_json()?)?;
            return Ok(());
        }
        write!(out, "{}", report.to_text())?;
        for file in files.iter().chain(&self.dump) {
            writeln!(out, "wrote {}", file.display())?;
        }
        Ok(())
    }

    /// Finds out before the work whether folders are there, or can be made, and files written.
    fn check_paths(&self) -> Result<()> {
        if let Some(folder) = &self.out {
            check_folder(folder).context("--out")?;
        }
        if let Some(file) = &self.dump {
            check_file("--dump", file)?;
        }
        if let Some(folder) = &self.pictures_from {
            ensure!(folder.is_dir(), "--pictures-from {}: there is no such folder", folder.display());
        }
        Ok(())
    }

    fn latent_shape(&self, pipeline: &Pipeline) -> Result<[usize; 3]> {
        let (unet, scale) = (pipeline.unet.config(), pipeline.vae.config().downscale());
        let side = match self.size.map(|pixels| pixels as usize) {
            None => unet.sample_size,
            Some(pixels) if pixels.is_multiple_of(scale) => pixels / scale,
            Some(pixels) => bail!("--size {pixels}: must be a multiple of {scale}"),
        };
        Ok([side, side, unet.in_channels])
    }

    /// Clean latents of the pictures, if there are any; no more than there are draws.
    fn latents(&self, gpu: &Gpu, pipeline: &Pipeline, [h, w]: [usize; 2]) -> Result<Vec<Vec<f32>>> {
        let Some(folder) = &self.pictures_from else { return Ok(Vec::new()) };
        let scale = pipeline.vae.config().downscale();
        let size = Resolution { width: (w * scale) as u32, height: (h * scale) as u32 };
        latents_of(gpu, &pipeline.vae, folder, size, 4 * usize::from(self.samples))
            .with_context(|| format!("--pictures-from {}", folder.display()))
    }

    /// Pairs of prompts to draw.
    fn pairs(&self) -> usize {
        self.pictures.unwrap_or(if self.out.is_some() { 2 } else { 0 }).into()
    }

    /// How often the progress bar moves.
    fn passes(&self, script: &Script, draws: &Draws, parts: &[Vec<Part>]) -> usize {
        let batches = draws.draws().len().div_ceil(self.batch.into());
        let of = |(i, parts): (usize, &Vec<Part>)| (GATES.len() + parts.len()) * script.prompts_of(i).len();
        let drawn = parts.len() * self.pairs() * pictures::PER_PAIR * self.steps as usize;
        batches * (script.texts().len() + parts.iter().enumerate().map(of).sum::<usize>()) + drawn
    }
}

/// The lines of a file of prompts that count.
fn lines(path: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("--prompts {}: cannot be read as UTF-8 text", path.display()))?;
    let lines = text.trim_start_matches('\u{feff}').lines().map(str::trim);
    let lines: Vec<String> =
        lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect();
    ensure!(!lines.is_empty(), "--prompts {}: holds no prompt", path.display());
    Ok(lines)
}
