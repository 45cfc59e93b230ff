//! Pictures that arguments name.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, Result, bail};
use image::{DynamicImage, ImageFormat, ImageReader};
use strata_model::TensorFile;

/// Reads a picture of any format, which is told from its content.
pub fn open_picture(path: &Path) -> Result<DynamicImage> {
    let file = File::open(path).map(BufReader::new).context("it cannot be read")?;
    let mut reader = ImageReader::new(file).with_guessed_format().context("it cannot be read")?;
    // Targa begins with nothing that tells it
    if reader.format().is_none() && path.extension().is_some_and(|end| end.eq_ignore_ascii_case("tga")) {
        reader.set_format(ImageFormat::Tga);
    }
    if reader.format().is_none() {
        if TensorFile::open(path).is_ok() {
            bail!("it is a safetensors file");
        }
        bail!("its content is of no format that is read: PNG, JPEG, WebP, GIF, BMP, TIFF, TGA, QOI or PNM");
    }
    // what a decoder stumbles over says little to whoever made the picture
    reader.decode().ok().context("it is damaged or cut off, or larger than memory; save it again")
}
