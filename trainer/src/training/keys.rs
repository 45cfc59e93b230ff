//! The keys of a run's features: found or read before the first step, and kept off each other.

use std::collections::BTreeMap;
use std::sync::Arc;

use strata_model::progress::note;
use strata_model::{Key, LoraWeights, Match, Tag, TextEncoder, keys_of};

use crate::config::{FeatureConfig, KeyConfig, Switch};
use crate::features::key::{Called, Ordinary, search, span};
use crate::features::silence::{Basis, reads_text};
use crate::training::plan::{Plan, is_done};
use crate::training::run::Run;
use crate::{Error, Result, noise};

/// Finds the keys of features that want one, in their order, each off those before it; those of features that are done are in
/// their files. From then on all texts read the tags so. Returns what each LoRA has to be deaf to: ordinary text, and the keys
/// of all other features. Features that are not trained now count as well: one that is comes out as it would beside them.
///
/// # Errors
/// There is no such key, or the GPU fails.
pub(crate) fn find_keys(run: &mut Run<'_>, text: &TextEncoder) -> Result<BTreeMap<usize, Basis>> {
    let mut bases: BTreeMap<usize, Basis> = BTreeMap::new();
    let mut spans: Vec<(usize, Vec<f32>)> = Vec::new();
    for (i, plan) in run.plans.iter_mut().enumerate() {
        let Some(config) = plan.feature.key.on() else { continue };
        let tags: Vec<&Tag> = plan.tags.iter().collect();
        let captions: Vec<&str> = plan.dataset.pictures().iter().map(|p| p.caption.as_str()).collect();
        let ordinary = Ordinary::collect(text, &plan.silent)?;
        let mut basis = ordinary.basis(config.rank)?;
        for (_, span) in &spans {
            basis = basis.off(span)?;
        }
        let key = match plan.key.take().map_or_else(|| of_file(plan), |key| Ok(Some(key)))? {
            Some(key) => Arc::new(key),
            None => {
                // runs apart, too, should not come to one key
                let seed = noise::feature_seed(run.config.seed, &plan.feature.name);
                let seed = noise::feature_seed(seed, &plan.feature.tags.join(","));
                let called = Called { tags: &tags, class: &plan.feature.class, captions: &captions };
                let found = search(text, config, &ordinary, &basis, &called, seed)?;
                note(&found.summary(&plan.feature.name));
                found.key
            }
        };
        plan.tags = plan.tags.with_key(&key);
        spans.push((i, span(text, &basis, &plan.tags.iter().collect::<Vec<_>>(), &captions)?));
        bases.insert(i, basis);
    }
    for (i, basis) in &mut bases {
        for (_, span) in spans.iter().filter(|(later, _)| later > i) {
            *basis = basis.off(span)?;
        }
    }
    Ok(bases)
}

/// The key of a feature that is not trained now, if its file is what this run would write.
fn of_file(plan: &Plan) -> Result<Option<Key>> {
    if plan.due || !is_done(plan.feature.file(), &plan.fingerprint) {
        return Ok(None);
    }
    Ok(keys_of(&LoraWeights::read(plan.feature.file())?.metadata)?.into_values().next())
}

/// A feature has a key, unless its config says otherwise, where one can do something: it has a tag, and layers that read the text.
pub(crate) fn decide_key(feature: &mut FeatureConfig, matches: &[Match]) {
    let useful = !feature.tags.is_empty() && matches.iter().any(|m| reads_text(&m.layer.path));
    if feature.key == Switch::Unsaid && useful {
        feature.key = Switch::On(KeyConfig::default());
    }
}

/// Whether a key can do anything for a feature.
///
/// # Errors
/// None of its layers reads the text.
pub(crate) fn check_key(plan: &Plan) -> Result<()> {
    if plan.feature.key.on().is_none() || plan.matches.iter().any(|m| reads_text(&m.layer.path)) {
        return Ok(());
    }
    Err(Error::Silence(format!(
        "feature {}: none of its layers reads the text, so a key does nothing for it; select attn2.to_k or attn2.to_v, or leave \
         [feature.key] out",
        plan.feature.name
    )))
}

/// What a key does not do, and what it takes the place of.
pub(crate) fn key_notes(plan: &Plan) -> Vec<String> {
    let (name, mut notes) = (&plan.feature.name, Vec::new());
    if plan.feature.key.on().is_none() {
        return notes;
    }
    let all = plan.matches.len();
    let deaf = plan.matches.iter().filter(|m| !reads_text(&m.layer.path)).count();
    if deaf > 0 {
        notes.push(format!(
            "{name}: {deaf} of {all} layers read the picture, not the text, so its key does not keep them silent; in other programs \
             they are always on, and Strata's gate alone turns them off"
        ));
    }
    if plan.feature.silence.is_some() {
        notes.push(format!("{name}: silence.rank has no effect beside a key, which decides of it"));
    }
    notes
}
