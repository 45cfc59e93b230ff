//! Pictures and captions.

use std::fs;
use std::path::Path;

use image::codecs::gif::GifEncoder;
use image::{Frame, ImageFormat, Rgb, RgbImage, Rgba, RgbaImage};
use strata_trainer::{Dataset, DatasetConfig, Resolution, Why, mirror};
use tempfile::{TempDir, tempdir};
use tiff::encoder::TiffEncoder;
use tiff::encoder::colortype::RGB8;

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

const FORMATS: [(&str, ImageFormat); 12] = [
    ("b.png", ImageFormat::Png),
    ("a.bmp", ImageFormat::Bmp),
    ("c.JPG", ImageFormat::Jpeg),
    ("d.webp", ImageFormat::WebP),
    ("e.jfif", ImageFormat::Jpeg),
    ("f.jpe", ImageFormat::Jpeg),
    ("g.tga", ImageFormat::Tga),
    ("h.ppm", ImageFormat::Pnm),
    ("i.pnm", ImageFormat::Pnm),
    ("j.qoi", ImageFormat::Qoi),
    ("k.tif", ImageFormat::Tiff),
    ("l.gif", ImageFormat::Gif),
];

fn folder() -> TempDir {
    let folder = tempdir().unwrap();
    for (name, format) in FORMATS {
        picture(32, 16).save_with_format(folder.path().join(name), format).unwrap();
        put(folder.path(), &format!("{}.txt", &name[..1]), format!("  a picture of {name} \r\n \r\n"));
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
    let mut names = FORMATS.map(|(name, _)| format!("a picture of {name}"));
    names.sort();
    assert_eq!(captions, names);
    assert_eq!(dataset.len(), FORMATS.len());
    dataset.check().unwrap();
    refused(dataset.load_rgb(12), &["picture 12 of 12"]);
    for i in 0..dataset.len() {
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
    // all that is wrong, together
    for name in ["b.png", "c.png", "d.png"] {
        picture(16, 8).save(path.join(name)).unwrap();
    }
    put(path, "b.txt", b"caf\xe9");
    refused(
        open(),
        &[
            "some pictures and captions cannot be used:\n",
            "a.txt: the first line is empty",
            "b.txt: line 1",
            "0xe9",
            "2 pictures have no .txt beside them (c.png, d.png)",
        ],
    );
    for name in ["b.png", "b.txt", "c.png", "d.png"] {
        fs::remove_file(path.join(name)).unwrap();
    }
    put(path, "a.txt", "a cat");
    assert_eq!(open().unwrap().len(), 1);
    put(path, "b.avif", "");
    refused(open(), &["b.avif", "convert"]);
    fs::remove_file(path.join("b.avif")).unwrap();
    let odd = DatasetConfig { resolution: Resolution { width: 10, height: 8 }, ..config(path) };
    refused(Dataset::open(&odd), &["dataset.resolution", "10"]);
}

#[test]
fn what_is_not_learned_from_is_named() {
    let folder = tempdir().unwrap();
    let path = folder.path();
    for name in ["a.png", "same.png", "same.jpg"] {
        picture(16, 8).save(path.join(name)).unwrap();
    }
    put(path, "a.txt", "tag1,\r\ntag2,\r\ntag3, tag4");
    put(path, "same.txt", "x\n\n");
    let clean = Dataset::open(&config(path)).unwrap();
    let here = path.display();
    assert_eq!(clean.pictures()[0].caption, "tag1,");
    assert_eq!(
        clean.summary(),
        format!(
            "3 pictures with 2 captions, since same.jpg, same.png share theirs, from {here}; not used: all but the first \
             line of 1 caption (a.txt)"
        )
    );
    fs::remove_file(path.join("same.jpg")).unwrap();
    put(path, "a.txt", "tag1");
    assert_eq!(
        Dataset::open(&config(path)).unwrap().summary(),
        format!("2 pictures with captions from {here}")
    );

    fs::create_dir(path.join("sub.png")).unwrap();
    for name in ["a.npz", "notes.md", "z.json", "lone.txt", ".hidden"] {
        put(path, name, "");
    }
    let mut expected = vec![
        ("a.npz", Why::NoPicture),
        ("lone.txt", Why::LoneCaption),
        ("notes.md", Why::NoPicture),
        ("sub.png", Why::Folder),
        ("z.json", Why::NoPicture),
    ];
    let mut text = "1 folder (sub.png), ".to_owned();
    if cfg!(unix) {
        #[cfg(unix)]
        std::os::unix::fs::symlink("/no/such/picture.png", path.join("link.png")).unwrap();
        expected.insert(1, ("link.png", Why::BrokenLink));
        text += "1 broken link (link.png), ";
    }
    let dataset = Dataset::open(&config(path)).unwrap();
    let found: Vec<(&str, Why)> = dataset
        .left_out()
        .iter()
        .map(|left| (left.path.file_name().unwrap().to_str().unwrap(), left.why))
        .collect();
    assert_eq!(found, expected);
    assert_eq!(
        dataset.summary(),
        format!(
            "2 pictures with captions from {here}; not used: {text}3 files (a.npz, notes.md, z.json), 1 caption without a \
             picture (lone.txt)"
        )
    );
}

#[test]
fn captions_are_found_whatever_the_case_of_their_extension() {
    let folder = tempdir().unwrap();
    let path = folder.path();
    for name in ["5.PNG", "6.png"] {
        picture(16, 8).save_with_format(path.join(name), ImageFormat::Png).unwrap();
    }
    put(path, "5.TXT", "five");
    put(path, "6.Txt", "another");
    put(path, "6.txt", "six");
    let captions = |extension: &str| -> Vec<String> {
        let config = DatasetConfig { caption_extension: extension.into(), ..config(path) };
        Dataset::open(&config).unwrap().pictures().iter().map(|p| p.caption.clone()).collect()
    };
    assert_eq!(captions(".txt"), ["five", "six"]);
    for (name, text) in [("5.booru.txt", "5 b"), ("6.Booru.Txt", "6 b")] {
        put(path, name, text);
    }
    assert_eq!(captions(".booru.txt"), ["5 b", "6 b"]);
}

#[test]
fn pages_after_the_first_are_said() {
    let folder = tempdir().unwrap();
    let path = folder.path();
    let mut pages = TiffEncoder::new(fs::File::create(path.join("a.tif")).unwrap()).unwrap();
    for _ in 0..2 {
        pages.write_image::<RGB8>(16, 8, picture(16, 8).as_raw()).unwrap();
    }
    picture(16, 8).save(path.join("b.tif")).unwrap();
    for name in ["a.txt", "b.txt"] {
        put(path, name, "x");
    }
    let dataset = Dataset::open(&config(path)).unwrap();
    assert!(
        dataset.summary().ends_with("; not used: all but the first page of 1 picture (a.tif)"),
        "{}",
        dataset.summary()
    );
    dataset.check().unwrap();
}

#[test]
fn folders_with_pictures_only_in_folders_are_named() {
    let folder = tempdir().unwrap();
    let path = folder.path();
    fs::create_dir(path.join("10_cat dog")).unwrap();
    fs::create_dir(path.join("5_hat")).unwrap();
    refused(Dataset::open(&config(path)), &["no pictures", "kohya", "10_cat dog, 5_hat", "[[feature]]"]);
    fs::create_dir(path.join("more_hats")).unwrap();
    let message = refused(Dataset::open(&config(path)), &["no pictures", "10_cat dog, 5_hat, more_hats"]);
    assert!(!message.contains("kohya"), "{message}");
}

#[test]
fn captions_are_read_or_refused_by_their_encoding() {
    let folder = tempdir().unwrap();
    let path = folder.path();
    picture(16, 8).save(path.join("a.png")).unwrap();
    let open = |bytes: &[u8]| {
        put(path, "a.txt", bytes);
        Dataset::open(&config(path)).map(|dataset| dataset.pictures()[0].caption.clone())
    };
    let text = "a café, 猫\nmore";
    let little = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let big = |text: &str| text.encode_utf16().flat_map(u16::to_be_bytes).collect::<Vec<u8>>();
    let marked = format!("\u{feff}{text}");
    for bytes in [text.as_bytes(), marked.as_bytes(), &little(&marked), &big(&marked)] {
        assert_eq!(open(bytes).unwrap(), "a café, 猫");
    }
    assert_eq!(open(b"a cat\r\n").unwrap(), "a cat");
    refused(open(&little("a cat")), &["a.txt: line 1", "UTF-16 LE without", "save it as UTF-8"]);
    refused(open(&big("a cat")), &["UTF-16 BE without"]);
    refused(open(&little(&marked)[..9]), &["a.txt: is damaged UTF-16 LE"]);
    refused(
        open(b"a cat,\nno caf\xe9"),
        &["a.txt: line 2: byte 13 (0xe9)", "'é' in Latin-1", "save it as UTF-8"],
    );
    refused(open(b"\xef\xbb\xbfcaf\xe9"), &["line 1: byte 6 (0xe9)"]);
    let message = refused(open(b"c\x80x"), &["line 1: byte 1 (0x80) is not UTF-8;"]);
    assert!(!message.contains("Latin"), "{message}");
}

#[test]
fn animations_are_refused() {
    let folder = tempdir().unwrap();
    let path = folder.path();
    let frames =
        [Rgba([255, 0, 0, 255]), Rgba([0, 0, 255, 255])].map(|c| Frame::new(RgbaImage::from_pixel(8, 8, c)));
    let gif = fs::File::create(path.join("a.gif")).unwrap();
    GifEncoder::new(gif).encode_frames(frames).unwrap();
    put(path, "b.png", include_bytes!("animated.png"));
    put(path, "c.webp", include_bytes!("animated.webp"));
    for name in ["a.txt", "b.txt", "c.txt"] {
        put(path, name, "x");
    }
    let dataset = Dataset::open(&config(path)).unwrap();
    for (i, name) in ["a.gif", "b.png", "c.webp"].iter().enumerate() {
        refused(dataset.load_rgb(i), &[name, "animation", "frames"]);
    }
}

#[test]
fn damaged_pictures_are_named() {
    let folder = tempdir().unwrap();
    let path = folder.path();
    for (name, format) in FORMATS {
        picture(40, 40).save_with_format(path.join(name), format).unwrap();
        let whole = fs::read(path.join(name)).unwrap();
        put(path, name, &whole[..whole.len() * 2 / 3]);
        put(path, &format!("{}.txt", &name[..1]), "x");
    }
    put(path, "y.png", "not a picture");
    put(path, "z.png", "");
    picture(16, 8).save(path.join("x.png")).unwrap();
    for name in ["x.txt", "y.txt", "z.txt"] {
        put(path, name, "x");
    }
    let dataset = Dataset::open(&config(path)).unwrap();
    let mut message = refused(dataset.check(), &["14 pictures cannot be read:\n", "a.bmp", "z.png"]);
    for (i, picture) in dataset.pictures().iter().enumerate().filter(|(_, p)| !p.path.ends_with("x.png")) {
        let name = picture.path.file_name().unwrap().to_str().unwrap();
        let one = refused(dataset.load_rgb(i), &[name, "not a readable picture"]);
        assert!(message.contains(&one), "all are listed together: {message}");
        fs::remove_file(&picture.path).unwrap();
    }
    put(path, "w.png", "");
    put(path, "w.txt", "x");
    message = refused(Dataset::open(&config(path)).unwrap().check(), &["w.png: not a readable picture"]);
    assert!(!message.contains("pictures cannot"), "{message}");
}
