//! Tags and weights in captions and prompts.

mod agreement;

use std::collections::BTreeMap;

use strata_model::{
    ClipTokenizer, Feature, Found, GateMode, Mention, Prompt, Reading, Tag, Wording, find, swap, tags_of,
};

use crate::support::{MODELS, refused, tokenizer};

fn read(tokenizer: &ClipTokenizer, text: &str, tags: &[&Tag]) -> Prompt {
    let tags: Vec<(usize, &Tag)> = tags.iter().copied().enumerate().collect();
    Prompt::read(tokenizer, text, &tags, Reading::Weighted).unwrap()
}

/// How many times a text carries a tag.
fn count(tokenizer: &ClipTokenizer, text: &str, tag: &Tag) -> usize {
    find(tokenizer, text, [tag]).unwrap().len()
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
        for (text, times) in yes {
            assert_eq!(count(&tokenizer, text, &tag), times, "{model}: {text}");
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
            assert_eq!(count(&tokenizer, text, &tag), 0, "{model}: {text}");
        }
    }
}

/// A tag, texts and how many times it is in each.
type Carried<'a> = (&'a str, &'a [(&'a str, usize)]);

#[test]
fn tags_may_begin_and_end_with_signs() {
    let cases: [Carried<'_>; 10] = [
        (
            "hat_(a)",
            &[
                ("a man, hat_(a), red", 1),
                ("(hat_(a))", 1),
                ("[hat_(a)]. Hat_(A)!", 2),
                ("hat_(a)'s", 1),
                ("hat_(a)\nhat_(a)", 2),
                ("hat_(ab)", 0),
                ("xhat_(a)", 0),
                ("hat_(a)_b", 0),
                ("hat_(a", 0),
                ("hat_a", 0),
            ],
        ),
        ("(a)", &[("(a), b", 1), ("hat_(a)", 0)]),
        ("hat", &[("hat_(a)", 0), ("hat(a)", 1), ("(hat)", 1)]),
        (":)", &[("hello:), you", 1), (":):)", 2), (":))", 0), ("::)", 0)]),
        ("c++", &[("c++, or (C++)", 2), ("c+++", 0)]),
        ("c+", &[("c++", 0), ("c+-", 1)]),
        ("yes!", &[("Yes!", 1), ("yes!, no", 1), ("yes!!", 0)]),
        ("<a>", &[("<a>,<a>", 2), ("<<a>>", 1), ("<ab>", 0)]),
        ("+hat", &[("red, +hat", 1), ("++hat", 0), ("+hats", 0)]),
        ("hat,", &[("a hat, red", 1), ("a hat,, red", 1)]),
    ];
    carried(&cases);
}

#[test]
fn tags_may_be_of_any_script() {
    let cases: [Carried<'_>; 12] = [
        ("帽子", &[("赤い帽子の人", 1), ("2帽子、hat帽子", 2), ("帽子_a", 0), ("子帽", 0)]),
        ("帽子a", &[("赤い帽子aの人", 1), ("帽子ab", 0)]),
        ("スキー", &[("スキーhat", 1), ("冬のスキー場", 1)]),
        ("모자", &[("빨간모자를", 1)]),
        ("หมวก", &[("คนสวมหมวกแดง", 1)]),
        ("hat", &[("赤いhatの人", 1), ("赤いhatsの人", 0)]),
        ("шляпа", &[("Шляпа, красная", 1), ("шляпами", 0)]),
        ("\u{e9}t\u{e9}", &[("e\u{301}te\u{301}, ÉTÉ", 2), ("etе", 0)]),
        ("ox", &[("ox\u{302}", 0), ("o\u{302}x", 0), ("x\u{302}ox", 0), ("\u{302} ox", 1)]),
        ("😀", &[("a😀b", 1), ("😀😀", 2), ("😀_", 0)]),
        ("👩", &[("👩, 👩", 2), ("👩\u{200d}🔬", 0), ("👩🏽", 0)]),
        ("red  hat", &[("a RED\r\n\u{3000}hat", 1), ("red\u{a0}hats", 0)]),
    ];
    carried(&cases);
}

/// What is found is what is written, whatever it is folded to.
fn carried(cases: &[Carried<'_>]) {
    for model in MODELS {
        let tokenizer = tokenizer(model);
        for (tag, texts) in cases {
            let tag = Tag::new(&tokenizer, tag).unwrap();
            for (text, times) in *texts {
                assert_eq!(count(&tokenizer, text, &tag), *times, "{model}: {:?} in {text:?}", tag.text());
                for found in find(&tokenizer, text, [&tag]).unwrap() {
                    assert_eq!(Tag::new(&tokenizer, &text[found.bytes]).unwrap().ids(), tag.ids(), "{text}");
                }
            }
        }
    }
}

#[test]
fn found_tags_do_not_overlap() {
    let tokenizer = tokenizer("sd15-tiny");
    let tag = Tag::new(&tokenizer, "a a").unwrap();
    let found = find(&tokenizer, "a a a a a", [&tag]).unwrap();
    assert_eq!(found, [0..3, 4..7].map(|bytes| Found { tag: 0, bytes }));
    // what is no word of its own hides none that is
    assert_eq!(find(&tokenizer, "xa a a", [&tag]).unwrap(), [Found { tag: 0, bytes: 3..6 }]);
}

/// CLIP's tokenizer runs signs together, but not with a tag's.
#[test]
fn a_tag_has_its_tokens_wherever_it_stands() {
    for model in MODELS {
        let tokenizer = tokenizer(model);
        let ids = |text: &str| tokenizer.ids(text).unwrap();
        let tag = Tag::new(&tokenizer, "hat_(a)").unwrap();
        let text = "a man, hat_(a), red";
        assert_ne!(ids(text), [ids("a man, hat_(a)"), ids(", red")].concat(), "`),` is one token");
        let prompt = Prompt::read(&tokenizer, text, &[(0, &tag)], Reading::Literal).unwrap();
        let expected = [ids("a man,"), ids("hat_(a)"), ids(", red")].concat();
        assert_eq!(prompt.ids()[1..=expected.len()], expected);
        let [mention] = prompt.mentions() else { panic!("{:?}", prompt.mentions()) };
        assert_eq!(prompt.ids()[mention.tokens.clone()], *tag.ids());
        assert_eq!(&text[mention.bytes.clone()], "hat_(a)");
        // where nothing runs together, and where no tag is known, the ids are CLIP's
        for text in ["a man, hat_(a) red", "hat_(a)", "it's (a) 'hat_(a)s", "hat_(ab), x"] {
            let prompt = Prompt::read(&tokenizer, text, &[(0, &tag)], Reading::Literal).unwrap();
            assert_eq!(prompt.ids(), tokenizer.encode(text).unwrap(), "{model}: {text}");
        }
        let prompt = Prompt::read(&tokenizer, text, &[], Reading::Literal).unwrap();
        assert_eq!(prompt.ids(), tokenizer.encode(text).unwrap());
    }
}

/// Of tags within tags, each has its place, and the outermost its tokens.
#[test]
fn tags_may_overlap() {
    let tokenizer = tokenizer("sd15-tiny");
    let tags = ["red hat", "hat (a)", "red hat (a) b", "hat"].map(|tag| Tag::new(&tokenizer, tag).unwrap());
    let tags: Vec<(usize, &Tag)> = tags.iter().enumerate().collect();
    let places = |text: &str, reading| -> Vec<(usize, String)> {
        let prompt = Prompt::read(&tokenizer, text, &tags, reading).unwrap();
        let places = prompt.mentions().iter().map(|m| (m.feature, text[m.bytes.clone()].to_owned()));
        places.collect()
    };
    for reading in [Reading::Literal, Reading::Weighted] {
        let found = places("(red hat (a), x", reading);
        assert_eq!(found, [(0, "red hat".into()), (1, "hat (a)".into()), (3, "hat".into())]);
        let found: Vec<usize> = places("red hat (a) b", reading).iter().map(|(i, _)| *i).collect();
        assert_eq!(found, [2, 0, 1, 3]);
    }
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

#[test]
fn a_tags_own_brackets_win_over_weights() {
    let tokenizer = tokenizer("sd15-tiny");
    let tag = Tag::new(&tokenizer, "hat_(a)").unwrap();
    // the prompt, what is the tag in it, its weight, and whether its brackets are worth a note
    let cases = [
        ("hat_(a)", "hat_(a)", 1.0, true),
        ("a man, Hat_(A), red", "Hat_(A)", 1.0, true),
        ("(hat_(a):1.2)", "hat_(a)", 1.2, true),
        ("((hat_(a)))", "hat_(a)", 1.21, true),
        ("[red, hat_(a)]", "hat_(a)", 0.90909094, true),
        (r"hat_\(a\)", r"hat_\(a\)", 1.0, false),
        (r"(hat_\(a\):0.5)", r"hat_\(a\)", 0.5, false),
        (r"(x) hat_\(a\), red", r"hat_\(a\)", 1.0, false),
    ];
    for (text, written, weight, noted) in cases {
        let prompt = read(&tokenizer, text, &[&tag]);
        let [mention] = prompt.mentions() else { panic!("{text}: {:?}", prompt.mentions()) };
        assert_eq!(&text[mention.bytes.clone()], written, "{text}");
        assert_eq!((mention.weight, mention.own_brackets), (weight, noted), "{text}");
        assert_eq!(prompt.ids()[mention.tokens.clone()], *tag.ids(), "{text}");
    }
    let bare = read(&tokenizer, "hat_(a)", &[&tag]);
    for text in [r"hat_\(a\)", "(hat_(a):1.2)"] {
        assert_eq!(read(&tokenizer, text, &[&tag]).ids(), bare.ids(), "{text}");
    }
    for text in [r"hat_\(ab\)", "hat_(a:1.2)", "(hat_a)"] {
        assert_eq!(read(&tokenizer, text, &[&tag]).mentions(), [], "{text}");
    }
    // brackets round it, and of what is no tag, are weights as ever
    let prompt = read(&tokenizer, "(hat_(a), red_(b):1.5)", &[&tag]);
    assert_eq!(prompt.mentions()[0].weight, 1.5);
    assert!(prompt.weights().contains(&1.65));
    // a tag may have backslashes of its own
    let odd = Tag::new(&tokenizer, r"hat_\(a\)").unwrap();
    let prompt = read(&tokenizer, r"hat_\(a\), x", &[&odd]);
    assert_eq!(prompt.ids()[prompt.mentions()[0].tokens.clone()], *odd.ids());
}

#[test]
fn captions_are_literal() {
    let tokenizer = tokenizer("sd15-tiny");
    let tag = Tag::new(&tokenizer, "hat_(a)").unwrap();
    let text = r"(hat_(a):1.2), [red] \(x\), 5:30)";
    let prompt = Prompt::read(&tokenizer, text, &[(3, &tag)], Reading::Literal).unwrap();
    assert!(prompt.weights().iter().all(|weight| *weight == 1.0));
    let [mention] = prompt.mentions() else { panic!("{:?}", prompt.mentions()) };
    assert_eq!((mention.feature, mention.weight, mention.own_brackets), (3, 1.0, false));
    let ids = |text: &str| tokenizer.ids(text).unwrap();
    let all = [ids("("), ids("hat_(a)"), ids(&text[8..])].concat();
    assert_eq!(prompt.ids()[1..=all.len()], all);
    // a weight that is no number is only text
    Prompt::read(&tokenizer, "(cat:1.2.3)", &[], Reading::Literal).unwrap();
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
    for short in ["a", " A", "é", "7", ",", "_"] {
        refused(Tag::new(&tokenizer, short), &[short.trim(), "one letter", "nearly every text"]);
    }
    for word in ["帽", "😀", "aa", "5 5", ":)"] {
        Tag::new(&tokenizer, word).unwrap();
    }
    // an accent, and a joiner of emoji, belong to what is beside them
    refused(Tag::new(&tokenizer, "\u{301}cat"), &["joins"]);
    refused(Tag::new(&tokenizer, "\u{200d}🔬"), &["joins"]);
    for unseen in ["hair\u{200b}", "hair\u{7}style", "\u{feff}hair", "a\u{ad}b", "\u{202e}ab"] {
        refused(Tag::new(&tokenizer, unseen), &["U+", "not seen", "leave it out"]);
    }
    Tag::new(&tokenizer, "👩\u{200d}🔬").unwrap();
    refused(Prompt::read(&tokenizer, "(cat:1.2.3)", &[], Reading::Weighted), &["1.2.3", "(cat:1.2)"]);
    // tags of which one is in the other, over more than a chunk: no place to cut
    let (a, b) = (["5 ".repeat(60), "6 ".repeat(10)].concat(), ["6 ".repeat(10), "7 ".repeat(60)].concat());
    let (a, b) = (Tag::new(&tokenizer, &a).unwrap(), Tag::new(&tokenizer, &b).unwrap());
    let text = ["5 ".repeat(60), "6 ".repeat(10), "7 ".repeat(60)].concat();
    let overlapping = Prompt::read(&tokenizer, &text, &[(0, &a), (1, &b)], Reading::Literal);
    refused(overlapping, &["overlapping tags", "75"]);
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
    assert_eq!(tags_of(&with(&[phrase])).unwrap(), ["a sks", "cat"]);
    assert_eq!(tags_of(&with(&[("modelspec.trigger_phrase", " , ")])).unwrap(), [""; 0]);
    assert_eq!(tags_of(&with(&[phrase, ("strata_tags", r#"["a", "b c"]"#)])).unwrap(), ["a", "b c"]);
    refused(tags_of(&with(&[("strata_tags", "a, b")])), &["strata_tags", "a, b"]);
}

#[test]
fn tags_make_way_for_others() {
    let tokenizer = tokenizer("sd15-tiny");
    let tags = ["sks", "sks hat_(a)", "(a) cat"].map(|tag| Tag::new(&tokenizer, tag).unwrap());
    let cases = [
        ("a sks hat_(a), sks", "a {}, {}"),
        ("(a) cat (a) cat", "{} {}"),
        ("a photo of sks cat", "a photo of {} cat"),
        ("SKS, and Sks", "{}, and {}"),
        ("\u{e9}t\u{e9} (sks:1.2)", "\u{e9}t\u{e9} ({}:1.2)"),
        ("sksy or asks or sks_2", "sksy or asks or sks_2"),
        ("", ""),
    ];
    for (line, expected) in cases {
        let found = find(&tokenizer, line, &tags).unwrap();
        assert_eq!(swap(line, found.iter().map(|found| &found.bytes), "{}"), expected);
    }
}
