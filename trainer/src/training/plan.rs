//! What a run is going to do, found out before the GPU works.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use strata_model::{Checkpoint, Key, LoraWeights, Match, Rule, Selection, Tag};

use crate::config::{FeatureConfig, Order, SilenceConfig};
use crate::features::preserve::Preservation;
use crate::features::silence::{default_bank, read_bank};
use crate::inspection::lint::caption_errors;
use crate::training::fingerprint::{Makings, fingerprint};
use crate::training::keys::{check_key, decide_key};
use crate::{Config, Dataset, Error, Result, Tags, noise};

/// A feature and what its config leads to before anything is run.
pub(crate) struct Plan {
    pub feature: FeatureConfig,
    pub tags: Tags,
    pub dataset: Dataset,
    pub matches: Vec<Match>,
    pub preservation: Preservation,
    /// What the feature must be deaf to; empty without silence and key.
    pub silent: Vec<String>,
    /// What must be equal for its file to be the one that this run would write.
    pub fingerprint: String,
    /// What that is a hash of.
    pub makings: Makings,
    /// The key of its tags, where an earlier run found it.
    pub key: Option<Key>,
    /// Whether it is to be trained, rather than there already or not asked for.
    pub due: bool,
}

impl Plan {
    /// Every text whose states the training of the feature needs: captions, none, and preservation's.
    pub fn texts(&self) -> BTreeSet<String> {
        let captions = self.dataset.pictures().iter().map(|picture| &picture.caption);
        captions.chain(self.preservation.all()).cloned().chain([String::new()]).collect()
    }

    /// The keys of its tags, once they are found.
    pub fn keys(&self) -> BTreeMap<String, Key> {
        let key = |tag: &Tag| Some((tag.text().to_owned(), Key::clone(tag.key()?)));
        self.tags.iter().filter_map(key).collect()
    }
}

/// Reads what each feature is made of, and says which features are to be trained.
pub(crate) fn plan(config: &Config, checkpoint: &Checkpoint, only: Option<&str>) -> Result<Vec<Plan>> {
    let mut features = config.features();
    if let Some(only) = only.filter(|only| !features.iter().any(|f| f.name == *only)) {
        let names: Vec<&str> = features.iter().map(|f| f.name.as_str()).collect();
        let has = if config.feature.is_empty() { "none".to_owned() } else { names.join(", ") };
        let message = format!("no feature {only:?}; the config has {has}");
        return Err(Error::Config { file: None, line: None, message });
    }
    for feature in &mut features {
        decide_key(feature, &select(checkpoint, feature)?);
    }
    let tokenizer = Arc::new(checkpoint.tokenizer()?);
    let model = checkpoint.digest()?;
    let datasets = features.iter().map(|f| Dataset::open(&f.dataset)).collect::<Result<Vec<_>>>()?;
    let mut plans: Vec<Plan> = Vec::new();
    for (i, (feature, dataset)) in features.iter().zip(&datasets).enumerate() {
        let tags = Tags::new(&tokenizer, &feature.tags)?;
        check_captions(feature, &tags, dataset)?;
        let matches = select(checkpoint, feature)?;
        let captions: Vec<&str> = dataset.pictures().iter().map(|p| p.caption.as_str()).collect();
        let others: Vec<&FeatureConfig> = features.iter().filter(|f| f.name != feature.name).collect();
        let seed = noise::feature_seed(config.seed, &feature.name);
        let preservation = Preservation::new(seed, feature, &tags, &captions, &others)?;
        // a stage stands on those before it
        let before = match config.order == Order::Staged && feature.with_frozen {
            true => plans.iter().map(|plan| plan.fingerprint.as_str()).collect(),
            false => Vec::new(),
        };
        let silent = silent_prompts(feature, &tags, dataset, &others)?;
        // a key keeps off the others, which are found from their captions
        let keyed = |(j, other): &(usize, &FeatureConfig)| *j != i && other.key.on().is_some();
        let keyed = features.iter().enumerate().filter(keyed).filter(|_| feature.key.on().is_some());
        let (mut captions, mut searches) = (Vec::new(), Vec::new());
        for (j, other) in keyed {
            captions.extend(datasets[j].pictures().iter().map(|picture| &picture.caption));
            searches.push(format!("{} {:?} {:?} {:?}", other.name, other.tags, other.class, other.key.on()));
        }
        let prompts: Vec<&String> =
            preservation.all().chain(&silent).chain(captions).chain(&searches).collect();
        let (fingerprint, makings) = fingerprint(config, feature, dataset, &prompts, &before, &model)?;
        // a run without features always trains: its file has no stages to go on from
        let done = !feature.name.is_empty() && is_done(feature.file(), &fingerprint);
        let due = only.map_or(!done, |only| only == feature.name);
        let plan = Plan {
            feature: feature.clone(),
            tags,
            dataset: dataset.clone(),
            matches,
            preservation,
            silent,
            fingerprint,
            makings,
            key: None,
            due,
        };
        check_key(&plan)?;
        plans.push(plan);
    }
    Ok(plans)
}

/// Whether a file is what a run with this fingerprint has written at its end.
pub(crate) fn is_done(file: &Path, fingerprint: &str) -> bool {
    file.is_file()
        && LoraWeights::read(file)
            .is_ok_and(|f| f.metadata.get("strata_run").is_some_and(|run| run == fingerprint))
}

/// Captions of a feature with tags must have none of the linter's errors: one without a tag would teach the feature to
/// come uncalled.
fn check_captions(feature: &FeatureConfig, tags: &Tags, dataset: &Dataset) -> Result<()> {
    if feature.tags.is_empty() {
        return Ok(());
    }
    let errors = caption_errors(&feature.name, tags, dataset.pictures())?;
    let errors: Vec<String> =
        errors.iter().map(|error| format!("feature {}: {error}", feature.name)).collect();
    if errors.is_empty() { Ok(()) } else { Err(Error::Dataset(errors.join("\n"))) }
}

/// The layers that the rules of a feature select.
fn select(checkpoint: &Checkpoint, feature: &FeatureConfig) -> Result<Vec<Match>> {
    let rule = |r: &crate::LoraRule| Rule {
        select: r.select.clone(),
        rank: r.rank as usize,
        alpha: r.alpha as f32,
        lr: r.lr.map(|lr| lr as f32),
    };
    let rules: Vec<Rule> = feature.lora.iter().map(rule).collect();
    Ok(Selection::new(&rules)?.resolve(&checkpoint.layers()?)?)
}

/// What a feature must be deaf to: a bank, its captions without their tags and with the class, and all other tags.
fn silent_prompts(
    feature: &FeatureConfig,
    tags: &Tags,
    dataset: &Dataset,
    others: &[&FeatureConfig],
) -> Result<Vec<String>> {
    if feature.silence.is_none() && feature.key.on().is_none() {
        return Ok(Vec::new());
    }
    let bank = feature.silence.as_ref().and_then(SilenceConfig::bank_file);
    let mut prompts = bank.map_or_else(|| Ok(default_bank()), read_bank)?;
    let class = std::iter::once(&feature.class).filter(|class| !class.is_empty());
    let theirs = others.iter().flat_map(|other| &other.tags);
    let stand_ins: Vec<&str> = std::iter::once("").chain(class.chain(theirs).map(String::as_str)).collect();
    for picture in dataset.pictures() {
        for stand_in in &stand_ins {
            prompts.push(tags.swap(&picture.caption, stand_in)?);
        }
    }
    Ok(prompts)
}
