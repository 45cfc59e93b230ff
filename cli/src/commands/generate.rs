//! `strata generate`

mod calls;
mod embedding;
mod lora;
mod parameters;
mod remarks;
mod sampling;

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use image::RgbImage;
use image::imageops::FilterType;
use strata_engine::{DType, Gpu};
use strata_model::progress::{bar, waiting};
use strata_model::{Checkpoint, LoraSet, Pipeline, Scene, Wording, png_with_text, write_atomic};

use embedding::EmbeddingArg;
use remarks::remarks;
use sampling::SamplingArgs;

use super::lora::{Lora, LoraArg};
use super::model::ModelArgs;
use super::picture::open_picture;
use super::{GpuArgs, MAX_SIDE, check_file, note, number_format, seed, supported};

/// Draw pictures from text
///
/// Equal arguments give equal pictures. The picture of seed S is the same alone and as one of several.
///
/// Prompts may be of any length, and have weights as A1111 writes them: (text:1.2), (text) for × 1.1, [text] for ÷ 1.1,
/// and \( for a bracket that means itself. The weight of a LoRA's tag is that of the LoRA. BREAK begins a new chunk of 75 tokens.
///
/// The files say how they were made, as A1111 reads it.
#[derive(clap::Args)]
#[command(after_help = "\
Options of a LoRA, after commas:
  gate=always    on in every picture, in the negative prompt's half too, as in other programs; the default without tags
  gate=prompt    on if the prompt has one of its tags, else the picture is the base model's, bit for bit; the default with tags
  gate=token     as prompt, but keys and values of cross-attention only at the tokens of the tag
  after          with gate=token: also at the tokens after the tag
  tag=WORD       a tag to wait for, in place of those that the file names; may be repeated
  uncond         on in the negative prompt's half too
  lbw=WEIGHTS    weights of the text encoder and of blocks, as LBW numbers them: 17 or 26, such as lbw=1,0,0,0,1,1,1,…, or INS, IND,
                 INALL, MIDD, OUTD, OUTS, OUTALL
  region=LEFT:TOP:RIGHT:BOTTOM   keep it to a part of the picture, in shares from 0 to 1
  region=MASK                    the same by a picture: opaque inside where its alpha channel varies, else white inside

Examples:
  strata generate sd15 --prompt 'a photo of a cat'
  strata generate sd15 --prompt 'a photo of sks cat' --lora lora.safetensors:0.8 --seed 7 --out cat.png
  strata generate sd15 --prompt 'a photo of a cat' --sampler dpmpp_2m --sigmas karras
  strata generate sd15 --prompt 'portrait, (hair_style_a:1.2)' --lora hair.safetensors:0.8,gate=token,tag=hair_style_a
  strata generate sd15 --prompt 'portrait, hair_style_a, coat_b' --lora hair.safetensors,tag=hair_style_a \\
      --lora coat.safetensors,tag=coat_b --together place
  strata generate sd15 --prompt 'two people' --lora a.safetensors,region=0:0:0.5:1 --lora b.safetensors,region=0.5:0:1:1
  strata generate sd15 --prompt 'a photo of a <cat-toy>' --negative easynegative --embedding learned_embeds.safetensors \\
      --embedding easynegative.safetensors
  strata generate sd15 --prompt 'a photo of a cat <lora:ink:0.7>' --lora-dir loras
  strata generate sd15 --prompt 'an oil painting of a cat' --init photo.jpg --strength 0.6
  strata generate sd15 --prompt 'a cat' --negative blurry --count 4      (strata-1.png to strata-4.png, seeds 0 to 3)")]
pub struct Generate {
    #[command(flatten)]
    model: ModelArgs,
    /// What the picture should show
    #[arg(long)]
    prompt: String,
    /// What it should not
    #[arg(long, default_value = "")]
    negative: String,
    /// A LoRA, how strong it is, and when and where (see below); may be given several times
    #[arg(long, value_name = "FILE[:WEIGHT][,OPTION...]", value_parser = LoraArg::to_draw)]
    lora: Vec<LoraArg>,
    /// A folder with LoRAs that the prompt calls as in A1111: <lora:NAME:WEIGHT>, <lora:NAME:TEXT:UNET> with a weight for the text encoder,
    /// and <lora:NAME:1:lbw=WEIGHTS>. NAME is a file's without .safetensors
    #[arg(long, value_name = "FOLDER")]
    lora_dir: Option<PathBuf>,
    /// An embedding (textual inversion), whose vectors stand for its word in the prompts; may be given several times [default word:
    /// the one that the file names, else the file's name]
    #[arg(long, value_name = "FILE[=WORD]", value_parser = EmbeddingArg::parse)]
    embedding: Vec<EmbeddingArg>,
    /// Leave unused what of a LoRA file cannot be applied, such as its modules of a second text encoder, and say so
    #[arg(long)]
    allow_unused: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// A picture to begin with, cut to the shape that is drawn
    #[arg(long, value_name = "PICTURE")]
    init: Option<PathBuf>,
    /// How much of --init is made anew: the share of the steps that are taken, up to 1 [default: 0.6]
    #[arg(long, requires = "init", value_parser = strength)]
    strength: Option<f64>,
    /// The picture's noise comes from this number; later pictures of --count have the numbers after it
    #[arg(long, default_value_t = 0, value_parser = seed)]
    seed: u64,
    /// Pixels in a row [default: what the model was trained on]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=MAX_SIDE))]
    width: Option<u32>,
    /// Rows [default: what the model was trained on]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=MAX_SIDE))]
    height: Option<u32>,
    /// Take the text from this layer of CLIP, counted from the last: 1 = the last, 2 = "clip skip 2"
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    clip_skip: u16,
    /// How many pictures
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    count: u16,
    /// Number format of weights and activations [default: f16, or f32 where the GPU adapter has no f16]
    #[arg(long, value_parser = number_format())]
    dtype: Option<DType>,
    /// The file to write, a PNG; with --count, -1, -2, … is put before its extension
    #[arg(long, default_value = "strata.png")]
    out: PathBuf,
    #[command(flatten)]
    gpu: GpuArgs,
}

impl Generate {
    pub fn run(&self, out: &mut impl Write) -> Result<()> {
        self.check_out()?;
        let last = self.seed.checked_add(u64::from(self.count) - 1);
        ensure!(
            last.is_some(),
            "--seed {}: the largest seed is {}, which is before that of the last of {} pictures",
            self.seed,
            u64::MAX,
            self.count
        );
        let mut checkpoint = self.model.open()?;
        let layers = checkpoint.text_layers()?;
        ensure!(
            usize::from(self.clip_skip) <= layers,
            "--clip-skip {}: the text encoder of {} has {layers} layers; choose 1 to {layers}",
            self.clip_skip,
            checkpoint.path().display()
        );
        let (prompt, called) = match &self.lora_dir {
            Some(folder) => calls::read(&self.prompt, folder)?,
            None => (self.prompt.clone(), Vec::new()),
        };
        let prompts = [&prompt, &self.negative];
        prompts.iter().flat_map(|prompt| remarks(prompt)).for_each(|remark| note(&remark));
        let layers = checkpoint.layers()?;
        let weighed = |lora: &LoraArg| -> Result<Lora> {
            let mut lora = lora.open(self.allow_unused, true)?;
            lora.weigh(&layers).with_context(|| lora.path.display().to_string())?;
            Ok(lora)
        };
        let loras = self.lora.iter().chain(&called).map(weighed).collect::<Result<Vec<_>>>()?;
        let embeddings = self.embedding.iter().map(EmbeddingArg::open).collect::<Result<Vec<_>>>()?;
        let bundled = loras.iter().flat_map(|lora| lora.file.embeddings.values().cloned());
        checkpoint.add_embeddings(embeddings.iter().cloned().chain(bundled))?;
        let gpu = self.gpu.open()?;
        let dtype = match self.dtype {
            Some(dtype) => supported(dtype, &gpu)?,
            None if gpu.caps().f16 => DType::F16,
            None => DType::F32,
        };
        let mut pipeline = open(&gpu, &checkpoint, dtype)?;
        let size = self.latent_size(&pipeline)?;
        let mut sampling = self.sampling.sampling();
        let init = self.init.as_deref().map(|path| read_picture(path, size, &pipeline)).transpose()?;
        if init.is_some() {
            sampling.strength = self.strength();
        }
        let mut features = Vec::new();
        for lora in &loras {
            let context = || lora.path.display().to_string();
            let set = LoraSet::from_weights(&gpu, dtype, &lora.file, &pipeline.unet).with_context(context)?;
            pipeline.unet.attach(&set).with_context(context)?;
            if let Some(text) = &lora.text {
                pipeline.text.attach(text, features.len()).with_context(context)?;
            }
            features.push(lora.feature(pipeline.text.tokenizer()).with_context(context)?);
            lora.left_out(&set, sampling.together).iter().for_each(|text| note(text));
        }
        let sigmas = sampling.sigmas(&pipeline.scheduler);
        let calls = pipeline.plan(&sampling)?.calls().len() as u64;
        let wording = Wording::read(pipeline.text.tokenizer(), &[&prompt], &[&self.negative], &features)?;
        for (i, (lora, feature)) in loras.iter().zip(&features).enumerate() {
            note(&lora.state(i, feature, &wording.wanted[0]));
        }
        let words = embedding::notes(pipeline.text.tokenizer(), &prompt, &self.negative)?;
        words.iter().for_each(|text| note(text));
        let progress = bar(calls * u64::from(self.count), "steps");
        let skip = usize::from(self.clip_skip - 1);
        let scene = Scene::new(&pipeline, &wording, &features, &sampling, dtype, size, skip)?;
        for i in 0..self.count {
            let seed = self.seed + u64::from(i);
            let latents = scene.draw(&pipeline, &[seed], init.as_deref(), || progress.inc(1))?;
            for picture in pipeline.decode(&latents)? {
                let path = self.path_of(i);
                let [width, height] = [picture.width(), picture.height()];
                let parameters = self.parameters(&loras, &embeddings, sigmas, [width, height], seed)?;
                write_png(&path, &picture, &parameters)?;
                progress.suspend(|| writeln!(out, "wrote {} (seed {seed})", path.display()))?;
            }
        }
        progress.finish_and_clear();
        Ok(())
    }

    fn strength(&self) -> f64 {
        self.strength.unwrap_or(0.6)
    }

    /// Finds out before the work whether the picture will have a place.
    fn check_out(&self) -> Result<()> {
        let out = self.out.display();
        let png = self.out.extension().is_some_and(|e| e.eq_ignore_ascii_case("png"));
        ensure!(png, "--out {out}: name a .png file");
        ensure!(!self.out.is_dir(), "--out {out}: is a folder; name a .png file");
        check_file("--out", &self.path_of(0))
    }

    /// Height and width of latents.
    fn latent_size(&self, pipeline: &Pipeline) -> Result<[usize; 2]> {
        let (unet, scale) = (pipeline.unet.config(), pipeline.vae.config().downscale());
        let side = |name: &str, pixels: Option<u32>| match pixels.map(|pixels| pixels as usize) {
            None => Ok(unet.sample_size),
            Some(pixels) if pixels.is_multiple_of(scale) => Ok(pixels / scale),
            Some(pixels) => {
                let lower = (pixels - pixels % scale).max(scale);
                bail!("--{name} {pixels}: must be a multiple of {scale}; try {lower} or {}", lower + scale)
            }
        };
        Ok([side("height", self.height)?, side("width", self.width)?])
    }

    fn path_of(&self, i: u16) -> PathBuf {
        if self.count == 1 {
            return self.out.clone();
        }
        let [name, extension] = [self.out.file_stem(), self.out.extension()].map(Option::unwrap_or_default);
        let (name, extension) = (name.to_string_lossy(), extension.to_string_lossy());
        self.out.with_file_name(format!("{name}-{}.{extension}", i + 1))
    }
}

/// The pipeline with its U-Net in `dtype`. CLIP and VAE run in f32: they run once, and some VAEs overflow f16.
pub(super) fn open(gpu: &Gpu, checkpoint: &Checkpoint, dtype: DType) -> Result<Pipeline> {
    let _reading = waiting("reading the model");
    Ok(Pipeline::open(gpu, checkpoint, dtype, DType::F32)?)
}

/// The latent of a picture of any format, which is resized and cut about its middle to latents of this height and width.
fn read_picture(path: &Path, [h, w]: [usize; 2], pipeline: &Pipeline) -> Result<Vec<f32>> {
    let picture =
        open_picture(path).with_context(|| format!("--init {}: no readable picture", path.display()))?;
    let scale = pipeline.vae.config().downscale();
    let [width, height] = [w, h].map(|side| (side * scale) as u32);
    let fitted = picture.resize_to_fill(width, height, FilterType::Lanczos3);
    Ok(pipeline.encode(&fitted.to_rgb8())?)
}

fn strength(text: &str) -> Result<f64> {
    match text.parse::<f64>() {
        Ok(strength) if strength > 0.0 && strength <= 1.0 => Ok(strength),
        _ => bail!("choose a number of more than 0 (the picture itself), up to 1 (all new)"),
    }
}

fn write_png(path: &Path, picture: &RgbImage, parameters: &str) -> Result<()> {
    let png = png_with_text(picture, "parameters", parameters)
        .with_context(|| format!("cannot encode {}", path.display()))?;
    Ok(write_atomic(path, |out| out.write_all(&png))?)
}
