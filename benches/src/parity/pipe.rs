//! From text to a picture.

use anyhow::{Result, ensure};
use strata_model::{Pipeline, Prompts, Reading, Sampling, Takes};

use super::check::Checker;

/// `pipe.ddim.*`: five DDIM steps with guidance 3 from given noise, with and without "clip skip 2", and the picture.
pub(crate) fn pipelines(c: &mut Checker) -> Result<()> {
    let pipeline = Pipeline::open(c.gpu, &c.checkpoint, c.dtype, c.dtype)?;
    let [wanted, _, _, unwanted] = &c.goldens.texts[..] else {
        anyhow::bail!("meta.json has {} prompts, not 4", c.goldens.texts.len());
    };
    let (noise, shape) = c.goldens.get("pipe.latents")?.nhwc()?;
    let sampling = Sampling { steps: 5, guidance: 3.0, ..Sampling::default() };
    let takes = Takes::plain(1, sampling.guided());
    for (name, skip) in [("pipe.ddim", 0), ("pipe.ddim.clipskip2", 1)] {
        // diffusers skips layers for the prompt alone, not for the negative one
        let encode = |text: &str, skip| {
            let prompts = pipeline.text.read(&[text], Reading::Literal, &[])?;
            pipeline.text.encode(&prompts, skip)
        };
        let (wanted, unwanted) = (encode(wanted, skip)?, encode(unwanted, 0)?);
        let prompts = Prompts { wanted, unwanted };
        let latents = pipeline.sample(&prompts, &noise, shape, &takes, &sampling, |_| ())?;
        c.tensor(&format!("{name}.latents"), &latents, c.tolerances.pipeline)?;
        if skip > 0 {
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
