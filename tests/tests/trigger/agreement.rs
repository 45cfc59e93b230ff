//! Training, the linter, the probe and generation find the same tags in the same texts.

use std::ops::Range;
use std::sync::Arc;

use strata_engine::{DType, Tensor};
use strata_model::{ClipTokenizer, Prompt, Reading, Tag};
use strata_tests::{Random, Setup, gpu};
use strata_trainer::lint::{Code, caption_errors};
use strata_trainer::probe::{GroupKind, ProbeFeature, Script};
use strata_trainer::{Picture, Tags};

use crate::support::{MODELS, golden};

/// What tags and texts are made of: letters in all states, digits, signs that are weights and signs that run together,
/// scripts without spaces, emoji of one character and of several.
const PIECES: [&str; 44] = [
    "a",
    "b",
    "B",
    "hat",
    "Red",
    "é",
    "e\u{301}",
    "x\u{302}",
    "ß",
    "İ",
    "Ω",
    "1",
    "2",
    "_",
    "-",
    "+",
    "!",
    ":",
    ")",
    "(",
    "[",
    "]",
    "<",
    ">",
    "*",
    "'",
    "s",
    "帽",
    "子",
    "か",
    "ー",
    "モ",
    "모",
    "자",
    "หม",
    "😀",
    "👩\u{200d}🔬",
    "❤\u{fe0f}",
    "🇩🇪",
    "（",
    "a",
    " ",
    " ",
    ",",
];

/// What stands between words.
const SEPARATORS: [&str; 6] = [" ", ",", ", ", "\n", "\r\n", " \u{3000}"];

fn some(random: &mut Random, most: usize) -> String {
    (0..random.below(most + 1)).map(|_| PIECES[random.below(PIECES.len())]).collect()
}

/// The text in other letters that are the same to the text encoder.
fn rewritten(random: &mut Random, text: &str) -> String {
    match random.below(4) {
        0 => text.to_ascii_uppercase(),
        1 => text.replace('é', "e\u{301}"),
        2 => text.replace(' ', " \n "),
        _ => text.to_owned(),
    }
}

/// A text, and whether the tag is in it where that is certain.
fn text(random: &mut Random, tag: &str) -> (String, Option<bool>) {
    let between = |random: &mut Random| SEPARATORS[random.below(SEPARATORS.len())];
    let written = rewritten(random, tag);
    match random.below(4) {
        // between separators, or the start and the end
        0 => {
            let mut text = written;
            if random.below(3) > 0 {
                text = [some(random, 8), between(random).to_owned(), text].concat();
            }
            if random.below(3) > 0 {
                text = [text, between(random).to_owned(), some(random, 8)].concat();
            }
            (text, Some(true))
        }
        // within a longer word; that of a script with spaces
        1 => {
            let letter = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() && u32::from(c) < 0x400);
            let (first, last) = (letter(tag.chars().next()), letter(tag.chars().next_back()));
            let glue = ["q", "7", "ж", "_"];
            let (before, after) = match random.below(2) {
                0 => (glue[if first { random.below(4) } else { 3 }], ""),
                _ => ("", glue[if last { random.below(4) } else { 3 }]),
            };
            ([between(random), before, &written, after, between(random)].concat(), Some(false))
        }
        2 => ([some(random, 6), written, some(random, 6)].concat(), None),
        _ => (some(random, 12), None),
    }
}

/// Where a tag is in a text, which has its tokens there.
fn places(tokenizer: &ClipTokenizer, text: &str, tag: &Tag, reading: Reading) -> Vec<Range<usize>> {
    let prompt = Prompt::read(tokenizer, text, &[(0, tag)], reading).unwrap();
    for mention in prompt.mentions() {
        let (tag, tokens) = (tag.text(), mention.tokens.clone());
        assert_eq!(prompt.ids()[tokens], *tag_ids(tokenizer, tag), "{tag:?} in {text:?} as {reading:?}");
    }
    prompt.mentions().iter().map(|mention| mention.bytes.clone()).collect()
}

fn tag_ids(tokenizer: &ClipTokenizer, tag: &str) -> Vec<u32> {
    tokenizer.ids(tag).unwrap()
}

/// Whether the probe takes a line for one with the feature's tag.
fn probe_finds(tokenizer: &ClipTokenizer, tag: &Tag, lines: &[String], states: &Tensor) -> Vec<bool> {
    let feature = ProbeFeature { name: "f".into(), tags: vec![tag.clone()], class: None, weight: 1.0 };
    let script = Script::new(tokenizer, vec![feature], lines, |_: &Prompt| Ok(states.clone())).unwrap();
    let ordinary = script.groups(0).iter().filter(|group| group.kind == GroupKind::Ordinary);
    let ordinary: Vec<&str> =
        ordinary.flat_map(|group| &group.prompts).map(|i| script.texts()[*i].text.as_str()).collect();
    lines.iter().map(|line| !ordinary.contains(&line.as_str())).collect()
}

#[test]
fn all_find_the_same_tags() {
    const TAGS: usize = 500;
    const TEXTS: usize = 20;
    let demo = golden("", "../../demo/model/tokenizer");
    let folders = MODELS.map(|model| golden(model, "tokenizer")).into_iter().chain([demo]);
    let tokenizers: Vec<Arc<ClipTokenizer>> =
        folders.map(|folder| Arc::new(ClipTokenizer::open(&folder).unwrap())).collect();
    let states = Tensor::from_f32(&gpu(Setup::Lane), &[0.0], &[1, 1, 1], DType::F32).unwrap();
    let mut random = Random::new("tags and texts");
    let (mut found, mut tags) = (0, 0);
    while tags < TAGS {
        let tokenizer = &tokenizers[tags % tokenizers.len()];
        let Ok(tag) = Tag::new(tokenizer, &some(&mut random, 6)) else { continue };
        let own = Tags::new(tokenizer, &[tag.text().to_owned()]).unwrap();
        tags += 1;
        let texts: Vec<_> = (0..TEXTS).map(|_| text(&mut random, tag.text())).collect();
        let lines: Vec<String> = texts.iter().map(|(text, _)| text.clone()).collect();
        let probed = probe_finds(tokenizer, &tag, &lines, &states);
        for ((text, certain), probed) in texts.into_iter().zip(probed) {
            let what = format!("{:?} in {text:?}", tag.text());
            let caption = places(tokenizer, &text, &tag, Reading::Literal);
            assert_eq!(places(tokenizer, &text, &tag, Reading::Weighted), caption, "as a prompt: {what}");
            let is_in = !caption.is_empty();
            assert_eq!(certain.unwrap_or(is_in), is_in, "{what}");
            assert_eq!(own.are_in(&text).unwrap(), is_in, "in training: {what}");
            let picture = Picture { path: "x.png".into(), caption: text.clone() };
            let errors = caption_errors("f", &own, &[picture]).unwrap();
            let lacks = errors.iter().any(|e| [Code::MissingTag, Code::EmptyCaption].contains(&e.code));
            assert_eq!(lacks, !is_in, "by the linter: {what}");
            assert!(probed == is_in || text.is_empty(), "by the probe: {what}");
            found += usize::from(is_in);
        }
    }
    assert!((TAGS * TEXTS / 4..TAGS * TEXTS * 3 / 4).contains(&found), "{found}");
}
