//! Tags and weights in prompts, by their token ids.

use std::collections::BTreeMap;

use strata_model::{
    ClipTokenizer, Feature, GateMode, Mention, Prompt, Reading, Tag, Wording, find, find_in, swap, tags_of,
};

use crate::support::{MODELS, refused, tokenizer};

fn read(tokenizer: &ClipTokenizer, text: &str, tags: &[&Tag]) -> Prompt {
    let tags: Vec<(usize, &Tag)> = tags.iter().copied().enumerate().collect();
    Prompt::read(tokenizer, text, Reading::Weighted, &tags).unwrap()
}

#[test]
fn tags_are_found_as_whole_words() {
    for model in MODELS {
        let tokenizer = tokenizer(model);
        let tag = Tag::new(&tokenizer, " Hair_style_A ").unwrap();
        assert_eq!(tag.text(), "Hair_style_A");
        let yes = [
            ("hair_style_a", 1),
            ("a photo of HAIR_STYLE_A, smiling", 1),
            ("hair_style_a. Hair_Style_a", 2),
            ("portrait (hair_style_a)", 1),
            ("\"hair_style_a\"'s twin", 1),
            ("hair_style_a-like", 1),
            ("a\thair_style_a\nb", 1),
        ];
        for (text, count) in yes {
            assert_eq!(find_in(&tokenizer, text, &tag).unwrap().len(), count, "{model}: {text}");
            assert_eq!(
                find(&tokenizer, &tokenizer.encode(text).unwrap(), &tag).len(),
                count,
                "{model}: {text}"
            );
        }
        let no = [
            "hair_style_ab",
            "xhair_style_a",
            "x_hair_style_a",
            "hair_style_a_b",
            "hair_style_a2",
            "1hair_style_a",
            "hair_style",
            "style_a",
            "hair style a",
            "hair_style_b",
            "hair__style_a",
            "hair_style_ä",
            "",
        ];
        for text in no {
            assert_eq!(find_in(&tokenizer, text, &tag).unwrap(), [0usize; 0], "{model}: {text}");
        }
        // ids alone know words, but not where one ends that goes on with a digit
        for text in ["hair_style_ab", "xhair_style_a", "hair_style", ""] {
            assert!(find(&tokenizer, &tokenizer.ids(text).unwrap(), &tag).is_empty(), "{model}: {text}");
        }
        let ids = |text: &str| tokenizer.ids(text).unwrap();
        assert_eq!(ids("hair_style_a2"), ids("hair_style_a 2"));
        assert_eq!(find(&tokenizer, &ids("hair_style_a2"), &tag), [0]);
    }
}

/// A word whose last tokens are a tag of one token or more is not that tag.
#[test]
fn the_end_of_a_word_is_no_tag() {
    let tokenizer = tokenizer("sd15-tiny");
    let (tag, text) = (Tag::new(&tokenizer, "in").unwrap(), "basin");
    let ids = tokenizer.ids(text).unwrap();
    assert!(ids.ends_with(tag.ids()) && ids.len() > tag.ids().len(), "{ids:?} should end like {tag:?}");
    assert!(find(&tokenizer, &ids, &tag).is_empty());
    assert_eq!(find(&tokenizer, &tokenizer.encode("in").unwrap(), &tag), [1], "BOS is before it");
}

#[test]
fn found_tags_do_not_overlap() {
    let tokenizer = tokenizer("sd15-tiny");
    let tag = Tag::new(&tokenizer, "a a").unwrap();
    assert_eq!(find_in(&tokenizer, "a a a a a", &tag).unwrap(), [0, 2]);
}

/// Feature, weight and the words of each mention.
fn heard(tokenizer: &ClipTokenizer, prompt: &Prompt) -> Vec<(usize, f32, String)> {
    let words = |m: &Mention| {
        let tokens = prompt.ids()[m.tokens.clone()].iter();
        tokens.map(|id| tokenizer.token(*id).unwrap().replace("</w>", " ")).collect::<String>()
    };
    prompt.mentions().iter().map(|m| (m.feature, m.weight, words(m).trim().to_string())).collect()
}

#[test]
fn weights_go_to_the_tags_gate_or_to_the_text() {
    let tokenizer = tokenizer("sd15-tiny");
    let (hair, coat) =
        (Tag::new(&tokenizer, "hair_style_a").unwrap(), Tag::new(&tokenizer, "red coat").unwrap());
    let tags = [&hair, &coat];
    let cases: [(&str, &[(usize, f32)]); 8] = [
        ("hair_style_a", &[(0, 1.0)]),
        ("(hair_style_a:1.2)", &[(0, 1.2)]),
        ("(hair_style_a)", &[(0, 1.1)]),
        ("[hair_style_a] and RED  coat", &[(0, 0.90909094), (1, 1.0)]),
        ("(a red coat, hair_style_a:0.5), red coats", &[(1, 0.5), (0, 0.5)]),
        ("(hair_style_a:0) hair_style_a", &[(0, 0.0), (0, 1.0)]),
        (r"\(hair_style_a\)", &[(0, 1.0)]),
        ("(red:1.2) coat", &[]),
    ];
    for (text, expected) in cases {
        let prompt = read(&tokenizer, text, &tags);
        let found = heard(&tokenizer, &prompt);
        let short: Vec<(usize, f32)> = found.iter().map(|(feature, weight, _)| (*feature, *weight)).collect();
        assert_eq!(short, expected, "{text}");
        for (feature, _, words) in &found {
            assert_eq!(words, ["hair _ style _ a", "red coat"][*feature], "{text}");
        }
        for mention in prompt.mentions() {
            assert!(prompt.weights()[mention.tokens.clone()].iter().all(|w| *w == 1.0), "{text}");
        }
    }
    // text that is no tag keeps its weight, and BOS, EOS and padding have none
    let prompt = read(&tokenizer, "(hair_style_a red:1.5) cat", &tags);
    let weighty: Vec<usize> = (0..77).filter(|i| prompt.weights()[*i] == 1.5).collect();
    let red = tokenizer.ids("red").unwrap();
    assert_eq!(weighty, (6..6 + red.len()).collect::<Vec<_>>());
    assert_eq!(prompt.ids()[6..6 + red.len()], red);
    assert!((0..77).all(|i| weighty.contains(&i) || prompt.weights()[i] == 1.0));
}

/// Without weights a prompt has the ids that it always had.
#[test]
fn plain_prompts_are_one_chunk_as_before() {
    for model in MODELS {
        let tokenizer = tokenizer(model);
        for text in ["", "a photo of a cat", "A smile :) and 5:30", "hair_style_a, C:\\x"] {
            let prompt = read(&tokenizer, text, &[]);
            assert_eq!(prompt.ids(), tokenizer.encode(text).unwrap(), "{model}: {text}");
            assert!(
                prompt.weights().iter().all(|w| *w == 1.0) && prompt.weights().len() == prompt.ids().len()
            );
        }
    }
}

#[test]
fn long_prompts_are_cut_before_a_tag() {
    for model in MODELS {
        let tokenizer = tokenizer(model);
        let tag = Tag::new(&tokenizer, "hair_style_a").unwrap();
        let length = tag.ids().len();
        assert_eq!(tokenizer.ids("5").unwrap().len(), 1);
        for before in [0, 1, 70, 71, 74, 75, 76, 145, 150] {
            let text = ["5 ".repeat(before), "hair_style_a".into(), " 5".repeat(100)].concat();
            let prompt = read(&tokenizer, &text, &[&tag]);
            let plain = tokenizer.ids(&text).unwrap();
            // between BOS and EOS stand all ids in order
            let mut own: Vec<u32> = Vec::new();
            for chunk in prompt.ids().chunks_exact(77) {
                assert_eq!(chunk[0], tokenizer.bos());
                let end = 1 + chunk[1..].iter().position(|id| *id == tokenizer.eos()).unwrap();
                own.extend(&chunk[1..end]);
                assert!(chunk[end + 1..].iter().all(|id| *id == tokenizer.pad()), "{model} {before}");
            }
            assert_eq!(own, plain, "{model}: {before} before the tag");
            let [mention] = prompt.mentions() else { panic!("{:?}", prompt.mentions()) };
            let (start, end) = (mention.tokens.start, mention.tokens.end);
            assert_eq!(prompt.ids()[start..end], *tag.ids());
            assert_eq!((start / 77, mention.chunk_end), ((end - 1) / 77, (start / 77 + 1) * 77), "{before}");
            // a chunk ends early only where the tag would be torn
            let torn = 75 - before % 75 < length;
            let first = prompt.ids()[before / 75 * 77..][..77].iter().skip(1);
            let filled = first.take_while(|id| **id != tokenizer.eos()).count();
            assert_eq!(filled, if torn { before % 75 } else { 75 }, "{before}");
        }
        let mut short = read(&tokenizer, "cat", &[]);
        short.pad(&tokenizer, 3);
        assert_eq!((short.chunks(), short.weights().len()), (3, 231));
        let chunks: Vec<Vec<u32>> =
            ["cat", "", ""].iter().map(|text| tokenizer.encode(text).unwrap()).collect();
        assert_eq!(short.ids(), chunks.concat());
    }
}

#[test]
fn what_is_no_tag_is_refused() {
    let tokenizer = tokenizer("sd15-tiny");
    refused(Tag::new(&tokenizer, " \n"), &["no letter"]);
    refused(Tag::new(&tokenizer, &"5 ".repeat(76)), &["76 tokens", "75"]);
    Tag::new(&tokenizer, &"5 ".repeat(75)).unwrap();
    refused(Prompt::read(&tokenizer, "(cat:1.2.3)", Reading::Weighted, &[]), &["1.2.3", "(cat:1.2)"]);
    // tags of which one is in the other, over more than a chunk: no place to cut
    let (a, b) = (["5 ".repeat(60), "6 ".repeat(10)].concat(), ["6 ".repeat(10), "7 ".repeat(60)].concat());
    let (a, b) = (Tag::new(&tokenizer, &a).unwrap(), Tag::new(&tokenizer, &b).unwrap());
    let text = ["5 ".repeat(60), "6 ".repeat(10), "7 ".repeat(60)].concat();
    refused(
        Prompt::read(&tokenizer, &text, Reading::Weighted, &[(0, &a), (1, &b)]),
        &["overlapping tags", "75"],
    );
}

fn feature(tags: &[Tag], mode: GateMode) -> Feature {
    Feature { tags: tags.to_vec(), mode, weight: 0.5, region: None, uncond: false }
}

#[test]
fn the_strongest_mention_counts() {
    let tokenizer = tokenizer("sd15-tiny");
    let tags = [Tag::new(&tokenizer, "sks").unwrap(), Tag::new(&tokenizer, "hair_style_a").unwrap()];
    let features = [feature(&tags, GateMode::Prompt), feature(&[], GateMode::Always)];
    let wanted =
        ["cat", "sks cat", "(hair_style_a:0.4)", "sks (hair_style_a:3) sks", "(sks:-2) hair_style_a"];
    let wording = Wording::read(&tokenizer, &wanted, &[""; 5], &features).unwrap();
    let strengths: Vec<f32> = wording.wanted.iter().map(|prompt| features[0].strength(0, prompt)).collect();
    assert_eq!(strengths, [0.0, 0.5, 0.2, 1.5, -1.0]);
    assert!(wording.wanted.iter().all(|prompt| features[1].strength(1, prompt) == 0.5));
}

#[test]
fn all_prompts_of_a_batch_have_as_many_chunks() {
    let tokenizer = tokenizer("sd2-tiny");
    let long = "5 ".repeat(160);
    let wording = Wording::read(&tokenizer, &["cat", &long], &["", "dog"], &[]).unwrap();
    assert!(wording.wanted.iter().chain(&wording.unwanted).all(|prompt| prompt.chunks() == 3));
    refused(Wording::read(&tokenizer, &["cat"], &[], &[]), &["1 wanted", "0 unwanted"]);
    let deaf = feature(&[], GateMode::Token { after: true });
    refused(Wording::read(&tokenizer, &["cat"], &[""], &[deaf]), &["number 0", "tags"]);
}

#[test]
fn files_name_their_tags() {
    let with = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    };
    let phrase = ("modelspec.trigger_phrase", " a sks, cat ");
    assert_eq!(tags_of(&with(&[])).unwrap(), [""; 0]);
    assert_eq!(tags_of(&with(&[phrase])).unwrap(), ["a sks, cat"]);
    assert_eq!(tags_of(&with(&[("modelspec.trigger_phrase", " ")])).unwrap(), [""; 0]);
    assert_eq!(tags_of(&with(&[phrase, ("strata_tags", r#"["a", "b c"]"#)])).unwrap(), ["a", "b c"]);
    refused(tags_of(&with(&[("strata_tags", "a, b")])), &["strata_tags", "a, b"]);
}

#[test]
fn tags_make_way_for_others() {
    let tokenizer = tokenizer("sd15-tiny");
    let tags = [Tag::new(&tokenizer, "sks").unwrap()];
    let cases = [
        ("a photo of sks cat", "a photo of {} cat"),
        ("SKS, and Sks", "{}, and {}"),
        ("\u{e9}t\u{e9} (sks:1.2)", "\u{e9}t\u{e9} ({}:1.2)"),
        ("sksy or asks or sks_2", "sksy or asks or sks_2"),
        ("", ""),
    ];
    for (line, expected) in cases {
        assert_eq!(swap(&tokenizer, line, &tags, "{}").unwrap(), expected);
    }
}
