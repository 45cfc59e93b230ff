//! Pictures to latents and back.

use anyhow::Result;
use strata_engine::{Tape, Tensor};
use strata_model::{Cx, Gates, Taps};
use strata_trainer::Posterior;

use super::check::Checker;
use super::goldens::to_nchw;

/// The modules whose outputs are in `vae.act.*`.
const ENCODER: [&str; 12] = [
    "encoder.conv_in",
    "encoder.down_blocks.0",
    "encoder.down_blocks.0.resnets.0",
    "encoder.down_blocks.0.downsamplers.0",
    "encoder.down_blocks.1",
    "encoder.down_blocks.2",
    "encoder.down_blocks.3",
    "encoder.mid_block",
    "encoder.mid_block.attentions.0",
    "encoder.conv_norm_out",
    "encoder.conv_out",
    "quant_conv",
];
const DECODER: [&str; 8] = [
    "post_quant_conv",
    "decoder.conv_in",
    "decoder.mid_block",
    "decoder.up_blocks.0",
    "decoder.up_blocks.1",
    "decoder.up_blocks.2",
    "decoder.up_blocks.3",
    "decoder.conv_norm_out",
];

/// `vae.*`: mean, logvar, the latent drawn from them, a decoded picture, and the activations of both ways.
pub(crate) fn autoencoder(c: &mut Checker) -> Result<()> {
    let vae = c.checkpoint.vae(c.gpu, c.dtype)?;
    let tolerance = c.tolerances.forward;
    let tape = Tape::off();

    let taps = Taps::new(|path| ENCODER.contains(&path));
    let image = c.input("vae.image")?;
    let (mean, logvar) = vae.encode(&Cx { tape: &tape, gates: Gates::none(), taps: Some(&taps) }, &image)?;
    c.tensor("vae.mean", &mean, tolerance)?;
    c.tensor("vae.logvar", &logvar, tolerance)?;
    taken(c, "vae.act.", &taps, &ENCODER)?;

    let (normal, shape) = c.goldens.get("vae.noise")?.nhwc()?;
    let scaling = vae.config().scaling_factor as f32;
    let latent = Posterior::new(mean.to_f32()?, &logvar.to_f32()?).sample(&normal, scaling);
    c.close("vae.latent", &to_nchw(&latent, shape), tolerance);

    let taps = Taps::new(|path| DECODER.contains(&path));
    let (mut latent, shape) = c.goldens.get("vae.dec_latent")?.nhwc()?;
    latent.iter_mut().for_each(|v| *v /= scaling);
    let latent = Tensor::from_f32(c.gpu, &latent, &shape, c.dtype)?;
    let picture = vae.decode(&Cx { tape: &tape, gates: Gates::none(), taps: Some(&taps) }, &latent)?;
    c.tensor("vae.decoded", &picture, tolerance)?;
    taken(c, "vae.act.", &taps, &DECODER)
}

/// Compares every tapped activation with the golden `prefix` + its path.
pub(crate) fn taken(c: &mut Checker, prefix: &str, taps: &Taps, paths: &[impl AsRef<str>]) -> Result<()> {
    let tolerance = c.tolerances.forward;
    for path in paths.iter().map(AsRef::as_ref) {
        match taps.get(path) {
            Some(tensor) => c.tensor(&format!("{prefix}{path}"), &tensor, tolerance)?,
            None => c.problem(format!("{prefix}{path}: the model shows no such activation")),
        }
    }
    Ok(())
}
