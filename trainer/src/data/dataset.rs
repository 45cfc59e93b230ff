//! A dataset: one folder of pictures, each with a caption in a text file beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use strata_model::progress::bar;

use crate::config::{DatasetConfig, Resolution};
use crate::data::caption::read_caption;
use crate::data::picture::{Memory, decode, fit, on_white};
use crate::{Error, Result};

/// Extensions of the pictures that can be read, in any case.
pub const PICTURE_EXTENSIONS: [&str; 16] = [
    "png", "jpg", "jpeg", "jpe", "jfif", "webp", "bmp", "gif", "tif", "tiff", "tga", "ppm", "pgm", "pbm",
    "pnm", "qoi",
];
/// Extensions of pictures that cannot: refused, since to skip them would train on less than the user sees.
const OTHER_PICTURES: [&str; 4] = ["avif", "heic", "heif", "jxl"];

/// A picture and what it shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// The file.
    pub path: PathBuf,
    /// First line of its caption file, trimmed; never empty.
    pub caption: String,
}

/// Something in a dataset's folder that is not learned from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Where it is.
    pub path: PathBuf,
    /// Why it is not used.
    pub why: Why,
}

/// Why something in a dataset's folder is not learned from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// A folder, and only what lies in the dataset's own folder is read.
    Folder,
    /// A link to what is not there.
    BrokenLink,
    /// Neither a picture nor a caption.
    NoPicture,
    /// A caption of no picture.
    LoneCaption,
    /// What follows the first line of a caption.
    FurtherLines,
}

/// The pictures of a folder, sorted by file name. Never empty.
#[derive(Debug, Clone)]
pub struct Dataset {
    folder: PathBuf,
    pictures: Vec<Picture>,
    left_out: Vec<LeftOut>,
    resolution: Resolution,
    center_crop: bool,
}

impl Dataset {
    /// Lists the pictures of the folder and reads their captions; the pictures themselves are read later. What else is
    /// there is [left out](Self::left_out); names that begin with a dot are not looked at.
    ///
    /// # Errors
    /// [`Error::Config`] where a value cannot work; [`Error::Io`] where the folder or a caption cannot be read;
    /// [`Error::Dataset`] where the folder has no picture, or a picture of a format that cannot be read, or where a
    /// caption is missing, empty or not in UTF-8 or UTF-16.
    pub fn open(config: &DatasetConfig) -> Result<Self> {
        config.validate()?;
        let (mut pictures, mut captions, mut left_out) = (Vec::new(), BTreeSet::new(), Vec::new());
        for path in entries(&config.folder)? {
            if let Some(why) = why_no_file(&path) {
                left_out.push(LeftOut { path, why });
            } else if is_one_of(&path, &OTHER_PICTURES) {
                let name = path.display();
                let readable = PICTURE_EXTENSIONS.join(", ");
                return Err(Error::Dataset(format!(
                    "{name}: only {readable} can be read; convert it, or remove it"
                )));
            } else if is_one_of(&path, &PICTURE_EXTENSIONS) {
                let caption = read_caption(&path, &config.caption_extension)?;
                pictures.push(Picture { path, caption: caption.text });
                if captions.insert(caption.path.clone()) && caption.goes_on {
                    left_out.push(LeftOut { path: caption.path, why: Why::FurtherLines });
                }
            } else if !captions.contains(&path) {
                let is_caption = is_one_of(&path, &[config.caption_extension.trim_start_matches('.')]);
                let why = if is_caption { Why::LoneCaption } else { Why::NoPicture };
                left_out.push(LeftOut { path, why });
            }
        }
        // a caption can come before its picture
        left_out.retain(|left| left.why != Why::LoneCaption || !captions.contains(&left.path));
        if pictures.is_empty() {
            return Err(no_pictures(&config.folder, &left_out));
        }
        let folder = config.folder.clone();
        Ok(Self {
            folder,
            pictures,
            left_out,
            resolution: config.resolution,
            center_crop: config.center_crop,
        })
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

    /// What in the folder is not learned from.
    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    /// What was taken and what was not, in one line: `24 pictures with captions from cats; not used: 1 folder (sub)`.
    pub fn summary(&self) -> String {
        let mut by_caption: BTreeMap<PathBuf, Vec<&Path>> = BTreeMap::new();
        for picture in &self.pictures {
            by_caption.entry(picture.path.with_extension("")).or_default().push(&picture.path);
        }
        let shared: Vec<&Path> = by_caption.values().filter(|of| of.len() > 1).flatten().copied().collect();
        let with = match shared.is_empty() {
            true => "captions".to_owned(),
            false => format!("{} captions, since {} share theirs,", by_caption.len(), names(&shared)),
        };
        let mut text = format!("{} with {with} from {}", count(self.len(), "picture"), self.folder.display());
        let mut by_why: BTreeMap<Why, Vec<&Path>> = BTreeMap::new();
        for left in &self.left_out {
            by_why.entry(left.why).or_default().push(&left.path);
        }
        let parts = by_why.iter().map(|(why, paths)| {
            let n = paths.len();
            let what = match why {
                Why::Folder => count(n, "folder"),
                Why::BrokenLink => count(n, "broken link"),
                Why::NoPicture => count(n, "file"),
                Why::LoneCaption => format!("{} without a picture", count(n, "caption")),
                Why::FurtherLines => format!("all but the first line of {}", count(n, "caption")),
            };
            format!("{what} ({})", names(paths))
        });
        let parts: Vec<String> = parts.collect();
        if !parts.is_empty() {
            text += &format!("; not used: {}", parts.join(", "));
        }
        text
    }

    /// Size of every picture that [`Dataset::load_rgb`] returns.
    pub fn resolution(&self) -> Resolution {
        self.resolution
    }

    /// Decodes every picture, on all cores, so that none is found to be damaged when training has begun.
    ///
    /// # Errors
    /// All pictures that cannot be read, in one: [`Error::Dataset`], or what [`Dataset::load_rgb`] says where it is one.
    pub fn check(&self) -> Result<()> {
        let (memory, progress) = (Memory::default(), bar(self.len() as u64, "looking at pictures"));
        let look = |picture: &Picture| {
            let _held = memory.hold_for(&picture.path);
            let error = decode(&picture.path).err();
            progress.inc(1);
            error
        };
        let mut errors: Vec<Error> = self.pictures.par_iter().filter_map(look).collect();
        progress.finish_and_clear();
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            n => {
                let lines: Vec<String> = errors.iter().map(|error| format!("\n  {error}")).collect();
                Err(Error::Dataset(format!("{n} pictures cannot be read:{}", lines.concat())))
            }
        }
    }

    /// Pixels of picture `i` at the dataset's resolution: H × W × 3 numbers in [−1, 1], on white where it is transparent.
    ///
    /// The format is told from the content, and the camera's orientation is respected.
    ///
    /// # Errors
    /// [`Error::Picture`] where the file is damaged, no picture or an animation; [`Error::Dataset`] where `i` is out of range.
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
        row.chunks_exact_mut(3).for_each(<[f32]>::reverse); // so turn it back
    }
}

/// The files of a folder, sorted by name.
pub(crate) fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = entries(folder)?;
    files.retain(|path| path.is_file());
    Ok(files)
}

/// What a folder holds, sorted by name, since the order in which a file system lists it is its own.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let fail = || Error::io("read dataset folder", folder);
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(fail())? {
        let path = entry.map_err(fail())?.path();
        // macOS leaves `._x.png` beside x.png on foreign disks; it is no picture.
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

pub(crate) fn is_one_of(path: &Path, extensions: &[&str]) -> bool {
    path.extension()
        .is_some_and(|extension| extensions.iter().any(|known| extension.eq_ignore_ascii_case(known)))
}

/// What a path is where it is no file.
fn why_no_file(path: &Path) -> Option<Why> {
    match path {
        _ if path.is_file() => None,
        _ if path.is_dir() => Some(Why::Folder),
        _ if path.is_symlink() => Some(Why::BrokenLink),
        _ => Some(Why::NoPicture),
    }
}

/// What is in a folder instead of pictures, and what to do.
fn no_pictures(folder: &Path, left_out: &[LeftOut]) -> Error {
    let here = folder.display();
    let folders = left_out.iter().filter(|left| left.why == Why::Folder).map(|left| left.path.as_path());
    let folders: Vec<&Path> = folders.collect();
    // kohya's trainers take `10_cat` for ten repeats of the pictures in it
    let repeats = |path: &&Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.split_once('_').is_some_and(|(n, _)| n.parse::<u32>().is_ok())
    };
    let message = if folders.is_empty() {
        format!("{here} has no file that ends in {}", PICTURE_EXTENSIONS.join(", "))
    } else if folders.iter().all(repeats) {
        format!(
            "{here} is laid out for kohya's trainers, with the pictures in {}; name one of these folders, or each in a \
             [[feature]] of its own. The number before _ is not read: train.steps says how long to train",
            names(&folders)
        )
    } else {
        format!(
            "{here} has only folders in place of pictures ({}), which are not looked into; name the one that has them",
            names(&folders)
        )
    };
    Error::Dataset(format!("no pictures: {message}"))
}

/// `1 file`, `2 files`.
fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// The names of files, comma separated; a long list is cut.
fn names(paths: &[&Path]) -> String {
    const SHOWN: usize = 8;
    let name = |path: &&Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut text = paths.iter().take(SHOWN).map(name).collect::<Vec<_>>().join(", ");
    if paths.len() > SHOWN {
        text += &format!(" and {} more", paths.len() - SHOWN);
    }
    text
}
