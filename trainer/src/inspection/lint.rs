//! The purity linter: what in pictures and captions would keep a feature from being learned by its tag alone.
//!
//! A feature is what its pictures have in common and their captions do not say. So each caption carries its tag, none
//! says what the feature is or carries a tag of another feature, and all else in pictures and captions varies.
//! [`lint`] finds what breaks this, before anything is trained; [`Report`] says it as text, JSON or a page.

mod captions;
mod html;
mod look;
mod pictures;
mod report;
mod tags;
mod text;

pub use captions::errors as caption_errors;
pub use report::{Code, Concerned, FeatureSummary, Finding, Nearest, Report, Severity, TagSummary, TagToken};
pub use text::Text;

use std::ops::Range;

use strata_model::{Mention, Tag};
use text::{Encoded, Word};

use crate::{Picture, Resolution, Result};

/// What is linted: a feature and its dataset.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Its name, another one for each feature.
    pub name: &'a str,
    /// Its tags. A caption needs one of them.
    pub tags: &'a [String],
    /// Words and phrases that say what the feature is (`hair`, `spiky hair`), which its captions should leave out.
    pub describes: &'a [String],
    /// Its pictures and their captions.
    pub pictures: &'a [Picture],
    /// The size they are trained at.
    pub resolution: Resolution,
}

/// Fewer captions or pictures than this prove nothing about what they have in common, and are too few to learn from.
const ENOUGH: usize = 5;

/// What `nearly all` means. A share below 1, since one exception in twenty keeps nothing from being learned.
const NEARLY_ALL: f64 = 0.8;

/// Looks for everything that would make the features impure. Every picture is decoded once, on all cores.
///
/// A picture that cannot be read is a finding.
///
/// # Errors
/// [`Error::Model`](crate::Error::Model) where a tag, a describing word or a caption cannot be encoded.
pub fn lint(features: &[Subject], text: &Text) -> Result<Report> {
    let mut readings =
        features.iter().map(|feature| Reading::new(feature, text)).collect::<Result<Vec<_>>>()?;
    let captions = captions(&readings, text)?;
    readings.iter_mut().zip(captions).for_each(|(reading, captions)| reading.captions = captions);
    let looks = look::look_at_all(features);

    let summaries: Vec<_> = readings.iter().map(|reading| report::summarise(reading, text)).collect();
    let mut findings = tags::check(&readings, &summaries, text)?;
    findings.extend(captions::check(&readings, text)?);
    findings.extend(pictures::check(features, &looks));
    Ok(Report::new(summaries, findings, html::cards(&readings, looks)))
}

/// A feature as the text encoder reads it.
struct Reading<'a> {
    feature: &'a Subject<'a>,
    tags: Vec<OwnTag<'a>>,
    describes: Vec<Encoded<'a>>,
    captions: Vec<Caption<'a>>,
}

/// A tag as the feature writes it.
struct OwnTag<'a> {
    encoded: Encoded<'a>,
    /// Or why it can be none.
    tag: strata_model::Result<Tag>,
}

/// A caption, and where tags stand in it.
struct Caption<'a> {
    encoded: Encoded<'a>,
    /// How many times the text encoder reads it.
    chunks: usize,
    /// Tags of its own feature.
    own: Vec<Range<usize>>,
    /// Tags of other features.
    foreign: Vec<Mention>,
}

impl<'a> Reading<'a> {
    fn new(feature: &'a Subject<'a>, text: &Text) -> Result<Self> {
        let own = |tag: &'a String| {
            Ok(OwnTag { encoded: text.encode(tag, &[])?, tag: Tag::new(text.tokenizer(), tag) })
        };
        Ok(Self {
            feature,
            tags: feature.tags.iter().map(own).collect::<Result<_>>()?,
            describes: feature
                .describes
                .iter()
                .map(|words| text.encode(words, &[]))
                .collect::<Result<_>>()?,
            captions: Vec::new(),
        })
    }

    fn name(&self) -> &'a str {
        self.feature.name
    }

    /// Those of its tags that can be some.
    fn usable(&self) -> impl Iterator<Item = &Tag> {
        self.tags.iter().filter_map(|own| own.tag.as_ref().ok())
    }

    /// Each picture with its caption.
    fn captioned(&self) -> impl Iterator<Item = (&'a Picture, &Caption<'a>)> {
        self.feature.pictures.iter().zip(&self.captions)
    }
}

impl<'a> Caption<'a> {
    /// The caption of a picture of feature number `feature`, with the tags of all. Another feature's tag inside one of its
    /// own is passed over: that the two collide is one finding about the tags, not one about each caption.
    fn new(caption: &'a str, feature: usize, tags: &[(usize, &Tag)], text: &Text) -> Result<Self> {
        let prompt = text.read(caption, tags)?;
        let places: Vec<_> = prompt.mentions().iter().map(|mention| &mention.bytes).collect();
        let encoded = text.encode(caption, &places)?;
        let (own, foreign): (Vec<_>, Vec<_>) =
            prompt.mentions().iter().cloned().partition(|mention| mention.feature == feature);
        let own: Vec<_> = own.into_iter().map(|mention| mention.bytes).collect();
        let inside = |at: &Range<usize>| own.iter().any(|own| own.start <= at.start && at.end <= own.end);
        let foreign = foreign.into_iter().filter(|mention| !inside(&mention.bytes)).collect();
        Ok(Self { encoded, chunks: prompt.chunks(), own, foreign })
    }

    /// Whether a word belongs to a tag, be it its own or another.
    fn in_a_tag(&self, word: &Word) -> bool {
        let overlaps = |tag: &Range<usize>| tag.start < word.bytes.end && word.bytes.start < tag.end;
        self.own.iter().any(overlaps) || self.foreign.iter().any(|tag| overlaps(&tag.bytes))
    }
}

/// The captions of each feature.
fn captions<'a>(readings: &[Reading<'a>], text: &Text) -> Result<Vec<Vec<Caption<'a>>>> {
    let tags: Vec<(usize, &Tag)> = readings
        .iter()
        .enumerate()
        .flat_map(|(i, reading)| reading.usable().map(move |tag| (i, tag)))
        .collect();
    let of = |(i, reading): (usize, &Reading<'a>)| {
        let pictures = reading.feature.pictures.iter();
        pictures.map(|picture| Caption::new(&picture.caption, i, &tags, text)).collect()
    };
    readings.iter().enumerate().map(of).collect()
}
