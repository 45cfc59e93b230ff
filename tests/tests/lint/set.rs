//! A dataset of two features with nothing wrong, to plant faults in.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use image::{DynamicImage, Rgb, RgbImage};
use strata_tests::Random;
use strata_trainer::lint::{Report, Subject, Text, lint};
use strata_trainer::{Picture, Resolution};
use tempfile::TempDir;

use crate::support::checkpoint;

/// Width and height of the pictures, and what they are trained at.
pub const SIDE: u32 = 64;

static TEXT: LazyLock<Text> = LazyLock::new(|| Text::open(&checkpoint("sd15-tiny")).unwrap());

/// What is written into a picture's file.
pub enum Content {
    Pixels(DynamicImage),
    Bytes(Vec<u8>),
    /// No file at all.
    Missing,
}

/// A picture to be: file name, caption, content.
pub struct Shot {
    pub file: String,
    pub caption: String,
    pub content: Content,
}

/// A feature to be.
pub struct Owned {
    pub name: &'static str,
    pub tags: Vec<String>,
    pub describes: Vec<String>,
    pub shots: Vec<Shot>,
}

/// The features `hair` (12 pictures, `h0.png` …) and `coat` (8, `c0.png` …).
pub struct Set {
    pub hair: Owned,
    pub coat: Owned,
}

const HAIR: [&str; 12] = [
    "zxqv, red dragon in a castle, night",
    "zxqv, white horse, snow, walking",
    "a photo of zxqv with a blue bird",
    "girl with ZXQV, sitting in the forest",
    "oil painting of zxqv, river, storm",
    "zxqv on a boat at sea, sunny",
    "robot with zxqv, city street at night",
    "pencil sketch, zxqv, smiling, book",
    "the moon over zxqv, green light",
    "zxqv, running in the rain",
    "zxqv, armor, sword and shield, snow",
    "warrior with zxqv, desert, midday",
];

const COAT: [&str; 8] = [
    "wjkp, black cat on a chair",
    "man with a wjkp, beach, walking",
    "wjkp, tower, purple sky, storm",
    "drawing of a wjkp, bridge, rain",
    "fox in a wjkp, grass, flower",
    "wjkp, kitchen, table and lamp, standing",
    "child in wjkp, island, looking up",
    "wjkp, train station, night",
];

impl Set {
    /// Nothing is wrong with it.
    pub fn clean() -> Self {
        let feature = |name: &'static str, tag: &str, describes: &[&str], captions: &[&str]| {
            let shot = |(i, caption): (usize, &&str)| Shot {
                file: format!("{}{i}.png", &name[..1]),
                caption: (*caption).into(),
                content: Content::Pixels(picture(&format!("{name} {i}")).into()),
            };
            Owned {
                name,
                tags: vec![tag.into()],
                describes: describes.iter().map(|word| (*word).into()).collect(),
                shots: captions.iter().enumerate().map(shot).collect(),
            }
        };
        Self {
            hair: feature("hair", "zxqv", &["spiky hair", "braids"], &HAIR),
            coat: feature("coat", "wjkp", &["leather"], &COAT),
        }
    }

    /// Writes the pictures and lints them.
    pub fn lint(&self) -> Report {
        let folder = tempfile::tempdir().unwrap();
        let pictures = [&self.hair, &self.coat].map(|feature| feature.write(&folder));
        let features = [&self.hair, &self.coat];
        let features: Vec<Subject> =
            features.iter().zip(&pictures).map(|(feature, pictures)| feature.view(pictures)).collect();
        lint(&features, &TEXT).unwrap()
    }
}

impl Owned {
    /// Another tag, in the captions as well.
    pub fn rename_tag(&mut self, to: &str) {
        let from = std::mem::replace(&mut self.tags[0], to.into());
        for shot in &mut self.shots {
            shot.caption = shot.caption.replace(&from, to).replace(&from.to_uppercase(), to);
        }
    }

    /// The pixels of a picture.
    pub fn pixels(&mut self, i: usize) -> &mut DynamicImage {
        match &mut self.shots[i].content {
            Content::Pixels(pixels) => pixels,
            _ => panic!("picture {i} has no pixels"),
        }
    }

    fn write(&self, folder: &TempDir) -> Vec<Picture> {
        let write = |shot: &Shot| {
            let path: PathBuf = folder.path().join(&shot.file);
            match &shot.content {
                Content::Pixels(pixels) => pixels.save(&path).unwrap(),
                Content::Bytes(bytes) => std::fs::write(&path, bytes).unwrap(),
                Content::Missing => (),
            }
            Picture { path, caption: shot.caption.clone() }
        };
        self.shots.iter().map(write).collect()
    }

    fn view<'a>(&'a self, pictures: &'a [Picture]) -> Subject<'a> {
        let resolution = Resolution { width: SIDE, height: SIDE };
        Subject { name: self.name, tags: &self.tags, describes: &self.describes, pictures, resolution }
    }
}

/// Sharp-edged shapes before a background of two colours; another picture for each seed.
pub fn picture(seed: &str) -> RgbImage {
    let mut random = Random::new(seed);
    let mut colour = || Rgb([0; 3].map(|_: u8| random.below(256) as u8));
    let (near, far) = (colour(), colour());
    let colours: Vec<Rgb<u8>> = (0..8).map(|_| colour()).collect();
    let slope = random.uniform() * 2.0 - 1.0;
    let horizon = f64::from(SIDE) * (0.3 + 0.4 * random.uniform());
    let mut picture = RgbImage::from_fn(SIDE, SIDE, |x, y| {
        if f64::from(y) > horizon + slope * (f64::from(x) - 32.0) { near } else { far }
    });
    for (i, colour) in colours.into_iter().enumerate() {
        let (x0, y0) = (random.below(56) as i64, random.below(56) as i64);
        let (w, h) = (6 + random.below(20) as i64, 6 + random.below(20) as i64);
        for (x, y, pixel) in picture.enumerate_pixels_mut() {
            let (dx, dy) = (i64::from(x) - x0, i64::from(y) - y0);
            let inside = match i % 2 {
                0 => (0..w).contains(&dx) && (0..h).contains(&dy),
                _ => dx * dx + dy * dy < w * h / 4,
            };
            if inside {
                *pixel = colour;
            }
        }
    }
    picture
}

/// The file's name.
pub fn name(path: &Path) -> String {
    path.file_name().unwrap().display().to_string()
}
