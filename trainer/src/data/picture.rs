//! The pixels of pictures: from a file to the size that is trained at.

use std::io::Cursor;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use image::codecs::gif::GifDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::webp::WebPDecoder;
use image::imageops::{self, FilterType};
use image::{
    AnimationDecoder, DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, ImageResult, Limits,
    RgbImage,
};

use tiff::decoder::Decoder as TiffDecoder;

use crate::data::dataset::is_one_of;
use crate::{Error, Resolution, Result};

/// Bytes that pictures being looked at may take up together; a picture that needs more is looked at alone. Enough for
/// six photographs of 12 megapixels at once.
const MEMORY: u64 = 1 << 30;

/// Bytes for each pixel while a picture is decoded, turned and put on white: at worst four channels of 16 bits, and
/// two copies with 8.
const BYTES_PER_PIXEL: u64 = 16;

/// The picture of a file, turned as the camera was held. What format it has is told from its content.
///
/// # Errors
/// [`Error::Io`] where the file cannot be read; [`Error::Picture`] where it is damaged, no picture, or several.
pub(crate) fn decode(path: &Path) -> Result<DynamicImage> {
    let unreadable = |reason: String| Error::Picture { path: path.to_owned(), reason };
    let damaged = |e: ImageError| unreadable(e.to_string());
    let bytes = std::fs::read(path).map_err(Error::io("read picture", path))?;
    let mut reader = ImageReader::new(Cursor::new(&bytes))
        .with_guessed_format()
        .map_err(Error::io("read picture", path))?;
    // Targa begins with nothing that tells it.
    if reader.format().is_none() && is_one_of(path, &["tga"]) {
        reader.set_format(ImageFormat::Tga);
    }
    let format = reader.format();
    if format == Some(ImageFormat::Jpeg) && !jpeg_is_whole(&bytes) {
        return Err(unreadable("the JPEG is cut off before its end".to_owned()));
    }
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    // A few damaged bytes can claim a picture larger than memory.
    Limits::default().reserve(decoder.total_bytes()).map_err(damaged)?;
    if is_animated(format, &bytes).map_err(damaged)? {
        return Err(unreadable("it is an animation; save one of its frames as a picture".to_owned()));
    }
    let orientation = decoder.orientation().map_err(damaged)?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    picture.apply_orientation(orientation);
    Ok(picture)
}

/// Whether there is more than one picture, of which none is more meant than the others.
fn is_animated(format: Option<ImageFormat>, bytes: &[u8]) -> ImageResult<bool> {
    let bytes = Cursor::new(bytes);
    Ok(match format {
        Some(ImageFormat::Gif) => matches!(GifDecoder::new(bytes)?.into_frames().nth(1), Some(Ok(_))),
        Some(ImageFormat::WebP) => WebPDecoder::new(bytes)?.has_animation(),
        Some(ImageFormat::Png) => PngDecoder::new(bytes)?.is_apng()?,
        _ => false,
    })
}

/// Whether a file has pages after its first, which is the one that is read. Of TIFF alone: other pictures that go on are
/// animations.
pub(crate) fn has_further_pages(path: &Path) -> bool {
    let tiff = ImageReader::open(path).and_then(ImageReader::with_guessed_format);
    let tiff = tiff.ok().filter(|reader| reader.format() == Some(ImageFormat::Tiff));
    // one that cannot be read is told when it is decoded
    tiff.and_then(|reader| TiffDecoder::new(reader.into_inner()).ok()).is_some_and(|tiff| tiff.more_images())
}

/// Whether a JPEG reaches its end-of-image marker. The decoder does not ask: it paints what is missing grey.
///
/// Walks from marker to marker, since the bytes of the end marker also occur in an embedded preview.
fn jpeg_is_whole(bytes: &[u8]) -> bool {
    const END_OF_IMAGE: u8 = 0xd9;
    let mut at = 2; // past the start-of-image marker
    loop {
        // In picture data, 0xff is followed by 0 (a plain 0xff) or by a restart marker; 0xff 0xff is filling.
        let is_marker = |pair: &[u8]| pair[0] == 0xff && !matches!(pair[1], 0 | 0xd0..=0xd7 | 0xff);
        let rest = bytes.get(at..).unwrap_or(&[]);
        let Some(gap) = rest.windows(2).position(is_marker) else { return false };
        let segment = &rest[gap..];
        match segment {
            [_, END_OF_IMAGE, ..] => return true,
            // Two bytes of marker, then a length that counts itself.
            [_, _, high, low, ..] => at += gap + 2 + usize::from(u16::from_be_bytes([*high, *low])),
            _ => return false,
        }
    }
}

/// c · α + 255 · (1 − α) for every channel c.
pub(crate) fn on_white(picture: DynamicImage) -> RgbImage {
    if !picture.color().has_alpha() {
        return picture.into_rgb8();
    }
    let rgba = picture.into_rgba8();
    RgbImage::from_fn(rgba.width(), rgba.height(), |x, y| {
        let [rgb @ .., a] = rgba.get_pixel(x, y).0;
        let a = u32::from(a);
        rgb.map(|c| ((u32::from(c) * a + 255 * (255 - a) + 127) / 255) as u8).into()
    })
}

/// Scales a picture to `to`, after cutting it to the same proportions about its centre where `center_crop`.
///
/// Cut first: scaled first, a picture of 1 × 10 000 pixels would become 512 × 5 120 000 on the way.
pub(crate) fn fit(picture: &RgbImage, to: Resolution, center_crop: bool) -> RgbImage {
    let (w, h) = picture.dimensions();
    let (mut cut_w, mut cut_h) = (w, h);
    if center_crop {
        let scaled = |side: u32, by: u32, over: u32| {
            let (by, over) = (u64::from(by), u64::from(over));
            ((u64::from(side) * by + over / 2) / over).max(1).min(u64::from(u32::MAX)) as u32
        };
        cut_w = w.min(scaled(h, to.width, to.height));
        cut_h = h.min(scaled(w, to.height, to.width));
    }
    let cut = imageops::crop_imm(picture, (w - cut_w) / 2, (h - cut_h) / 2, cut_w, cut_h);
    imageops::resize(&*cut, to.width, to.height, FilterType::Lanczos3)
}

/// Bytes that decoding takes, by the size in the header. A header that cannot be read will not be decoded either.
fn needed(path: &Path) -> u64 {
    ImageReader::open(path)
        .and_then(ImageReader::with_guessed_format)
        .ok()
        .and_then(|reader| reader.into_dimensions().ok())
        .map_or(0, |(width, height)| u64::from(width) * u64::from(height) * BYTES_PER_PIXEL)
}

/// Memory that threads which decode share: each takes its part, or waits until others give theirs back.
pub(crate) struct Memory {
    free: Mutex<u64>,
    freed: Condvar,
}

/// Part of the [`Memory`], until it is dropped.
pub(crate) struct Held<'a> {
    memory: &'a Memory,
    bytes: u64,
}

impl Default for Memory {
    fn default() -> Self {
        Self { free: Mutex::new(MEMORY), freed: Condvar::new() }
    }
}

impl Memory {
    /// As much as decoding a picture takes, once it is free.
    pub fn hold_for(&self, path: &Path) -> Held<'_> {
        let bytes = needed(path).min(MEMORY);
        let free = self.free();
        let mut free =
            self.freed.wait_while(free, |free| *free < bytes).unwrap_or_else(PoisonError::into_inner);
        *free -= bytes;
        Held { memory: self, bytes }
    }

    fn free(&self) -> MutexGuard<'_, u64> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        *self.memory.free() += self.bytes;
        self.memory.freed.notify_all();
    }
}
