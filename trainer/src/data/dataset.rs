//! A dataset: one folder of pictures, each with a caption in a text file beside it.

use std::ffi::OsStr;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::imageops::{self, FilterType};
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, RgbImage};

use crate::config::{DatasetConfig, Resolution};
use crate::{Error, Result};

/// Extensions of the pictures that can be read, in any case.
pub const PICTURE_EXTENSIONS: [&str; 5] = ["png", "jpg", "jpeg", "webp", "bmp"];
/// Extensions of pictures that cannot: refused, since to skip them in silence would train on less than the user sees.
const OTHER_PICTURES: [&str; 7] = ["gif", "tif", "tiff", "avif", "heic", "heif", "jxl"];

/// A picture and what it shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// The file.
    pub path: PathBuf,
    /// First line of its caption file, trimmed; never empty.
    pub caption: String,
}

/// The pictures of a folder, sorted by file name. Never empty.
#[derive(Debug, Clone)]
pub struct Dataset {
    pictures: Vec<Picture>,
    resolution: Resolution,
    center_crop: bool,
}

impl Dataset {
    /// Lists the pictures of the folder and reads their captions; the pictures themselves are read later.
    ///
    /// Subfolders and names that begin with a dot are passed over.
    ///
    /// # Errors
    /// [`Error::Config`] where a value cannot work; [`Error::Io`] where the folder or a caption cannot be read; [`Error::Dataset`] where the folder
    /// has no picture, or a picture of a format that cannot be read, or where a caption is missing,
    /// empty or not UTF-8.
    pub fn open(config: &DatasetConfig) -> Result<Self> {
        config.validate()?;
        let folder = &config.folder;
        let mut pictures = Vec::new();
        for path in files(folder)? {
            if is_one_of(&path, &OTHER_PICTURES) {
                let name = path.display();
                let readable = PICTURE_EXTENSIONS.join(", ");
                return Err(Error::Dataset(format!(
                    "{name}: only {readable} can be read; convert it, or remove it"
                )));
            }
            if is_one_of(&path, &PICTURE_EXTENSIONS) {
                let caption = read_caption(&path, &config.caption_extension)?;
                pictures.push(Picture { path, caption });
            }
        }
        if pictures.is_empty() {
            let (folder, readable) = (folder.display(), PICTURE_EXTENSIONS.join(", "));
            return Err(Error::Dataset(format!("no pictures: {folder} has no file that ends in {readable}")));
        }
        Ok(Self { pictures, resolution: config.resolution, center_crop: config.center_crop })
    }

    /// How many pictures there are.
    #[expect(clippy::len_without_is_empty, reason = "a dataset is never empty")]
    pub fn len(&self) -> usize {
        self.pictures.len()
    }

    /// The pictures, in the order that [`Dataset::load_rgb`] counts them.
    pub fn pictures(&self) -> &[Picture] {
        &self.pictures
    }

    /// Size of every picture that [`Dataset::load_rgb`] returns.
    pub fn resolution(&self) -> Resolution {
        self.resolution
    }

    /// Pixels of picture `i` at the dataset's resolution: H × W × 3 numbers in [−1, 1], on white where it is transparent.
    ///
    /// The format is told from the content, and the camera's orientation is respected.
    ///
    /// # Errors
    /// [`Error::Picture`] where the file is damaged or no picture; [`Error::Dataset`] where `i` is out of range.
    pub fn load_rgb(&self, i: usize) -> Result<Vec<f32>> {
        let n = self.len();
        let picture = self
            .pictures
            .get(i)
            .ok_or_else(|| Error::Dataset(format!("picture {i} of {n}: pictures are counted from 0")))?;
        let decoded = decode(&picture.path)?;
        let rgb = fit(&on_white(decoded), self.resolution, self.center_crop);
        Ok(rgb.into_raw().into_iter().map(|byte| f32::from(byte) / 127.5 - 1.0).collect())
    }
}

/// Mirrors pixels of H × W × 3 left to right, in place. `width` is W.
pub fn mirror(rgb: &mut [f32], width: usize) {
    for row in rgb.chunks_exact_mut(3 * width) {
        row.reverse(); // turns each pixel round as well,
        row.chunks_exact_mut(3).for_each(|pixel| pixel.reverse()); // so turn it back
    }
}

/// The files of a folder, sorted by name, since the order in which a file system lists them is its own.
pub(crate) fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let fail = || Error::io("read dataset folder", folder);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(fail())? {
        let path = entry.map_err(fail())?.path();
        // macOS leaves `._x.png` beside x.png on foreign disks; it is no picture.
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

pub(crate) fn is_one_of(path: &Path, extensions: &[&str]) -> bool {
    path.extension()
        .is_some_and(|extension| extensions.iter().any(|known| extension.eq_ignore_ascii_case(known)))
}

/// First line of the caption file of a picture, trimmed.
fn read_caption(picture: &Path, extension: &str) -> Result<String> {
    let path = picture.with_extension(extension.trim_start_matches('.'));
    let caption_name = path.file_name().unwrap_or(OsStr::new("")).display();
    if !path.exists() {
        let name = picture.display();
        return Err(Error::Dataset(format!(
            "missing caption: {name} has no {caption_name}; write one, or remove the picture"
        )));
    }
    let bytes = std::fs::read(&path).map_err(Error::io("read caption", &path))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::Dataset(format!("{}: byte {at} is not UTF-8; save the caption as UTF-8", path.display()))
    })?;
    // Some editors put a byte order mark first; CLIP would take it for a word.
    let line = text.trim_start_matches('\u{feff}').lines().next().unwrap_or("").trim();
    if line.is_empty() {
        let name = path.display();
        return Err(Error::Dataset(format!(
            "{name}: the first line is empty; write there what the picture shows"
        )));
    }
    Ok(line.to_owned())
}

/// The picture of a file, turned as the camera was held.
///
/// # Errors
/// [`Error::Io`] where the file cannot be read; [`Error::Picture`] where it is damaged or no picture.
pub(crate) fn decode(path: &Path) -> Result<DynamicImage> {
    let unreadable = |reason: String| Error::Picture { path: path.to_owned(), reason };
    let damaged = |e: ImageError| unreadable(e.to_string());
    let bytes = std::fs::read(path).map_err(Error::io("read picture", path))?;
    let reader = ImageReader::new(Cursor::new(&bytes))
        .with_guessed_format()
        .map_err(Error::io("read picture", path))?;
    if reader.format() == Some(ImageFormat::Jpeg) && !jpeg_is_whole(&bytes) {
        return Err(unreadable("the JPEG is cut off before its end".to_owned()));
    }
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    // A few damaged bytes can claim a picture larger than memory.
    Limits::default().reserve(decoder.total_bytes()).map_err(damaged)?;
    let orientation = decoder.orientation().map_err(damaged)?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    picture.apply_orientation(orientation);
    Ok(picture)
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
