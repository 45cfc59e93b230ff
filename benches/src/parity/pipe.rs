//! From text to a picture.

use anyhow::{Context, Result, ensure};
use strata_model::{Pipeline, Prompts, Reading, Sampler, Sampling, Sigmas, Start, Takes};

use super::check::Checker;

/// The samplers of `pipe.*`, and how many layers of CLIP are skipped.
const CASES: [(&str, &str, Option<Sigmas>, usize); 4] = [
    ("pipe.ddim", "ddim", None, 0),
    ("pipe.ddim.clipskip2", "ddim", None, 1),
    ("pipe.euler", "euler", None, 0),
    ("pipe.dpmpp_2m_karras", "dpmpp_2m", Some(Sigmas::Karras), 0),
];

/// `pipe.*`: five steps with guidance 3 from given noise, and the picture of the first.
pub(crate) fn pipelines(c: &mut Checker) -> Result<()> {
    let pipeline = Pipeline::open(c.gpu, &c.checkpoint, c.dtype, c.dtype)?;
    let [wanted, _, _, unwanted] = &c.goldens.texts[..] else {
        anyhow::bail!("meta.json has {} prompts, not 4", c.goldens.texts.len());
    };
    let (noise, shape) = c.goldens.get("pipe.latents")?.nhwc()?;
    for (name, sampler, sigmas, skip) in CASES {
        let sampler = Sampler::named(sampler).with_context(|| format!("no sampler {sampler}"))?;
        let sampling = Sampling { sampler, sigmas, steps: 5, guidance: 3.0, ..Sampling::default() };
        let takes = Takes::plain(1, sampling.guided());
        // diffusers skips layers for the prompt alone, not for the negative one
        let encode = |text: &str, skip| {
            let prompts = pipeline.text.read(&[text], Reading::Literal, &[])?;
            pipeline.text.encode(&prompts, skip)
        };
        let (wanted, unwanted) = (encode(wanted, skip)?, encode(unwanted, 0)?);
        let prompts = Prompts { wanted, unwanted };
        let start = Start { noise: &noise, picture: None };
        // none of these adds noise
        let latents = pipeline.sample(&prompts, start, shape, &takes, &sampling, |_, _| (), |_| ())?;
        c.tensor(&format!("{name}.latents"), &latents, c.tolerances.pipeline)?;
        if name != "pipe.ddim" {
            continue;
        }
        let pictures = pipeline.decode(&latents)?;
        ensure!(pictures.len() == 1, "{} pictures from one latent", pictures.len());
        let note = "share of bytes more than 1 level off";
        c.measured("pipe.ddim.image_u8", c.tolerances.pixels, note, |golden| {
            let picture = &pictures[0];
            let size = [picture.height() as usize, picture.width() as usize, 3];
            ensure!(golden.shape == size, "pipe.ddim.image_u8: {size:?} for {:?}", golden.shape);
            let off = |(ours, torch): &(&u8, &f32)| (f32::from(**ours) - **torch).abs() > 1.0;
            let count = picture.as_raw().iter().zip(&golden.values).filter(off).count();
            Ok(count as f64 / golden.values.len() as f64)
        });
    }
    Ok(())
}
