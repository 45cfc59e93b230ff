//! What is kept of a picture after one look at it: numbers, hashes and a thumbnail, never its pixels.

use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::path::Path;

use image::codecs::jpeg::JpegEncoder;
use image::imageops::{self, FilterType};
use image::{DynamicImage, RgbImage};
use image_hasher::{HashAlg, Hasher, HasherConfig};
use rayon::prelude::*;

use super::Subject;
use crate::data::picture::{Memory, decode, on_white};
use crate::{Error, Resolution, Result};

/// Longest side of a thumbnail.
const THUMBNAIL: u32 = 128;

/// Side of the grid of [`Look::colours`].
const GRID: u32 = 16;

/// Levels of each channel in [`Look::border`].
const LEVELS: usize = 4;

/// What one look at a picture tells.
pub(super) struct Look {
    pub width: u32,
    pub height: u32,
    /// Share of pixels that let the background through.
    pub transparent: f32,
    /// See [`sharpness`].
    pub sharpness: Option<f32>,
    /// Hash of size and pixels: equal for equal pictures, whatever the file format.
    pub content: u64,
    /// Perceptual hashes, which survive scaling and compression: dHash and pHash.
    pub hashes: [u64; 2],
    /// [`GRID`]² mean colours, less their mean and over their standard deviation, so that brightness and contrast of the
    /// whole picture make no difference.
    pub colours: Vec<f32>,
    /// How the colours of the border are distributed over [`LEVELS`]³ bins; sums to 1.
    pub border: Vec<f32>,
    /// A JPEG.
    pub thumbnail: Vec<u8>,
}

/// Decodes every picture once, on all cores: looks, or what is wrong with the file, in the features' order.
pub(super) fn look_at_all(features: &[Subject]) -> Vec<Vec<Result<Look>>> {
    let memory = Memory::default();
    let look_at_feature = |feature: &Subject| {
        let pictures = feature.pictures.par_iter();
        pictures
            .map_init(Hashers::new, |hashers, picture| {
                let _held = memory.hold_for(&picture.path);
                look_at(&picture.path, feature.resolution, hashers)
            })
            .collect()
    };
    features.iter().map(look_at_feature).collect()
}

/// dHash and pHash; a hasher cannot be shared between threads.
struct Hashers([Hasher<[u8; 8]>; 2]);

impl Hashers {
    fn new() -> Self {
        let config = HasherConfig::with_bytes_type::<[u8; 8]>;
        Self([
            config().hash_alg(HashAlg::Gradient).to_hasher(),
            config().hash_alg(HashAlg::Median).preproc_dct().to_hasher(),
        ])
    }
}

fn look_at(path: &Path, resolution: Resolution, hashers: &Hashers) -> Result<Look> {
    let decoded = decode(path)?;
    let (width, height) = (decoded.width(), decoded.height());
    let transparent = transparent(&decoded);
    let picture = on_white(decoded);
    let content = {
        let mut hasher = DefaultHasher::new();
        (width, height, picture.as_raw()).hash(&mut hasher);
        hasher.finish()
    };
    let small = shrunk(picture, resolution);
    let hash = |hasher: &Hasher<[u8; 8]>| u64::from_le_bytes(hasher.hash_image(&small).into_inner());
    Ok(Look {
        width,
        height,
        transparent,
        sharpness: sharpness(&small),
        content,
        hashes: hashers.0.each_ref().map(hash),
        colours: colours(&small),
        border: border(&small),
        thumbnail: thumbnail(&small)
            .map_err(|e| Error::Picture { path: path.to_owned(), reason: e.to_string() })?,
    })
}

/// The picture as large as it is trained: the smallest that covers the resolution. Never enlarged, since enlarging blurs.
fn shrunk(picture: RgbImage, resolution: Resolution) -> RgbImage {
    let (width, height) = picture.dimensions();
    let scale = f64::max(
        f64::from(resolution.width) / f64::from(width),
        f64::from(resolution.height) / f64::from(height),
    );
    if scale >= 1.0 {
        return picture;
    }
    let scaled = |side: u32| ((f64::from(side) * scale).round() as u32).max(1);
    imageops::resize(&picture, scaled(width), scaled(height), FilterType::Triangle)
}

/// Share of pixels with an alpha that is more than a rounding error below opaque.
fn transparent(picture: &DynamicImage) -> f32 {
    const OPAQUE: u8 = 250;
    if !picture.color().has_alpha() {
        return 0.0;
    }
    let rgba = picture.to_rgba8();
    let n = rgba.pixels().filter(|pixel| pixel.0[3] < OPAQUE).count();
    n as f32 / (rgba.width() as f32 * rgba.height() as f32)
}

/// Variance of the Laplacian, in the sharpest of 4 × 4 tiles, over the variance of the whole picture.
///
/// The sharpest tile, since a portrait before a blurred background is sharp; over the variance, since a picture of low
/// contrast is, too. `None` for a picture that is too small or of one colour, about which this says nothing.
fn sharpness(picture: &RgbImage) -> Option<f32> {
    const TILES: usize = 4;
    /// Below what two levels of 8 bits in one pixel make, and above what rounding makes of one colour.
    const NO_CONTRAST: f64 = 1e-12;
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    if width.min(height) < 4 * TILES {
        return None;
    }
    let luma: Vec<f64> = picture
        .pixels()
        .map(|p| (0.299 * f64::from(p.0[0]) + 0.587 * f64::from(p.0[1]) + 0.114 * f64::from(p.0[2])) / 255.0)
        .collect();
    let contrast = variance(luma.iter().copied());
    let laplacian = |x: usize, y: usize| {
        let i = y * width + x;
        luma[i - 1] + luma[i + 1] + luma[i - width] + luma[i + width] - 4.0 * luma[i]
    };
    let part = |i: usize, side: usize| 1 + i * (side - 2) / TILES..1 + (i + 1) * (side - 2) / TILES;
    let tile = |i: usize| {
        let (columns, rows) = (part(i % TILES, width), part(i / TILES, height));
        variance(rows.flat_map(|y| columns.clone().map(move |x| (x, y))).map(|(x, y)| laplacian(x, y)))
    };
    let sharpest = (0..TILES * TILES).map(tile).fold(0.0, f64::max);
    (contrast > NO_CONTRAST).then_some((sharpest / contrast) as f32)
}

/// E[x²] − E[x]².
fn variance(values: impl Iterator<Item = f64>) -> f64 {
    let (mut n, mut sum, mut squares) = (0.0, 0.0, 0.0);
    for v in values {
        (n, sum, squares) = (n + 1.0, sum + v, squares + v * v);
    }
    (squares / n - (sum / n).powi(2)).max(0.0)
}

fn colours(picture: &RgbImage) -> Vec<f32> {
    /// A picture of one colour has none; its rounding errors must not be blown up.
    const LEAST_DEVIATION: f64 = 0.02;
    let grid = imageops::resize(picture, GRID, GRID, FilterType::Triangle);
    let values: Vec<f64> = grid.as_raw().iter().map(|v| f64::from(*v) / 255.0).collect();
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let deviation = variance(values.iter().copied()).sqrt().max(LEAST_DEVIATION);
    values.into_iter().map(|v| ((v - mean) / deviation) as f32).collect()
}

/// Histogram of the outer tenth on each side. Each colour is shared between its neighbouring bins, or else two shades of
/// white could fall on the two sides of an edge.
fn border(picture: &RgbImage) -> Vec<f32> {
    const SIDE: u32 = 60;
    const FRAME: u32 = SIDE / 10;
    let square = imageops::resize(picture, SIDE, SIDE, FilterType::Triangle);
    let mut bins = vec![0.0; LEVELS.pow(3)];
    let middle = FRAME..SIDE - FRAME;
    let frame = square.enumerate_pixels().filter(|(x, y, _)| !(middle.contains(x) && middle.contains(y)));
    let mut n = 0.0;
    for (_, _, pixel) in frame {
        n += 1.0;
        let shares = pixel.0.map(|channel| {
            let level = f32::from(channel) / 255.0 * (LEVELS - 1) as f32;
            let low = (level as usize).min(LEVELS - 2);
            [(low, 1.0 - (level - low as f32)), (low + 1, level - low as f32)]
        });
        for (r, share_r) in shares[0] {
            for (g, share_g) in shares[1] {
                for (b, share_b) in shares[2] {
                    bins[(r * LEVELS + g) * LEVELS + b] += share_r * share_g * share_b;
                }
            }
        }
    }
    bins.iter_mut().for_each(|bin| *bin /= n);
    bins
}

fn thumbnail(picture: &RgbImage) -> image::ImageResult<Vec<u8>> {
    const QUALITY: u8 = 80;
    let (width, height) = picture.dimensions();
    let scale = (f64::from(THUMBNAIL) / f64::from(width.max(height))).min(1.0);
    let scaled = |side: u32| ((f64::from(side) * scale).round() as u32).max(1);
    let small = imageops::resize(picture, scaled(width), scaled(height), FilterType::Triangle);
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, QUALITY).encode_image(&small)?;
    Ok(jpeg)
}
