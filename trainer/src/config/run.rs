//! The config of a run as a whole.

use std::collections::BTreeSet;
use std::path::PathBuf;

use strata_engine::DType;
use strata_model::{Checkpoint, Embedding, ModelOptions, PredictionType};

use super::check::{Problem, file_name, if_set, lora_file, named, within};
use super::section::section;
use super::value::choice;
use super::{DatasetConfig, FeatureConfig, LoraRule, TrainConfig};
use crate::Result;

section! {
    /// Everything a run depends on. Paths in a file are relative to the folder of that file.
    pub struct Config {
        /// A Stable Diffusion model: a checkpoint in one `.safetensors` file, or a folder in diffusers layout. Default `model`.
        model: PathBuf = "model".into(), "a Stable Diffusion model: one .safetensors file, or a folder in diffusers layout",
            check named("a .safetensors file or the folder of a diffusers model"),
            also "pretrained_model_name_or_path" "base_model" "name_or_path",
            decides false;
        // what decides of these is in the model's digest
        /// Another VAE: a `.safetensors` file, or a folder in diffusers layout. Default: the model's.
        vae: Option<PathBuf> = None, example |_| PathBuf::from("vae.safetensors"),
            "another VAE: a file or a folder; default: the model's",
            check if_set(named("a .safetensors file or a folder")), also "pretrained_vae_model_name_or_path",
            decides false;
        /// For a model in one file: a folder in diffusers layout that has configurations, tokenizer, and the parts that the file
        /// lacks. Default: those of Stable Diffusion.
        config: Option<PathBuf> = None, example |_| PathBuf::from("folder"),
            "of a single file: a diffusers folder for what it lacks; default: standard configurations",
            check if_set(named("the folder of a diffusers model")), decides false;
        /// What the model predicts. Default: what its files say.
        prediction: Option<PredictionType> = None, example |_| PredictionType::VPrediction,
            "what the model predicts, \"epsilon\" or \"v\"; default: what its files say",
            also "v_parameterization" "prediction_type", decides false;
        /// Embeddings (textual inversion) whose words have their vectors in captions: files whose names, or the words that they
        /// name, are the words. Default: none.
        embeddings: Vec<PathBuf> = Vec::new(), "embeddings (textual inversion) for words of the captions", decides false;
        /// The LoRA to write, a `.safetensors` file; of all features together, where there are several. Default
        /// `lora.safetensors`.
        output: PathBuf = "lora.safetensors".into(), "the LoRA to write",
            check lora_file, also "output_dir" "output_name", decides false;
        /// Number format of the LoRA's tensors on disk. Default `f16`.
        save_dtype: DType = DType::F16, "number format of that file: \"f16\" or \"f32\"",
            also "save_precision";
        /// JSON-lines log of the steps. Default: `output` with the extension `.jsonl`.
        log: Option<PathBuf> = None, example |c: &Config| c.log_path(),
            "one JSON line a step; default: beside the output",
            check if_set(file_name), decides false;
        /// Folder for curves that TensorBoard shows. Default: none.
        tensorboard: Option<PathBuf> = None, example |_| PathBuf::from("curves"),
            "folder for curves; default: none",
            also "logging_dir", decides false;
        /// All chance in a run comes from this number, at most 2⁶³ − 1 (TOML's largest). Default 0.
        seed: u64 = 0, "all chance in a run comes from this number", check within(0, i64::MAX as u64);
        /// Whether several features learn one after the other or side by side. Default `staged`.
        order: Order = Order::Staged,
            "several features: \"staged\", one after the other, or \"joint\", side by side";
        /// The pictures to learn from, in a run without features.
        dataset: DatasetConfig => table;
        /// Which layers get a LoRA, in a run without features. Default: one rule, `attn` with rank 8 and alpha 8.
        lora: Vec<LoraRule> => table = vec![LoraRule::default()];
        /// What to learn, where it is more than one thing or has a tag. Default: none.
        feature: Vec<FeatureConfig> => table;
        /// How to learn.
        train: TrainConfig => table;
    }
    together Config::check_together;
}

choice! {
    /// How the features of a run are trained.
    pub enum Order {
        /// One after the other, in the order of the config.
        Staged = "staged",
        /// Side by side: in each step each feature learns from samples of its own.
        Joint = "joint",
    }
}

impl Config {
    /// Opens the model.
    ///
    /// # Errors
    /// [`Checkpoint::open_with`]'s, or those of an embedding.
    pub fn checkpoint(&self) -> Result<Checkpoint> {
        let Self { vae, config, prediction, .. } = self.clone();
        let mut checkpoint = Checkpoint::open_with(&self.model, &ModelOptions { vae, config, prediction })?;
        for path in &self.embeddings {
            checkpoint.add_embeddings([Embedding::read(path, None)?])?;
        }
        Ok(checkpoint)
    }

    /// Where the log of the steps goes: `log`, or `output` with the extension `.jsonl`.
    pub fn log_path(&self) -> PathBuf {
        self.log.clone().unwrap_or_else(|| self.output.with_extension("jsonl"))
    }

    /// Samples in one update: `batch_size` · `gradient_accumulation`.
    pub fn samples_per_step(&self) -> u64 {
        u64::from(self.train.batch_size) * u64::from(self.train.gradient_accumulation)
    }

    /// What the run teaches. A config without `[[feature]]` is one feature that has no name and no tag.
    pub fn features(&self) -> Vec<FeatureConfig> {
        let own = |feature: &FeatureConfig| {
            let stem = self.output.file_stem().unwrap_or_default().to_string_lossy();
            let output = self.output.with_file_name(format!("{stem}-{}.safetensors", feature.name));
            FeatureConfig { output: feature.output.clone().or(Some(output)), ..feature.clone() }
        };
        if !self.feature.is_empty() {
            return self.feature.iter().map(own).collect();
        }
        let (dataset, lora, output) = (self.dataset.clone(), self.lora.clone(), Some(self.output.clone()));
        vec![FeatureConfig { output, dataset, lora, ..FeatureConfig::default() }]
    }

    /// Updates of a feature's LoRA.
    pub fn steps_of(&self, feature: &FeatureConfig) -> u64 {
        feature.steps.unwrap_or(self.train.steps)
    }

    fn check_together(&self) -> Result<(), Problem> {
        if self.log.as_ref() == Some(&self.output) {
            let must = "is also `output`; give the log a path of its own";
            return Err(Problem::new("log", self.output.display(), must));
        }
        if self.feature.is_empty() {
            if self.train.probe_every > 0 {
                let must = "probes features; give at least one [[feature]], or set it to 0";
                return Err(Problem::new("train.probe_every", self.train.probe_every, must));
            }
            return LoraRule::check_all(&self.lora);
        }
        self.check_features()
    }

    fn check_features(&self) -> Result<(), Problem> {
        // what would be ignored in silence
        let must = "is for runs without features; move it into each [[feature]]";
        if self.dataset != DatasetConfig::default() {
            return Err(Problem::new("dataset", self.dataset.folder.display(), must));
        }
        if self.lora != Self::default().lora {
            let selects: Vec<&String> = self.lora.iter().map(|rule| &rule.select).collect();
            return Err(Problem::new("lora", format!("{selects:?}"), must));
        }
        for (i, feature) in self.feature.iter().enumerate() {
            feature.check_against(&self.feature[..i]).map_err(|(key, value, must)| {
                Problem::new(format!("feature[{i}].{key}"), format!("{value:?}"), must)
            })?;
        }
        let mut files = BTreeSet::from([self.output.clone()]);
        for (i, feature) in self.features().iter().enumerate() {
            if !files.insert(feature.file().to_owned()) {
                let must = "is another file of this run; give it a path of its own";
                return Err(Problem::new(format!("feature[{i}].output"), feature.file().display(), must));
            }
        }
        Ok(())
    }
}
