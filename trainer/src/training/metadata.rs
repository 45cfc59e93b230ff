//! The strings in a LoRA file's header, by which other programs know it: kohya's `ss_*` and Stability's `modelspec.*`.
//!
//! Nothing here differs between two runs of one config: no time, no machine, no absolute path. So equal runs give
//! equal files.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;
use strata_model::{Family, LoraSet, PredictionType};

use crate::config::FeatureConfig;
use crate::{Config, LoraRule};

/// Metadata of a LoRA after `steps` steps.
pub(crate) fn metadata(
    config: &Config,
    feature: &FeatureConfig,
    family: Family,
    prediction: PredictionType,
    lora: &LoraSet,
    pictures: usize,
    steps: u64,
) -> BTreeMap<String, String> {
    let train = &config.train;
    let resolution = feature.dataset.resolution;
    let name = |path: &std::path::Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    // SD2's 768 variant is told by predicting v
    let v = prediction == PredictionType::VPrediction;
    let v2 = family == Family::Sd2;
    let (version, architecture) = match (v2, v) {
        (true, true) => ("sd_v2_v", "stable-diffusion-v2-768-v/lora"),
        (true, false) => ("sd_v2", "stable-diffusion-v2-512/lora"),
        (false, _) => ("sd_v1", "stable-diffusion-v1/lora"),
    };
    let ranks: BTreeSet<String> = lora.entries().iter().map(|e| e.rank.to_string()).collect();
    let alphas: BTreeSet<String> = lora.entries().iter().map(|e| kohya_number(e.alpha.into())).collect();
    // kohya's word for ranks that differ
    let one = |set: BTreeSet<String>| match set.len() {
        1 => set.into_iter().next().unwrap_or_default(),
        _ => "Dynamic".to_owned(),
    };
    let strings = [
        ("ss_network_module", "networks.lora".to_owned()),
        ("ss_network_dim", one(ranks)),
        ("ss_network_alpha", one(alphas)),
        ("ss_base_model_version", version.to_owned()),
        ("ss_v2", python_bool(v2)),
        ("ss_output_name", name(feature.file())),
        ("ss_sd_model_name", config.model.file_name().unwrap_or_default().to_string_lossy().into_owned()),
        ("ss_steps", steps.to_string()),
        ("ss_max_train_steps", config.steps_of(feature).to_string()),
        ("ss_learning_rate", kohya_number(train.lr)),
        ("ss_unet_lr", kohya_number(train.lr)),
        ("ss_text_encoder_lr", "None".to_owned()),
        ("ss_optimizer", train.optimizer.name().to_owned()),
        ("ss_seed", config.seed.to_string()),
        ("ss_num_train_images", pictures.to_string()),
        ("ss_num_reg_images", "0".to_owned()),
        ("ss_resolution", format!("({}, {})", resolution.width, resolution.height)),
        ("ss_batch_size_per_device", train.batch_size.to_string()),
        ("ss_total_batch_size", train.batch_size.to_string()),
        ("ss_gradient_accumulation_steps", train.gradient_accumulation.to_string()),
        ("ss_gradient_checkpointing", python_bool(train.gradient_checkpointing)),
        ("ss_mixed_precision", if lora.shadow().is_some() { "fp16" } else { "no" }.to_owned()),
        ("ss_clip_skip", "None".to_owned()),
        ("ss_flip_aug", python_bool(feature.dataset.flip)),
        ("ss_max_grad_norm", kohya_number(train.max_grad_norm)),
        ("ss_caption_dropout_rate", kohya_number(train.caption_dropout)),
        ("strata_rules", rules(&feature.lora)),
        ("strata_version", env!("CARGO_PKG_VERSION").to_owned()),
        ("modelspec.sai_model_spec", "1.0.1".to_owned()),
        ("modelspec.architecture", architecture.to_owned()),
        ("modelspec.implementation", "diffusers".to_owned()),
        ("modelspec.title", name(feature.file())),
        ("modelspec.resolution", format!("{}x{}", resolution.width, resolution.height)),
        ("modelspec.prediction_type", if v { "v" } else { "epsilon" }.to_owned()),
        ("modelspec.timestep_range", format!("{},{}", train.timestep_min, train.timestep_max)),
    ];
    let owned = train.schedule.metadata().into_iter().chain(train.loss.metadata());
    let mut strings: BTreeMap<String, String> =
        strings.into_iter().chain(owned).map(|(key, value)| (key.to_owned(), value)).collect();
    if !feature.name.is_empty() {
        strings.insert("strata_feature".into(), feature.name.clone());
        strings.insert("strata_tags".into(), json!(feature.tags).to_string());
        // what other programs show beside the file
        strings.insert("modelspec.trigger_phrase".into(), feature.tags.join(", "));
    }
    strings
}

/// `8.0`, `0.0001`, `1e-05`: as Python writes a float, which is what readers of `ss_*` parse.
pub(crate) fn kohya_number(x: f64) -> String {
    let text = format!("{x:?}");
    match text.split_once("e-") {
        Some((digits, exponent)) => format!("{}e-{exponent:0>2}", digits.trim_end_matches(".0")),
        None => text,
    }
}

fn python_bool(on: bool) -> String {
    if on { "True" } else { "False" }.to_owned()
}

/// The rules of the config as JSON: which layers the file holds, and why.
fn rules(rules: &[LoraRule]) -> String {
    let rule = |r: &LoraRule| json!({"select": r.select, "rank": r.rank, "alpha": r.alpha, "lr": r.lr});
    json!(rules.iter().map(rule).collect::<Vec<_>>()).to_string()
}

#[cfg(test)]
mod tests {
    use super::kohya_number;

    #[test]
    fn numbers_as_python_writes_them() {
        let cases = [(8.0, "8.0"), (1e-4, "0.0001"), (1e-5, "1e-05"), (2.5e-6, "2.5e-06"), (0.0, "0.0")];
        cases.into_iter().for_each(|(x, text)| assert_eq!(kohya_number(x), text));
    }
}
