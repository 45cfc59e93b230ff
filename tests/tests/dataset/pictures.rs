//! Pictures and captions.

use std::fs;
use std::path::Path;

use image::{ImageFormat, Rgb, RgbImage, Rgba, RgbaImage};
use strata_trainer::{Dataset, DatasetConfig, Resolution, mirror};
use tempfile::{TempDir, tempdir};

use crate::support::{put, refused};

fn config(folder: &Path) -> DatasetConfig {
    DatasetConfig {
        folder: folder.into(),
        resolution: Resolution { width: 16, height: 8 },
        ..DatasetConfig::default()
    }
}

/// Left half red, right half blue, a column of green on the far left.
fn picture(width: u32, height: u32) -> RgbImage {
    let color = |x: u32| match x {
        0 => [0, 255, 0],
        x if x < width / 2 => [255, 0, 0],
        _ => [0, 0, 255],
    };
    RgbImage::from_fn(width, height, |x, _| Rgb(color(x)))
}

fn folder() -> TempDir {
    let folder = tempdir().unwrap();
    for (name, format) in [
        ("b.png", ImageFormat::Png),
        ("a.bmp", ImageFormat::Bmp),
        ("c.JPG", ImageFormat::Jpeg),
        ("d.webp", ImageFormat::WebP),
    ] {
        picture(32, 16).save_with_format(folder.path().join(name), format).unwrap();
        put(folder.path(), &format!("{}.txt", &name[..1]), format!("  a picture of {name} \nsecond line\n"));
    }
    put(folder.path(), ".hidden.png", "");
    put(folder.path(), "notes.md", "");
    fs::create_dir(folder.path().join("sub")).unwrap();
    folder
}

#[test]
fn pictures_are_listed_by_name_with_their_captions() {
    let folder = folder();
    let dataset = Dataset::open(&config(folder.path())).unwrap();
    let captions: Vec<&str> = dataset.pictures().iter().map(|p| p.caption.as_str()).collect();
    assert_eq!(
        captions,
        ["a picture of a.bmp", "a picture of b.png", "a picture of c.JPG", "a picture of d.webp"]
    );
    assert_eq!(dataset.len(), 4);
    refused(dataset.load_rgb(4), &["picture 4 of 4"]);
    for i in 0..4 {
        let rgb = dataset.load_rgb(i).unwrap();
        assert_eq!(rgb.len(), 8 * 16 * 3);
        assert!(rgb.iter().all(|v| (-1.0..=1.0).contains(v)));
        // far from the edges the colours are pure, JPEG's losses aside
        let at = |x: usize| &rgb[(4 * 16 + x) * 3..][..3];
        assert!(at(4)[0] > 0.9 && at(4)[2] < -0.9, "red on the left of {i}: {:?}", at(4));
        assert!(at(12)[2] > 0.9 && at(12)[0] < -0.9, "blue on the right of {i}: {:?}", at(12));
    }
}

#[test]
fn pictures_are_cut_or_squeezed() {
    let folder = tempdir().unwrap();
    // 32 × 32 with its colours in the left and right eighth
    let wide =
        RgbImage::from_fn(
            64,
            8,
            |x, _| if (24..40).contains(&x) { Rgb([255, 255, 255]) } else { Rgb([0, 0, 0]) },
        );
    wide.save(folder.path().join("x.png")).unwrap();
    put(folder.path(), "x.txt", "x");
    let mean = |center_crop: bool| {
        let rgb = Dataset::open(&DatasetConfig { center_crop, ..config(folder.path()) })
            .unwrap()
            .load_rgb(0)
            .unwrap();
        rgb.iter().sum::<f32>() / rgb.len() as f32
    };
    assert!(mean(true) > 0.95, "the middle alone is white: {}", mean(true));
    assert!((mean(false) + 0.5).abs() < 0.05, "a quarter is white: {}", mean(false));
}

#[test]
fn transparency_is_white_and_mirrors_turn_pixels_not_colours() {
    let folder = tempdir().unwrap();
    let ghost = RgbaImage::from_fn(16, 8, |x, _| Rgba([0, 0, 0, if x < 8 { 0 } else { 255 }]));
    ghost.save(folder.path().join("x.png")).unwrap();
    put(folder.path(), "x.txt", "\u{feff}x");
    let dataset = Dataset::open(&config(folder.path())).unwrap();
    assert_eq!(dataset.pictures()[0].caption, "x", "without the byte order mark");
    let mut rgb = dataset.load_rgb(0).unwrap();
    assert_eq!((rgb[0], rgb[15 * 3]), (1.0, -1.0));
    mirror(&mut rgb, 16);
    assert_eq!((rgb[0], rgb[15 * 3]), (-1.0, 1.0));
    let mut colours = vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    mirror(&mut colours, 2);
    assert_eq!(colours, [4.0, 5.0, 6.0, 1.0, 2.0, 3.0]);
}

#[test]
fn folders_that_cannot_be_learned_from_are_refused() {
    let folder = tempdir().unwrap();
    let path = folder.path();
    let open = || Dataset::open(&config(path));
    refused(Dataset::open(&config(&path.join("none"))), &["none"]);
    refused(open(), &["no pictures", "png"]);
    picture(16, 8).save(path.join("a.png")).unwrap();
    refused(open(), &["missing caption", "a.png", "a.txt"]);
    put(path, "a.txt", " \nsecond line");
    refused(open(), &["a.txt", "empty"]);
    put(path, "a.txt", [b'c', 0xff, b'x']);
    refused(open(), &["a.txt", "byte 1", "UTF-8"]);
    put(path, "a.txt", "a cat");
    assert_eq!(open().unwrap().len(), 1);
    put(path, "b.gif", "");
    refused(open(), &["b.gif", "convert"]);
    fs::remove_file(path.join("b.gif")).unwrap();
    let odd = DatasetConfig { resolution: Resolution { width: 10, height: 8 }, ..config(path) };
    refused(Dataset::open(&odd), &["dataset.resolution", "10"]);
}

#[test]
fn damaged_pictures_are_named() {
    let folder = tempdir().unwrap();
    let path = folder.path();
    for (name, format) in [
        ("a.png", ImageFormat::Png),
        ("b.jpg", ImageFormat::Jpeg),
        ("c.webp", ImageFormat::WebP),
        ("d.bmp", ImageFormat::Bmp),
    ] {
        picture(40, 40).save_with_format(path.join(name), format).unwrap();
        let whole = fs::read(path.join(name)).unwrap();
        put(path, name, &whole[..whole.len() * 2 / 3]);
        put(path, &format!("{}.txt", &name[..1]), "x");
    }
    put(path, "e.png", "not a picture");
    put(path, "e.txt", "x");
    put(path, "f.png", "");
    put(path, "f.txt", "x");
    let dataset = Dataset::open(&config(path)).unwrap();
    for (i, name) in ["a.png", "b.jpg", "c.webp", "d.bmp", "e.png", "f.png"].iter().enumerate() {
        refused(dataset.load_rgb(i), &[name, "not a readable picture"]);
    }
}
