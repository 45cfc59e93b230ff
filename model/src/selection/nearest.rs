//! What a term that hits nothing may have meant.

use std::collections::BTreeSet;

use super::blocks::Blocks;
use super::{GROUPS, KOHYA, LEVELS, Term, modules};
use crate::formats::kohya::kohya_name;
use crate::layers::LayerInfo;
use crate::{Error, Part};

/// How many suggestions are made.
const SHOWN: usize = 3;

/// The error for a term that hits nothing, with the names that are most like it.
pub fn no_hit(term: &str, layers: &[LayerInfo], blocks: &Blocks) -> Error {
    let anywhere = format!("**.{term}");
    let hits = |term: &str| {
        Term::parse(term, blocks).is_ok_and(|term| layers.iter().any(|layer| term.holds(layer, blocks)))
    };
    let message = match hits(&anywhere) {
        true => format!("no layer has this path; a path starts at the top: did you mean `{anywhere}`?"),
        false => format!("no layer has this path; nearest are {}", nearest(term, layers)),
    };
    Error::Pattern { pattern: term.into(), message }
}

fn nearest(term: &str, layers: &[LayerInfo]) -> String {
    let paths: BTreeSet<&str> = layers.iter().flat_map(|layer| modules(&layer.path)).collect();
    let names: BTreeSet<String> = match term.starts_with(KOHYA) {
        true => paths.into_iter().map(|path| kohya_name(Part::Unet, path)).collect(),
        false => {
            paths.into_iter().chain(GROUPS).chain(LEVELS.map(|(name, _)| name)).map(str::to_owned).collect()
        }
    };
    let mut ranked: Vec<(usize, String)> =
        names.into_iter().map(|name| (strsim::levenshtein(term, &name), name)).collect();
    ranked.sort();
    let shown: Vec<String> = ranked.iter().take(SHOWN).map(|(_, name)| format!("`{name}`")).collect();
    shown.join(", ")
}
