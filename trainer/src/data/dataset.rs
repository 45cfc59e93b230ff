//! A dataset: one folder of pictures, each with a caption in a text file beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use strata_model::counted;
use strata_model::progress::bar;

use crate::config::{DatasetConfig, Resolution};
use crate::data::caption::{CaptionFiles, read_caption};
use crate::data::picture::{Memory, decode, fit, has_further_pages, on_white};
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
    /// What follows the first page of a picture.
    FurtherPages,
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
    /// caption is missing, empty or not in UTF-8 or UTF-16; all of these together.
    pub fn open(config: &DatasetConfig) -> Result<Self> {
        config.validate()?;
        let (files, others): (Vec<_>, Vec<_>) =
            entries(&config.folder)?.into_iter().partition(|path| path.is_file());
        let captions = CaptionFiles::among(&files, &config.caption_extension);
        let mut left_out: Vec<LeftOut> =
            others.into_iter().map(|path| LeftOut { why: why_no_file(&path), path }).collect();
        let mut leave_out = |path: &Path, why| left_out.push(LeftOut { path: path.to_owned(), why });
        let (mut pictures, mut used, mut bare) = (Vec::new(), BTreeSet::new(), Vec::new());
        let mut errors = Vec::new();
        for path in &files {
            if is_one_of(path, &OTHER_PICTURES) {
                let name = path.display();
                let readable = PICTURE_EXTENSIONS.join(", ");
                errors.push(Error::Dataset(format!(
                    "{name}: only {readable} can be read; convert it, or remove it"
                )));
            } else if is_one_of(path, &PICTURE_EXTENSIONS) {
                let Some(file) = captions.of(path) else {
                    bare.push(path.as_path());
                    continue;
                };
                let first = used.insert(file);
                if has_further_pages(path) {
                    leave_out(path, Why::FurtherPages);
                }
                match read_caption(file) {
                    Ok(caption) => {
                        if first && caption.goes_on {
                            leave_out(file, Why::FurtherLines);
                        }
                        pictures.push(Picture { path: path.clone(), caption: caption.text });
                    }
                    Err(error) if first => errors.push(error),
                    Err(_) => {}
                }
            }
        }
        for path in files.iter().filter(|path| !is_picture(path) && !used.contains(path.as_path())) {
            leave_out(path, if captions.is_one(path) { Why::LoneCaption } else { Why::NoPicture });
        }
        if !bare.is_empty() {
            errors.push(captions.missing(&bare));
        }
        all_of(errors, "some pictures and captions cannot be used:")?;
        left_out.sort_by(|a, b| a.path.cmp(&b.path));
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
        let mut text =
            format!("{} with {with} from {}", counted(self.len(), "picture"), self.folder.display());
        let mut by_why: BTreeMap<Why, Vec<&Path>> = BTreeMap::new();
        for left in &self.left_out {
            by_why.entry(left.why).or_default().push(&left.path);
        }
        let parts = by_why.iter().map(|(why, paths)| {
            let n = paths.len();
            let what = match why {
                Why::Folder => counted(n, "folder"),
                Why::BrokenLink => counted(n, "broken link"),
                Why::NoPicture => counted(n, "file"),
                Why::LoneCaption => format!("{} without a picture", counted(n, "caption")),
                Why::FurtherLines => format!("all but the first line of {}", counted(n, "caption")),
                Why::FurtherPages => format!("all but the first page of {}", counted(n, "picture")),
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
        let errors: Vec<Error> = self.pictures.par_iter().filter_map(look).collect();
        progress.finish_and_clear();
        let heading = format!("{} pictures cannot be read:", errors.len());
        all_of(errors, &heading)
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

/// What is wrong, all in one error: under a heading, where it is more than one thing.
fn all_of(mut errors: Vec<Error>, heading: &str) -> Result<()> {
    match errors.len() {
        0 => Ok(()),
        1 => Err(errors.remove(0)),
        _ => {
            let lines: Vec<String> = errors.iter().map(|error| format!("\n  {error}")).collect();
            Err(Error::Dataset(format!("{heading}{}", lines.concat())))
        }
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

/// Whether a file is meant as a picture, by its name.
fn is_picture(path: &Path) -> bool {
    is_one_of(path, &PICTURE_EXTENSIONS) || is_one_of(path, &OTHER_PICTURES)
}

/// What a path is that is no file.
fn why_no_file(path: &Path) -> Why {
    match path {
        _ if path.is_dir() => Why::Folder,
        _ if path.is_symlink() => Why::BrokenLink,
        _ => Why::NoPicture,
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

/// The names of files, comma separated; a long list is cut.
pub(crate) fn names(paths: &[&Path]) -> String {
    const SHOWN: usize = 8;
    let name = |path: &&Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut text = paths.iter().take(SHOWN).map(name).collect::<Vec<_>>().join(", ");
    if paths.len() > SHOWN {
        text += &format!(" and {} more", paths.len() - SHOWN);
    }
    text
}
