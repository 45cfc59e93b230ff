//! Pictures that arguments name.

use std::path::Path;

use anyhow::{Context, Result, bail};
use image::{DynamicImage, ImageReader};
use strata_model::TensorFile;

/// Reads a picture of any format, which is told from its content.
pub fn open_picture(path: &Path) -> Result<DynamicImage> {
    let reader = ImageReader::open(path).and_then(ImageReader::with_guessed_format);
    let reader = reader.context("it cannot be read")?;
    if reader.format().is_none() {
        if TensorFile::open(path).is_ok() {
            bail!("it is a safetensors file");
        }
        bail!("its content is of no format that is read: PNG, JPEG, WebP, GIF, BMP, TIFF, QOI or PNM");
    }
    // what a decoder stumbles over says little to whoever made the picture
    reader.decode().ok().context("it is damaged or cut off, or larger than memory; save it again")
}
