//! What is wrong with the pictures, one by one and together.

use std::collections::BTreeMap;

use super::look::Look;
use super::report::{Code, Concerned, Finding};
use super::{ENOUGH, NEARLY_ALL, Subject};
use crate::{Error, Picture, Result};

/// More pictures than this many times those of another feature: the other is trained less, or its pictures too often.
const IMBALANCE: usize = 2;

/// Transparent pixels that count: a soft outline has fewer.
const TRANSPARENT: f32 = 0.005;

/// Below this [`Look::sharpness`] a picture is blurred. Over 36 photographs and drawings of up to 512 pixels, sharp ones
/// have 0.13 to 5, three that are smooth by nature 0.002 to 0.03, and all of them blurred with a σ of 2 pixels at most
/// 0.06, two thirds of them below 0.02: such a blur does not show in a thumbnail, but is learned.
const BLURRED: f32 = 0.02;

/// Bits of 64 by which each of the two perceptual hashes of near-duplicates differs at most. Over 36 pictures, those
/// scaled, recompressed, brightened or of less contrast differ from their originals in at most 12, those with 2 % cut off
/// at each side mostly as well; different pictures in at least 21 in one of the hashes.
const NEAR_BITS: u32 = 12;

/// Mean difference of near-duplicates' normalised colours at most, in standard deviations of a picture: over the same
/// pictures, edited ones differ in up to 0.25, different ones in at least 0.45. The hashes are grey; this also tells a
/// drawing from the same in other colours, which teaches something.
const NEAR_COLOURS: f32 = 0.3;

/// Share of two borders' colours that must agree for the backgrounds to be the same.
const SAME_BACKGROUND: f32 = 0.85;

/// Backgrounds that are compared with all others. All of them would be quadratic, and some must be typical.
const BACKGROUNDS_TRIED: usize = 200;

/// The features' looks, as [`look_at_all`](super::look::look_at_all) gives them.
type Looks = [Vec<Result<Look>>];

pub(super) fn check(features: &[Subject], looks: &Looks) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (feature, looks) in features.iter().zip(looks) {
        findings.extend(one_by_one(feature, looks));
        findings.extend(one_background(feature, looks));
    }
    findings.extend(counts(features));
    findings.extend(duplicates(features, looks));
    findings
}

fn one_by_one(feature: &Subject, looks: &[Result<Look>]) -> Vec<Finding> {
    let about = |code: Code, message: &str, note: &dyn Fn(&Look) -> Option<String>| {
        let noted = |(picture, look): (&Picture, &Result<Look>)| {
            Some(Concerned::noted(&picture.path, note(look.as_ref().ok()?)?))
        };
        let files = feature.pictures.iter().zip(looks).filter_map(noted);
        Finding::new(code, feature.name, message.to_owned()).concerning(files)
    };
    let (width, height) = (feature.resolution.width, feature.resolution.height);

    let corrupt = feature.pictures.iter().zip(looks).filter_map(|(picture, look)| {
        let reason = match look.as_ref().err()? {
            Error::Picture { reason, .. } => reason.clone(),
            Error::Io { source, .. } => source.to_string(),
            other => other.to_string(),
        };
        Some(Concerned::noted(&picture.path, reason))
    });
    let message = "these pictures cannot be read; repair or remove them".to_owned();
    let corrupt = Finding::new(Code::CorruptPicture, feature.name, message).concerning(corrupt);

    let small = about(
        Code::SmallPicture,
        &format!(
            "these pictures are smaller than the {width} × {height} pixels they are trained at: enlarged, they teach \
             softness; find larger ones, or train at a smaller resolution"
        ),
        &|look| {
            let is_small = look.width < width || look.height < height;
            is_small.then(|| format!("{} × {}", look.width, look.height))
        },
    );
    let blurred = about(
        Code::BlurredPicture,
        "these pictures are blurred, and the blur will be learned; replace them",
        &|look| {
            let sharpness = look.sharpness.filter(|sharpness| *sharpness < BLURRED)?;
            Some(format!("sharpness {sharpness:.4}, wanted {BLURRED}"))
        },
    );
    let transparent = about(
        Code::Transparency,
        "these pictures are partly transparent, which is trained as white; put them before varied backgrounds",
        &|look| {
            (look.transparent > TRANSPARENT).then(|| format!("{:.1} % transparent", 100.0 * look.transparent))
        },
    );
    [corrupt, small, blurred, transparent].into_iter().flatten().collect()
}

/// Whether nearly all pictures have a border like that of the most typical one.
fn one_background(feature: &Subject, looks: &[Result<Look>]) -> Option<Finding> {
    let looks: Vec<&Look> = looks.iter().flatten().collect();
    if looks.len() < ENOUGH {
        return None;
    }
    let agreement = |a: &Look, b: &Look| a.border.iter().zip(&b.border).map(|(a, b)| a.min(*b)).sum::<f32>();
    let like = |a: &&Look| looks.iter().filter(|b| agreement(a, b) >= SAME_BACKGROUND).count();
    let (same, n) = (looks.iter().take(BACKGROUNDS_TRIED).map(like).max()?, looks.len());
    if (same as f64) < NEARLY_ALL * n as f64 {
        return None;
    }
    let message = format!(
        "{same} of {n} pictures have the same background, by the colours of their borders, and it becomes part of the \
         feature; find or make other backgrounds"
    );
    Some(Finding::new(Code::OneBackground, feature.name, message))
}

fn counts(features: &[Subject]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let largest = features.iter().max_by_key(|feature| feature.pictures.len());
    for feature in features {
        let n = feature.pictures.len();
        if n < ENOUGH {
            let message = format!(
                "{n} picture(s) are too few to tell the feature from what they happen to show; find {ENOUGH} or more"
            );
            findings.push(Finding::new(Code::FewPictures, feature.name, message));
        }
        if let Some(largest) = largest.filter(|largest| largest.pictures.len() > IMBALANCE * n) {
            let message = format!(
                "{n} picture(s) against {} of feature `{}`: trained jointly, the smaller is learned worse or by heart; \
                 find more, or train the two in stages",
                largest.pictures.len(),
                largest.name
            );
            findings.push(Finding::new(Code::Imbalance, feature.name, message));
        }
    }
    findings
}

/// Pictures that are the same, or nearly, within a feature and between features.
fn duplicates(features: &[Subject], looks: &Looks) -> Vec<Finding> {
    let all: Vec<(usize, &Picture, &Look)> = features
        .iter()
        .zip(looks)
        .enumerate()
        .flat_map(|(i, (feature, looks))| {
            feature.pictures.iter().zip(looks).filter_map(move |(p, look)| Some((i, p, look.as_ref().ok()?)))
        })
        .collect();
    let mut findings = Vec::new();
    for group in groups(all.len(), |a, b| near(all[a].2, all[b].2)) {
        let mut by_feature: BTreeMap<usize, Vec<(&Picture, &Look)>> = BTreeMap::new();
        for (feature, picture, look) in group.iter().map(|i| all[*i]) {
            by_feature.entry(feature).or_default().push((picture, look));
        }
        let files = |pictures: &[(&Picture, &Look)]| {
            pictures.iter().map(|(picture, _)| Concerned::new(&picture.path)).collect::<Vec<_>>()
        };
        if by_feature.len() > 1 {
            let names: Vec<String> = by_feature.keys().map(|i| format!("`{}`", features[*i].name)).collect();
            let message = format!(
                "nearly the same picture is in the features {}, so that each learns some of the other; leave it in one",
                names.join(" and ")
            );
            let first = features[group.iter().map(|i| all[*i].0).min().unwrap_or_default()].name;
            let all: Vec<_> = by_feature.values().flat_map(|pictures| files(pictures)).collect();
            findings.extend(Finding::new(Code::SharedPicture, first, message).concerning(all));
        }
        for (feature, pictures) in by_feature.iter().filter(|(_, pictures)| pictures.len() > 1) {
            let equal = pictures.iter().all(|(_, look)| look.content == pictures[0].1.content);
            let (code, how) = match equal {
                true => (Code::DuplicatePicture, "the same"),
                false => (Code::NearDuplicatePicture, "nearly the same"),
            };
            let message = format!("these pictures are {how}, and are learned by heart; leave one of them");
            findings.extend(Finding::new(code, features[*feature].name, message).concerning(files(pictures)));
        }
    }
    findings
}

/// Whether two pictures are the same or nearly: both hashes and the colours must say so.
fn near(a: &Look, b: &Look) -> bool {
    if a.content == b.content {
        return true;
    }
    let close = a.hashes.iter().zip(&b.hashes).all(|(a, b)| (a ^ b).count_ones() <= NEAR_BITS);
    let difference = || a.colours.iter().zip(&b.colours).map(|(a, b)| (a - b).abs()).sum::<f32>();
    close && difference() <= NEAR_COLOURS * a.colours.len() as f32
}

/// Things 0 … n − 1 in groups of two or more, in order: whatever is `alike`, directly or through others.
fn groups(n: usize, alike: impl Fn(usize, usize) -> bool) -> Vec<Vec<usize>> {
    let mut group_of: Vec<usize> = (0..n).collect();
    for b in 0..n {
        for a in 0..b {
            let (from, to) = (group_of[b].max(group_of[a]), group_of[b].min(group_of[a]));
            if from != to && alike(a, b) {
                group_of.iter_mut().filter(|group| **group == from).for_each(|group| *group = to);
            }
        }
    }
    let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (i, group) in group_of.into_iter().enumerate() {
        groups.entry(group).or_default().push(i);
    }
    groups.into_values().filter(|group| group.len() > 1).collect()
}
