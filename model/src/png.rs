//! Pictures as PNG.

use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder, RgbImage};

use crate::{Error, Result};

/// A picture as a PNG.
///
/// # Errors
/// It has no pixels.
pub fn png(picture: &RgbImage) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    PngEncoder::new(&mut bytes)
        .write_image(picture, picture.width(), picture.height(), ExtendedColorType::Rgb8)
        .map_err(|e| Error::Input(format!("a picture cannot be encoded: {e}")))?;
    Ok(bytes)
}
