//! Clean latents of pictures, to draw noisy ones from.

use std::path::{Path, PathBuf};

use strata_engine::Gpu;
use strata_model::Vae;

use crate::config::Resolution;
use crate::data::dataset::{PICTURE_EXTENSIONS, files, is_one_of};
use crate::data::latents::encode_picture;
use crate::data::picture::{decode, fit, on_white};
use crate::{Error, Result};

/// The latents of the first pictures of a folder by name, `most` at most, each cut about its centre and scaled to a
/// size: the mean that the VAE gives, times its scaling factor. Captions are not needed. The VAE must be in f32.
///
/// # Errors
/// The folder holds no picture, a picture is damaged, or the GPU fails.
pub fn latents_of(
    gpu: &Gpu,
    vae: &Vae,
    folder: &Path,
    size: Resolution,
    most: usize,
) -> Result<Vec<Vec<f32>>> {
    let mut pictures: Vec<PathBuf> = files(folder)?;
    pictures.retain(|path| is_one_of(path, &PICTURE_EXTENSIONS));
    if pictures.is_empty() {
        let (folder, readable) = (folder.display(), PICTURE_EXTENSIONS.join(", "));
        return Err(Error::Probe(format!("no pictures: {folder} has no file that ends in {readable}")));
    }
    let scaling = vae.config().scaling_factor as f32;
    let latent = |path: &PathBuf| -> Result<Vec<f32>> {
        let rgb = fit(&on_white(decode(path)?), size, true).into_raw();
        let rgb: Vec<f32> = rgb.into_iter().map(|byte| f32::from(byte) / 127.5 - 1.0).collect();
        let (posterior, shape) = encode_picture(gpu, vae, &rgb, size.height as usize, size.width as usize)?;
        Ok(posterior.sample(&vec![0.0; shape.iter().product()], scaling))
    };
    pictures.iter().take(most).map(latent).collect()
}
