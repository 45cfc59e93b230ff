//! `strata generate`

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
use indicatif::{ProgressBar, ProgressStyle};
use strata_engine::{DType, Gpu};
use strata_kernels::cast;
use strata_model::{
    Clip, ClipTokenizer, Gates, Image, LoraFile, LoraSet, ModelIndex, NoiseSchedule, Pipeline, Prompts,
    Sampling, SchedulerConfig, Unet, Vae, write_atomic,
};
use strata_trainer::noise::{self, Stream};

use super::{Dtype, GpuArgs, note};

/// Draw pictures from text with DDIM
///
/// Equal arguments give equal pictures. The picture of seed S is the same alone and as one of several.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  strata generate sd15 --prompt 'a photo of a cat'
  strata generate sd15 --prompt 'a photo of sks cat' --lora lora.safetensors:0.8 --seed 7 --out cat.png
  strata generate sd15 --prompt 'a cat' --negative blurry --count 4      (strata-1.png to strata-4.png, seeds 0 to 3)")]
pub struct Generate {
    /// Folder of a Stable Diffusion model in diffusers layout
    model: PathBuf,
    /// What the picture should show
    #[arg(long)]
    prompt: String,
    /// What it should not
    #[arg(long, default_value = "")]
    negative: String,
    /// A LoRA and how strong it is; may be given several times
    #[arg(long, value_name = "FILE[:WEIGHT]")]
    lora: Vec<String>,
    /// Times that the model is run
    #[arg(long, default_value_t = 25)]
    steps: usize,
    /// How far to go from the negative prompt towards the prompt; 1 = plain prompt
    #[arg(long, default_value_t = 7.5)]
    guidance: f32,
    /// The picture's noise comes from this number; later pictures of --count have the numbers after it
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Pixels in a row [default: what the model was trained on]
    #[arg(long)]
    width: Option<usize>,
    /// Rows [default: what the model was trained on]
    #[arg(long)]
    height: Option<usize>,
    /// Take the text from this layer of CLIP, counted from the last: 1 = the last, 2 = "clip skip 2"
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    clip_skip: u16,
    /// How many pictures
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    count: u16,
    /// Number format of weights and activations [default: f16, or f32 where the GPU adapter has no f16]
    #[arg(long, value_enum)]
    dtype: Option<Dtype>,
    /// The file to write, a PNG; with --count, -1, -2, … is put before its extension
    #[arg(long, default_value = "strata.png")]
    out: PathBuf,
    #[command(flatten)]
    gpu: GpuArgs,
}

impl Generate {
    pub fn run(&self, out: &mut impl Write) -> Result<()> {
        self.check_out()?;
        ensure!(
            self.guidance.is_finite() && self.guidance >= 0.0,
            "--guidance {}: choose a number of at least 0, such as 7.5",
            self.guidance
        );
        let files = self.lora.iter().map(|arg| LoraArg::parse(arg)).collect::<Result<Vec<_>>>()?;
        let gpu = self.gpu.open()?;
        let dtype = match self.dtype {
            Some(dtype) => dtype.on(&gpu)?,
            None if gpu.caps().f16 => DType::F16,
            None => DType::F32,
        };
        let mut pipeline = open(&gpu, &self.model, dtype)?;
        let mut weights = Vec::new();
        for LoraArg { path, file, weight } in &files {
            let set = LoraSet::from_file(&gpu, dtype, file, &pipeline.unet)
                .with_context(|| path.display().to_string())?;
            pipeline.unet.attach(&set).with_context(|| path.display().to_string())?;
            weights.push(*weight);
        }
        let gates = Gates::scalars(&weights);
        let shape = self.latent_shape(&pipeline)?;
        let skip = usize::from(self.clip_skip - 1);
        let encode = |text: &str| {
            if pipeline.tokenizer.ids(text)?.len() + 2 > pipeline.tokenizer.max_length() {
                note("a prompt is longer than CLIP's 75 tokens; what is over is left out");
            }
            anyhow::Ok(cast(&pipeline.encode(&[text], skip)?, dtype)?)
        };
        let prompts = Prompts { wanted: encode(&self.prompt)?, unwanted: encode(&self.negative)? };
        let sampling = Sampling { steps: self.steps, guidance: self.guidance };
        let progress = bar(self.steps * usize::from(self.count));
        for i in 0..self.count {
            let seed = self.seed.wrapping_add(i.into());
            let mut start = vec![0.0; shape.iter().product()];
            noise::normal(seed, Stream::Picture, 0, 0, &mut start);
            let latents = pipeline.sample(&prompts, &start, shape, &gates, &sampling, |_| progress.inc(1))?;
            for picture in pipeline.decode(&latents)? {
                let path = self.path_of(i);
                write_png(&path, &picture)?;
                progress.suspend(|| writeln!(out, "wrote {} (seed {seed})", path.display()))?;
            }
        }
        progress.finish_and_clear();
        Ok(())
    }

    /// Finds out before the work whether the picture will have a place.
    fn check_out(&self) -> Result<()> {
        let out = self.out.display();
        ensure!(self.out.extension().is_some_and(|e| e == "png"), "--out {out}: name a .png file");
        ensure!(!self.out.is_dir(), "--out {out}: is a folder; name a .png file");
        let folder = self.out.parent().filter(|folder| *folder != Path::new(""));
        ensure!(folder.is_none_or(Path::is_dir), "--out {out}: there is no such folder; make it first");
        Ok(())
    }

    /// Batch, height, width and channels of the latents of one picture.
    fn latent_shape(&self, pipeline: &Pipeline) -> Result<[usize; 4]> {
        let (unet, scale) = (pipeline.unet.config(), pipeline.vae.config().downscale());
        let side = |name: &str, pixels: Option<usize>| match pixels {
            None => Ok(unet.sample_size),
            Some(pixels) if pixels > 0 && pixels.is_multiple_of(scale) => Ok(pixels / scale),
            Some(pixels) => {
                let lower = (pixels - pixels % scale).max(scale);
                bail!("--{name} {pixels}: must be a multiple of {scale}; try {lower} or {}", lower + scale)
            }
        };
        Ok([1, side("height", self.height)?, side("width", self.width)?, unet.in_channels])
    }

    fn path_of(&self, i: u16) -> PathBuf {
        if self.count == 1 {
            return self.out.clone();
        }
        let name = self.out.file_stem().unwrap_or_default().to_string_lossy();
        self.out.with_file_name(format!("{name}-{}.png", i + 1))
    }
}

/// `FILE[:WEIGHT]`, read.
struct LoraArg {
    path: PathBuf,
    file: LoraFile,
    weight: f32,
}

impl LoraArg {
    fn parse(arg: &str) -> Result<Self> {
        let (path, weight) = if Path::new(arg).exists() { (arg, 1.0) } else { split_weight(arg) };
        ensure!(weight.is_finite(), "--lora {arg}: the weight must be a number, such as 0.8");
        Ok(Self { path: path.into(), file: LoraFile::read(Path::new(path))?, weight })
    }
}

/// A path and the number after its last colon, if there is one: a path may have colons of its own.
fn split_weight(arg: &str) -> (&str, f32) {
    let split = arg.rsplit_once(':').and_then(|(path, weight)| Some((path, weight.parse().ok()?)));
    split.unwrap_or((arg, 1.0))
}

/// The pipeline with its U-Net in `dtype`. CLIP and VAE run in f32: they run once, and some VAEs overflow f16.
fn open(gpu: &Gpu, root: &Path, dtype: DType) -> Result<Pipeline> {
    ModelIndex::open(root)?;
    let scheduler = SchedulerConfig::open(&root.join("scheduler").join("scheduler_config.json"))?;
    Ok(Pipeline {
        tokenizer: ClipTokenizer::open(&root.join("tokenizer"))?,
        clip: Clip::open(gpu, &root.join("text_encoder"), DType::F32)?,
        unet: Unet::open(gpu, &root.join("unet"), dtype)?,
        vae: Vae::open(gpu, &root.join("vae"), DType::F32)?,
        schedule: NoiseSchedule::new(&scheduler)?,
        scheduler,
    })
}

fn write_png(path: &Path, picture: &Image) -> Result<()> {
    let (width, height) = (picture.width as u32, picture.height as u32);
    let mut png = Vec::new();
    PngEncoder::new(&mut png)
        .write_image(&picture.rgb, width, height, ExtendedColorType::Rgb8)
        .with_context(|| format!("cannot encode {}", path.display()))?;
    Ok(write_atomic(path, |out| out.write_all(&png))?)
}

/// A progress bar on stderr, invisible where that is no terminal.
fn bar(steps: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} {per_sec} {eta} left");
    ProgressBar::new(steps as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

#[cfg(test)]
mod tests {
    use super::split_weight;

    #[test]
    fn weights_after_a_colon() {
        assert_eq!(split_weight("a.safetensors:0.8"), ("a.safetensors", 0.8));
        assert_eq!(split_weight("a.safetensors:-1"), ("a.safetensors", -1.0));
        assert_eq!(split_weight(r"C:\a.safetensors"), (r"C:\a.safetensors", 1.0));
        assert_eq!(split_weight("a.safetensors"), ("a.safetensors", 1.0));
    }
}
