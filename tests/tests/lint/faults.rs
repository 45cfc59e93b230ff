//! Faults, one at a time: each is found with its code and its files, and nothing else is.

use std::io::Cursor;

use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, ImageFormat, Rgb, RgbImage, imageops};
use strata_trainer::lint::{Finding, Report};

use super::set::{Content, SIDE, Set, name};

/// A finding, told by what a test can know: code, feature, files.
type Told<'a> = (&'a str, &'a str, &'a [&'a str]);

/// A fault: what is done to the clean set, what is found (the fault first, then what it brings along inevitably), and
/// what the first message says.
type Fault = (&'static str, fn(&mut Set), &'static [Told<'static>], &'static [&'static str]);

const FAULTS: &[Fault] = &[
    (
        "a caption without the tag",
        |set| set.hair.shots[1].caption = "white horse, snow, walking".into(),
        &[("missing-tag", "hair", &["h1.png"])],
        &["`zxqv`"],
    ),
    (
        "the tag only as the end of another word",
        |set| set.hair.shots[1].caption = "vqxzxqv, white horse, snow, walking".into(),
        &[("missing-tag", "hair", &["h1.png"])],
        &["`zxqv`"],
    ),
    (
        "the tag only in the plural",
        |set| set.hair.shots[1].caption = "zxqvs, white horse, snow, walking".into(),
        &[("missing-tag", "hair", &["h1.png"]), ("tag-word", "hair", &["h1.png"])],
        &["`zxqv`"],
    ),
    (
        "another feature's tag",
        |set| set.hair.shots[2].caption += ", wjkp",
        &[("foreign-tag", "hair", &["h2.png"])],
        &["`wjkp`", "`coat`"],
    ),
    (
        "the tag in the second chunk",
        |set| set.hair.shots[3].caption = format!("{}zxqv", "the ".repeat(72)),
        &[("long-caption", "hair", &["h3.png"])],
        &["75", "chunks"],
    ),
    (
        "a long caption",
        |set| set.hair.shots[3].caption += &" the".repeat(80),
        &[("long-caption", "hair", &["h3.png"])],
        &["75"],
    ),
    (
        "an empty caption",
        |set| set.coat.shots[3].caption = " ".into(),
        &[("empty-caption", "coat", &["c3.png"])],
        &[],
    ),
    (
        "a tag of one letter",
        |set| set.coat.tags.push("a".into()),
        &[("unusable-tag", "coat", &[])],
        &["\"a\"", "nearly every text"],
    ),
    ("an empty tag", |set| set.coat.tags.push(" ".into()), &[("empty-tag", "coat", &[])], &["no letter"]),
    (
        "no tag", // so that it is a word like any other
        |set| set.coat.tags.clear(),
        &[("empty-tag", "coat", &[]), ("constant-word", "coat", &[])],
        &["no tag"],
    ),
    ("one tag twice", |set| set.coat.rename_tag("Zxqv"), &[("same-tag", "hair", &[])], &["`zxqv`", "`coat`"]),
    (
        "a tag that begins another",
        |set| set.coat.rename_tag("zxqv wolf"),
        &[("contained-tag", "hair", &[])],
        &["`zxqv` is the beginning of `zxqv wolf`", "`coat`"],
    ),
    (
        "a tag within another",
        |set| set.coat.rename_tag("wjkp-zxqv"),
        &[("contained-tag", "hair", &[])],
        &["`zxqv` is contained in `wjkp-zxqv`", "`coat`"],
    ),
    (
        "a picture cut off",
        |set| {
            let mut png = Cursor::new(Vec::new());
            set.hair.pixels(5).write_to(&mut png, ImageFormat::Png).unwrap();
            let mut bytes = png.into_inner();
            bytes.truncate(bytes.len() / 2);
            set.hair.shots[5].content = Content::Bytes(bytes);
        },
        &[("corrupt-picture", "hair", &["h5.png"])],
        &[],
    ),
    (
        "a picture that is gone",
        |set| set.hair.shots[5].content = Content::Missing,
        &[("corrupt-picture", "hair", &["h5.png"])],
        &[],
    ),
    (
        "a phrase that describes the feature",
        |set| set.hair.shots[0].caption += ", Spiky Hair",
        &[("describing-word", "hair", &["h0.png"])],
        &["`spiky hair`"],
    ),
    (
        "a word that describes the feature, in the singular",
        |set| set.hair.shots[0].caption += ", one braid",
        &[("describing-word", "hair", &["h0.png"])],
        &["`braids`"],
    ),
    (
        "a word of the tag by itself",
        |set| {
            set.hair.rename_tag("zxqv wolf");
            set.hair.shots[4].caption += " with a wolf";
        },
        &[("tag-word", "hair", &["h4.png"])],
        &["`wolf`"],
    ),
    (
        "a word in nearly all captions",
        |set| set.coat.shots[1..].iter_mut().for_each(|shot| shot.caption += ", mountain"),
        &[("constant-word", "coat", &[])],
        &["`mountain` in 7 of 8"],
    ),
    (
        "captions that say little",
        |set| {
            let words = [
                "red cat",
                "cat, red",
                "blue cat",
                "cat, blue",
                "red dog",
                "dog, red",
                "blue dog",
                "dog, blue",
            ];
            set.coat
                .shots
                .iter_mut()
                .zip(words)
                .for_each(|(shot, words)| shot.caption = format!("wjkp, {words}"));
        },
        &[("little-variety", "coat", &[])],
        &["4.0", "8"],
    ),
    (
        "a caption twice",
        |set| set.hair.shots[7].caption = set.hair.shots[2].caption.to_uppercase(),
        &[("duplicate-caption", "hair", &["h2.png", "h7.png"])],
        &[],
    ),
    (
        "a tag that is a word",
        |set| set.hair.rename_tag("dog"),
        &[("vocabulary-tag", "hair", &[])],
        &["`dog`", " dog</w>; nearest words "],
    ),
    (
        "a tag made of words",
        |set| set.coat.rename_tag("coat_style_a"),
        &[("ordinary-tag", "coat", &[])],
        &["`coat_style_a`", "draw: style (", " style</w>", " a</w>; nearest words "],
    ),
    (
        "too few pictures",
        |set| {
            set.hair.shots.truncate(8);
            set.coat.shots.truncate(4);
        },
        &[("few-pictures", "coat", &[])],
        &["4 picture", "5 or more"],
    ),
    (
        "far fewer pictures than the other feature",
        |set| set.coat.shots.truncate(5),
        &[("imbalance", "coat", &[])],
        &["5 picture", "12 of feature `hair`"],
    ),
    (
        "a small picture",
        |set| *set.hair.pixels(6) = set.hair.pixels(6).crop_imm(0, 0, SIDE, 60),
        &[("small-picture", "hair", &["h6.png"])],
        &["64 × 64"],
    ),
    (
        "a blurred picture",
        |set| *set.hair.pixels(6) = set.hair.pixels(6).blur(3.0),
        &[("blurred-picture", "hair", &["h6.png"])],
        &[],
    ),
    (
        "a picture with holes",
        |set| {
            let mut ghost = set.coat.pixels(2).to_rgba8();
            ghost
                .enumerate_pixels_mut()
                .filter(|(x, y, _)| x + y < 12)
                .for_each(|(_, _, pixel)| pixel.0[3] = 0);
            *set.coat.pixels(2) = ghost.into();
        },
        &[("transparency", "coat", &["c2.png"])],
        &["white"],
    ),
    (
        "one background",
        |set| (0..7).for_each(|i| frame(set.coat.pixels(i), [240, 240, 245 - i as u8])),
        &[("one-background", "coat", &[])],
        &["7 of 8"],
    ),
    (
        "a picture twice, in two formats",
        |set| {
            set.coat.shots[6].file = "c6.bmp".into();
            *set.coat.pixels(6) = set.coat.pixels(1).clone();
        },
        &[("duplicate-picture", "coat", &["c1.png", "c6.bmp"])],
        &["leave one"],
    ),
    (
        "a picture twice, once edited",
        |set| {
            let edited = set.coat.pixels(1).brighten(15).resize(90, 90, imageops::FilterType::Lanczos3);
            let mut jpeg = Vec::new();
            JpegEncoder::new_with_quality(&mut jpeg, 60).encode_image(&edited).unwrap();
            set.coat.shots[6].file = "c6.jpg".into();
            set.coat.shots[6].content = Content::Bytes(jpeg);
        },
        &[("near-duplicate-picture", "coat", &["c1.png", "c6.jpg"])],
        &["leave one"],
    ),
    (
        "a picture in both features",
        |set| *set.coat.pixels(6) = set.hair.pixels(9).clone(),
        &[("shared-picture", "hair", &["c6.png", "h9.png"])],
        &["`hair` and `coat`"],
    ),
];

/// A change to the clean set, and what it is.
type Change = (&'static str, fn(&mut Set));

/// Changes that are no faults.
const HARMLESS: &[Change] = &[
    ("nothing", |_| ()),
    ("the tag is the last that is read", |set| {
        set.hair.shots[3].caption = format!("{}zxqv", "the ".repeat(71));
    }),
    ("a tag that ends with a bracket", |set| {
        set.hair.rename_tag("zxqv_(jq)");
        set.hair.shots[0].caption = "(zxqv_(jq)), red dragon in a castle, night".into();
    }),
    ("a tag in running text", |set| {
        set.hair.rename_tag("帽子冠");
        set.hair.shots[0].caption = "赤い帽子冠の人".into();
    }),
    ("another feature's tag within a word", |set| set.hair.shots[2].caption += ", vqxwjkp"),
    ("a second tag, in a caption of its own", |set| {
        set.coat.tags.push("qzzj".into());
        set.coat.shots[0].caption = "qzzj, black cat on a chair".into();
    }),
    ("an alpha channel without holes", |set| *set.hair.pixels(0) = set.hair.pixels(0).to_rgba8().into()),
    ("a large picture", |set| {
        *set.hair.pixels(0) = set.hair.pixels(0).resize(300, 300, imageops::FilterType::Nearest);
    }),
    ("a picture in other colours", |set| *set.coat.pixels(6) = set.coat.pixels(1).huerotate(120)),
    ("a sharp thing before a blurred background", |set| {
        let mut picture = set.hair.pixels(3).blur(4.0).to_rgb8();
        for (x, y) in (20..26).flat_map(|x| (20..26).map(move |y| (x, y))) {
            let other =
                |channel: &mut u8| *channel = if *channel < 128 { *channel + 25 } else { *channel - 25 };
            picture.get_pixel_mut(x, y).0.iter_mut().for_each(other);
        }
        *set.hair.pixels(3) = picture.into();
    }),
    ("a picture of one colour", |set| {
        *set.hair.pixels(3) = RgbImage::from_pixel(SIDE, SIDE, Rgb([40, 90, 70])).into();
    }),
    ("six of eight backgrounds alike", |set| {
        (0..6).for_each(|i| frame(set.coat.pixels(i), [240, 240, 245]));
    }),
    ("a word in six of eight captions", |set| {
        set.coat.shots[2..].iter_mut().for_each(|shot| shot.caption += ", mountain");
    }),
];

/// A border of one colour round a picture.
fn frame(picture: &mut DynamicImage, colour: [u8; 3]) {
    let middle = 8..SIDE - 8;
    let mut rgb = picture.to_rgb8();
    rgb.enumerate_pixels_mut()
        .filter(|(x, y, _)| !(middle.contains(x) && middle.contains(y)))
        .for_each(|(_, _, pixel)| *pixel = Rgb(colour));
    *picture = rgb.into();
}

/// What was found, in the order of the report.
fn told(report: &Report) -> Vec<(String, String, Vec<String>)> {
    let told = |finding: &Finding| {
        let mut files: Vec<String> = finding.files.iter().map(|file| name(&file.path)).collect();
        files.sort();
        (finding.code.to_string(), finding.feature.clone(), files)
    };
    report.findings.iter().map(told).collect()
}

#[test]
fn each_planted_fault_is_found_and_no_other() {
    let mut wrong = Vec::new();
    for (what, plant, expected, says) in FAULTS {
        let mut set = Set::clean();
        plant(&mut set);
        let report = set.lint();
        let owned = |(code, feature, files): &Told| {
            let files = files.iter().map(|file| (*file).to_owned()).collect::<Vec<_>>();
            ((*code).to_owned(), (*feature).to_owned(), files)
        };
        let expected: Vec<_> = expected.iter().map(owned).collect();
        if told(&report) != expected {
            wrong.push(format!("{what}: {:#?}", report.findings));
            continue;
        }
        let message = &report.findings[0].message;
        let missing = says.iter().filter(|part| !message.contains(**part));
        wrong.extend(missing.map(|part| format!("{what}: {part:?} is not in: {message}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_no_fault_raises_nothing() {
    let mut wrong = Vec::new();
    for (what, change) in HARMLESS {
        let mut set = Set::clean();
        change(&mut set);
        let report = set.lint();
        if !report.findings.is_empty() {
            wrong.push(format!("{what}: {:#?}", report.findings));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
