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

/// A picture as a PNG with a text under a keyword: Latin-1 as `tEXt`, which every reader knows, else as `iTXt`.
///
/// # Errors
/// It has no pixels, or the keyword is none.
pub fn png_with_text(picture: &RgbImage, keyword: &str, text: &str) -> Result<Vec<u8>> {
    let fail = |e: png::EncodingError| Error::Input(format!("a picture cannot be encoded: {e}"));
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, picture.width(), picture.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_compression(png::Compression::Fast);
    match text.chars().all(|c| u32::from(c) < 256) {
        true => encoder.add_text_chunk(keyword.into(), text.into()),
        false => encoder.add_itxt_chunk(keyword.into(), text.into()),
    }
    .map_err(fail)?;
    let mut writer = encoder.write_header().map_err(fail)?;
    writer.write_image_data(picture).map_err(fail)?;
    writer.finish().map_err(fail)?;
    Ok(bytes)
}
