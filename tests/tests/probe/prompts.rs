//! Which prompts a feature is tried with.

use strata_tests::{Setup, gpu};
use strata_trainer::probe::{GroupKind, ProbeFeature, Script};
use strata_trainer::silence::default_bank;

use super::{feature, pipeline, script};
use crate::support::refused;

/// Kind, whose, and prompts of each group of a feature.
fn groups(script: &Script, feature: usize) -> Vec<(GroupKind, Option<&str>, Vec<&str>)> {
    let text = |prompt: &usize| script.texts()[*prompt].text.as_str();
    let groups = script.groups(feature).iter();
    groups.map(|g| (g.kind, g.of.as_deref(), g.prompts.iter().map(text).collect())).collect()
}

#[test]
fn built_in_prompts_are_many_and_of_every_kind() {
    let gpu = gpu(Setup::Lane);
    let pipeline = pipeline(&gpu);
    let features =
        vec![feature(&pipeline, "hair_a", Some("hair"), 1.0), feature(&pipeline, "coat b", None, 1.0)];
    let script = script(&pipeline, features, &[]);
    let [own, other, class, ordinary, empty] = &groups(&script, 0)[..] else { panic!("five groups") };
    assert_eq!((own.0, other.0, class.0), (GroupKind::OwnTag, GroupKind::OtherTag, GroupKind::Class));
    assert_eq!((other.1, class.1), (Some("feature coat b"), Some("hair")));
    assert!(own.2.len() >= 4 && own.2.contains(&"a photo of hair_a"));
    for (i, prompt) in own.2.iter().enumerate() {
        assert_eq!(other.2[i], prompt.replace("hair_a", "coat b"), "in the same carriers");
        assert_eq!(class.2[i], prompt.replace("hair_a", "hair"));
    }
    assert!(ordinary.0 == GroupKind::Ordinary && ordinary.2.len() >= 16);
    let bank = default_bank();
    assert!(
        !ordinary.2.iter().any(|prompt| bank.iter().any(|b| b == prompt)),
        "what is measured is not trained"
    );
    assert_eq!((empty.0, &empty.2[..]), (GroupKind::Empty, &[""][..]));
    assert_eq!(groups(&script, 1).len(), 4, "it has no class");
    let mut all: Vec<&str> = script.texts().iter().map(|text| text.text.as_str()).collect();
    let count = all.len();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), count, "each prompt is there once");
    for text in script.texts() {
        assert_eq!(text.states.len(), text.shape[0] * text.shape[1]);
        assert_eq!(text.shape[0], text.prompt.ids().len());
    }
}

#[test]
fn lines_are_sorted_by_the_tags_in_them() {
    let gpu = gpu(Setup::Lane);
    let pipeline = pipeline(&gpu);
    let features =
        || vec![feature(&pipeline, "hair_a", Some("hair"), 1.0), feature(&pipeline, "coat_b", None, 1.0)];
    let lines = ["{} in a park", "Hair_A, close-up", "a red chair", "hair_ab", "hair_a and coat_b"];
    let script = script(&pipeline, features(), &lines);
    use GroupKind::{Class, Empty, Ordinary, OtherTag, OwnTag};
    let ordinary = vec!["a red chair", "hair_ab"];
    assert_eq!(
        groups(&script, 0),
        [
            (OwnTag, None, vec!["hair_a, close-up", "hair_a and coat_b"]),
            (OtherTag, Some("feature coat_b"), vec!["coat_b, close-up", "coat_b and coat_b"]),
            (Class, Some("hair"), vec!["hair, close-up", "hair and coat_b"]),
            (Ordinary, None, ordinary.clone()),
            (Empty, None, vec![""]),
        ]
    );
    assert_eq!(
        groups(&script, 1),
        [
            (OwnTag, None, vec!["hair_a and coat_b"]),
            (OtherTag, Some("feature hair_a"), vec!["hair_a and hair_a"]),
            (Ordinary, None, ordinary),
            (Empty, None, vec![""]),
        ]
    );
    assert_eq!(script.prompts_of(0).len(), 9);
}

/// What has the tag after all cannot be a leak.
#[test]
fn prompts_with_the_own_tag_are_in_no_other_group() {
    let gpu = gpu(Setup::Lane);
    let pipeline = pipeline(&gpu);
    let features =
        vec![feature(&pipeline, "hair", Some("long hair"), 1.0), feature(&pipeline, "hair a", None, 1.0)];
    let script = script(&pipeline, features, &["{}", "hair, indoors, {}", "a chair"]);
    let kinds = |feature| groups(&script, feature).iter().map(|group| group.0).collect::<Vec<_>>();
    use GroupKind::{Empty, Ordinary, OtherTag, OwnTag};
    assert_eq!(kinds(0), [OwnTag, Ordinary, Empty], "both others have `hair` in them");
    assert_eq!(kinds(1), [OwnTag, OtherTag, Ordinary, Empty]);
}

#[test]
fn features_without_a_readable_tag_are_refused() {
    let gpu = gpu(Setup::Lane);
    let pipeline = pipeline(&gpu);
    let new = |features: Vec<ProbeFeature>, line: &str| {
        let states = |prompt: &_| Ok(pipeline.text.encode(std::slice::from_ref(prompt), 0)?.states);
        Script::new(pipeline.text.tokenizer(), features, &[line.to_owned()], states)
    };
    let hair = || feature(&pipeline, "hair_a", None, 1.0);
    refused(new(vec![hair()], "a photo of{}"), &["feature hair_a", "ofhair_a", "word of its own"]);
    let none = ProbeFeature { tags: Vec::new(), ..hair() };
    refused(new(vec![none], "{}"), &["feature hair_a", "no tag"]);
}
