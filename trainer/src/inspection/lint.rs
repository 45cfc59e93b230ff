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

pub use report::{Code, Concerned, FeatureSummary, Finding, Nearest, Report, Severity, TagSummary, TagToken};
pub use text::Text;

use std::ops::Range;

use text::Encoded;

use crate::{Picture, Resolution, Result};

/// What is linted: a feature and its dataset.
#[derive(Debug, Clone, Copy)]
pub struct Feature<'a> {
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
pub fn lint(features: &[Feature], text: &Text) -> Result<Report> {
    let mut readings =
        features.iter().map(|feature| Reading::new(feature, text)).collect::<Result<Vec<_>>>()?;
    mark_tags(&mut readings, text);
    let looks = look::look_at_all(features);

    let summaries: Vec<_> = readings.iter().map(|reading| report::summarise(reading, text)).collect();
    let mut findings = tags::check(&readings, &summaries, text);
    findings.extend(captions::check(&readings, text.limit()));
    findings.extend(pictures::check(features, &looks));
    Ok(Report::new(summaries, findings, html::cards(&readings, looks)))
}

/// A feature as the text encoder reads it.
struct Reading<'a> {
    feature: &'a Feature<'a>,
    tags: Vec<Encoded<'a>>,
    describes: Vec<Encoded<'a>>,
    captions: Vec<Caption<'a>>,
}

/// A caption, and where tags stand in it; ranges count its tokens.
struct Caption<'a> {
    encoded: Encoded<'a>,
    /// Tags of its own feature.
    own: Vec<Range<usize>>,
    /// Tags of other features: which feature, which of its tags, where.
    foreign: Vec<(usize, usize, Range<usize>)>,
}

impl<'a> Reading<'a> {
    fn new(feature: &'a Feature<'a>, text: &Text) -> Result<Self> {
        let encode_all =
            |texts: &'a [String]| texts.iter().map(|t| text.encode(t)).collect::<Result<Vec<_>>>();
        let caption = |picture: &'a Picture| {
            let encoded = text.encode(&picture.caption)?;
            Ok(Caption { encoded, own: Vec::new(), foreign: Vec::new() })
        };
        Ok(Self {
            feature,
            tags: encode_all(feature.tags)?,
            describes: encode_all(feature.describes)?,
            captions: feature.pictures.iter().map(caption).collect::<Result<_>>()?,
        })
    }

    fn name(&self) -> &'a str {
        self.feature.name
    }

    /// Each picture with its caption.
    fn captioned(&self) -> impl Iterator<Item = (&'a Picture, &Caption<'a>)> {
        self.feature.pictures.iter().zip(&self.captions)
    }
}

impl Caption<'_> {
    /// Whether tokens belong to a tag, be it its own or another.
    fn in_a_tag(&self, tokens: &Range<usize>) -> bool {
        let overlaps = |tag: &Range<usize>| tag.start < tokens.end && tokens.start < tag.end;
        self.own.iter().any(overlaps) || self.foreign.iter().any(|(_, _, tag)| overlaps(tag))
    }
}

/// Finds the tags in the captions. Another feature's tag inside one of the caption's own is passed over: that the two
/// collide is one finding about the tags, not one about each caption.
fn mark_tags(readings: &mut [Reading], text: &Text) {
    let tags: Vec<(usize, usize, Vec<u32>)> = readings
        .iter()
        .enumerate()
        .flat_map(|(feature, reading)| {
            reading.tags.iter().enumerate().map(move |(i, tag)| (feature, i, tag.ids.clone()))
        })
        .collect();
    for (feature, reading) in readings.iter_mut().enumerate() {
        for caption in &mut reading.captions {
            let ids = &caption.encoded.ids;
            let (own, other): (Vec<_>, Vec<_>) = tags.iter().partition(|(of, _, _)| *of == feature);
            caption.own = own.iter().flat_map(|(_, _, tag)| text.find_all(ids, tag)).collect();
            let inside_own =
                |at: &Range<usize>| caption.own.iter().any(|own| own.start <= at.start && at.end <= own.end);
            caption.foreign = other
                .iter()
                .flat_map(|(of, i, tag)| text.find_all(ids, tag).into_iter().map(move |at| (*of, *i, at)))
                .filter(|(_, _, at)| !inside_own(at))
                .collect();
        }
    }
}
