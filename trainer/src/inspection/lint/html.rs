//! The report as one page: the findings in a table, then every picture with its caption and what is said about it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use minijinja::value::Value;
use minijinja::{Environment, UndefinedBehavior, context};

use super::look::Look;
use super::report::{FeatureSummary, Finding, count};
use super::{Reading, Report};
use crate::Result;

/// What the page shows of a picture.
#[derive(Debug)]
pub(super) struct Card {
    /// The feature it belongs to, by its place.
    pub feature: usize,
    pub path: PathBuf,
    /// The caption in parts, and whether each is one of the feature's tags.
    caption: Vec<(String, bool)>,
    /// A JPEG; `None` where the picture cannot be read.
    thumbnail: Option<Vec<u8>>,
}

/// The cards of all pictures.
pub(super) fn cards(readings: &[Reading], looks: Vec<Vec<Result<Look>>>) -> Vec<Card> {
    let pictures =
        readings.iter().enumerate().flat_map(|(i, reading)| reading.captioned().map(move |p| (i, p)));
    pictures
        .zip(looks.into_iter().flatten())
        .map(|((feature, (picture, caption)), look)| Card {
            feature,
            path: picture.path.clone(),
            caption: parts(caption.encoded.text, caption.own.clone()),
            thumbnail: look.ok().map(|look| look.thumbnail),
        })
        .collect()
}

/// Cuts a text at the marked bytes: parts, and whether each is marked. Marks that overlap one before are left out.
fn parts(text: &str, mut marks: Vec<Range<usize>>) -> Vec<(String, bool)> {
    marks.sort_by_key(|mark| mark.start);
    let (mut parts, mut from) = (Vec::new(), 0);
    for mark in marks {
        if let (Some(before), Some(marked)) = (text.get(from..mark.start), text.get(mark.clone())) {
            parts.push((before.to_owned(), false));
            parts.push((marked.to_owned(), true));
            from = mark.end;
        }
    }
    parts.push((text[from..].to_owned(), false));
    parts.retain(|(part, _)| !part.is_empty());
    parts
}

impl Report {
    /// As one self-contained page, which shows every picture with its caption, tags highlighted, and its findings.
    #[expect(clippy::missing_panics_doc, reason = "the template is tested")]
    pub fn to_html(&self) -> String {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        // The name's ending turns the escaping on.
        environment.add_template("report.html", include_str!("report.html")).expect("the template parses");
        let mut about: BTreeMap<&Path, Vec<(&Finding, Option<&str>)>> = BTreeMap::new();
        for finding in &self.findings {
            for file in &finding.files {
                about.entry(&file.path).or_default().push((finding, file.note.as_deref()));
            }
        }
        let features = self.features.iter().enumerate().map(|(i, feature)| {
            let cards = self.cards.iter().filter(|card| card.feature == i);
            feature_value(feature, cards.map(|card| card_value(card, about.get(&*card.path))).collect())
        });
        let page = context! {
            totals => self.totals(),
            findings => self.findings.iter().map(|finding| finding_value(finding, None)).collect::<Vec<_>>(),
            features => features.collect::<Vec<_>>(),
        };
        let template = environment.get_template("report.html").expect("it was just added");
        template.render(page).expect("the template names only what it is given")
    }
}

fn feature_value(feature: &FeatureSummary, cards: Vec<Value>) -> Value {
    let tags = feature.tags.iter().map(|tag| context! { tag => &tag.tag, evidence => tag.evidence() });
    context! {
        name => &feature.name,
        pictures => count(feature.pictures, "picture"),
        tags => tags.collect::<Vec<_>>(),
        cards => cards,
    }
}

fn card_value(card: &Card, findings: Option<&Vec<(&Finding, Option<&str>)>>) -> Value {
    let parts = card.caption.iter().map(|(text, is_tag)| context! { text => text, is_tag => is_tag });
    let findings = findings.into_iter().flatten().map(|(finding, note)| finding_value(finding, *note));
    context! {
        path => card.path.display().to_string(),
        name => card.path.file_name().unwrap_or_default().display().to_string(),
        caption => parts.collect::<Vec<_>>(),
        thumbnail => card.thumbnail.as_ref().map(|jpeg| BASE64_STANDARD.encode(jpeg)),
        findings => findings.collect::<Vec<_>>(),
    }
}

/// A finding, in general (all of its files) or about one file (its note).
fn finding_value(finding: &Finding, note: Option<&str>) -> Value {
    let files = finding.files.iter().map(|file| {
        context! {
            path => file.path.display().to_string(),
            name => file.path.file_name().unwrap_or_default().display().to_string(),
            note => file.note.as_deref(),
        }
    });
    context! {
        severity => finding.severity.to_string(),
        code => finding.code.to_string(),
        feature => &finding.feature,
        message => &finding.message,
        files => files.collect::<Vec<_>>(),
        note => note,
    }
}
