//! From [`Config`] to commented TOML.

use std::fmt::{Debug, Write};
use std::path::Path;

use super::{
    Config, DatasetConfig, FeatureConfig, LoraRule, Order, Precision, PreserveConfig, PreservePrompt,
    Resolution, Schedule, SilenceConfig, TrainConfig,
};

impl Config {
    /// Every key at its default, with comments: a file to start from.
    pub fn default_toml() -> String {
        Self::default().to_toml()
    }

    /// A config of two features with every key: a file to start from.
    pub fn example_toml() -> String {
        let feature = |name: &str, class: &str, select: &str| FeatureConfig {
            name: name.into(),
            tags: vec![name.into()],
            class: class.into(),
            describes: vec![class.into()],
            dataset: DatasetConfig { folder: format!("pictures/{name}").into(), ..DatasetConfig::default() },
            lora: vec![LoraRule { select: select.into(), ..LoraRule::default() }],
            silence: Some(SilenceConfig::default()),
            preserve: Some(PreserveConfig::default()),
            ..FeatureConfig::default()
        };
        let feature = vec![
            feature("hair_style_a", "hair", "up_blocks.1 & attn"),
            feature("clothing_style_b", "clothing", "up_blocks.2 & attn"),
        ];
        Self { feature, ..Self::default() }.to_toml()
    }

    /// The whole config in effect as commented TOML, which parses back to the same config.
    pub fn to_toml(&self) -> String {
        // Taken apart without `..`, here and below, so that a new key cannot be forgotten.
        let Self { model, output, save_dtype, log, tensorboard, seed, order, dataset, lora, feature, train } =
            self;
        let mut text = String::from("# Paths are relative to the folder of this file.\n\n");
        let t = &mut text;
        line(t, "model", path(model), "folder of a Stable Diffusion model in diffusers layout");
        line(t, "output", path(output), "the LoRA to write");
        line(t, "save_dtype", precision(*save_dtype), "number format of that file: \"f16\" or \"f32\"");
        let log = log.as_deref().map(path);
        optional(t, "log", log, path(&self.log_path()), "one JSON line a step; default: beside the output");
        let board = tensorboard.as_deref().map(path);
        optional(t, "tensorboard", board, path(Path::new("curves")), "folder for curves; default: none");
        line(t, "seed", seed.to_string(), "all chance in a run comes from this number");
        let staged = if *order == Order::Staged { "staged" } else { "joint" };
        let note = "several features: \"staged\", one after the other, or \"joint\", side by side";
        line(t, "order", string(staged), note);
        if feature.is_empty() {
            dataset.print(t, "");
            for rule in lora {
                rule.print(t, train.lr, "");
            }
        }
        for feature in feature {
            feature.print(t, self);
        }
        train.print(t);
        text
    }
}

impl DatasetConfig {
    fn print(&self, t: &mut String, prefix: &str) {
        let Self { folder, resolution, caption_extension, center_crop, flip } = self;
        t.push_str(&format!("\n[{prefix}dataset]\n"));
        line(
            t,
            "folder",
            path(folder),
            "pictures (png, jpg, webp, bmp, gif, tiff, …), each with a caption beside it",
        );
        line(t, "resolution", size(*resolution), "pixels: a side, or [width, height]; multiples of 8");
        line(
            t,
            "caption_extension",
            string(caption_extension),
            "a.png has its caption on the first line of a.txt",
        );
        line(
            t,
            "center_crop",
            number(center_crop),
            "true: cut off what is over at the edges; false: squeeze",
        );
        line(t, "flip", number(flip), "mirror half of the pictures; harms text, faces and logos");
    }
}

impl FeatureConfig {
    fn print(&self, t: &mut String, config: &Config) {
        let Self {
            name,
            tags,
            class,
            describes,
            output,
            steps,
            loss_weight,
            with_frozen,
            dataset,
            lora,
            silence,
            preserve,
        } = self;
        t.push_str("\n[[feature]] # something to learn; repeat the table for others\n");
        line(t, "name", string(name), "names its files");
        line(t, "tags", strings(tags), "words that call it; every caption carries one of them");
        line(t, "class", string(class), "what such a thing is called; may stand in for the tag");
        line(t, "describes", strings(describes), "words that captions should leave out");
        let output = output.as_deref().map(path);
        let beside = config.output.with_file_name(format!("lora-{name}.safetensors"));
        optional(t, "output", output, path(&beside), "its LoRA; default: named after the run's output");
        let steps = steps.map(|steps| steps.to_string());
        optional(t, "steps", steps, config.train.steps.to_string(), "updates; default: train.steps");
        line(t, "loss_weight", number(loss_weight), "factor on its loss");
        line(
            t,
            "with_frozen",
            number(with_frozen),
            "staged: learn beside earlier features, which are frozen",
        );
        if let Some(SilenceConfig { bank, rank, disjoint }) = silence {
            t.push_str(
                "\n[feature.silence] # keys and values of the text stay the base model's without the tag\n",
            );
            line(t, "bank", string(bank), "\"default\", or a file with one prompt a line");
            line(t, "rank", number(rank), "directions of ordinary text to be deaf to; more costs learning");
            line(t, "disjoint", number(disjoint), "also deaf to what earlier features hear");
        }
        if let Some(PreserveConfig { weight, share, prompts }) = preserve {
            t.push_str("\n[feature.preserve] # train the model to stay as it was without the tag\n");
            line(t, "weight", number(weight), "factor on that loss");
            line(t, "share", number(share), "such samples for each sample that is learned from");
            let known = |kind: &PreservePrompt| PreservePrompt::ALL.into_iter().find(|(_, k)| k == kind);
            let names = prompts.iter().filter_map(known).map(|(name, _)| name.to_owned()).collect::<Vec<_>>();
            line(t, "prompts", strings(&names), "kinds of prompts");
        }
        dataset.print(t, "feature.");
        for rule in lora {
            rule.print(t, config.train.lr, "feature.");
        }
    }
}

impl LoraRule {
    fn print(&self, t: &mut String, train_lr: f64, prefix: &str) {
        let Self { select, rank, alpha, lr } = self;
        t.push_str(&format!(
            "\n[[{prefix}lora]] # a rule; repeat the table to give other layers another rank\n"
        ));
        line(t, "select", string(select), "pattern of layer paths, or the name of a group of layers");
        line(t, "rank", number(rank), "more learns more, and makes a larger file");
        line(t, "alpha", number(alpha), "the LoRA is scaled by alpha / rank");
        let lr = lr.as_ref().map(number);
        optional(t, "lr", lr, number(train_lr), "learning rate of these layers; default: train.lr");
    }
}

impl TrainConfig {
    fn print(&self, t: &mut String) {
        let Self {
            steps,
            batch_size,
            gradient_accumulation,
            lr,
            lr_schedule,
            warmup_steps,
            max_grad_norm,
            weight_decay,
            betas: [beta1, beta2],
            eps,
            dtype,
            gradient_checkpointing,
            min_snr_gamma,
            noise_offset,
            caption_dropout,
            save_every,
            probe_every,
            stop_leak,
            timestep_min,
            timestep_max,
        } = self;
        t.push_str("\n[train]\n");
        line(t, "steps", number(steps), "updates of the LoRA");
        line(t, "batch_size", number(batch_size), "pictures at once; costs memory");
        line(t, "gradient_accumulation", number(gradient_accumulation), "batches in one update; costs time");
        line(t, "lr", number(lr), "learning rate");
        line(
            t,
            "lr_schedule",
            schedule(*lr_schedule),
            "\"constant\", \"cosine\" or \"linear\" (both down to 0)",
        );
        line(t, "warmup_steps", number(warmup_steps), "steps over which the learning rate rises");
        line(t, "max_grad_norm", number(max_grad_norm), "a longer gradient is scaled down to this; 0 = off");
        line(t, "weight_decay", number(weight_decay), "AdamW");
        line(t, "betas", format!("[{beta1:?}, {beta2:?}]"), "AdamW");
        line(t, "eps", number(eps), "AdamW");
        line(t, "dtype", precision(*dtype), "of weights and activations: \"f16\" or \"f32\"");
        line(
            t,
            "gradient_checkpointing",
            number(gradient_checkpointing),
            "less memory, the same result; costs a second forward pass",
        );
        let gamma = min_snr_gamma.as_ref().map(number);
        optional(
            t,
            "min_snr_gamma",
            gamma,
            "5.0".into(),
            "weighs steps by min(SNR, gamma) / SNR; default: off",
        );
        line(
            t,
            "noise_offset",
            number(noise_offset),
            "shifts each channel of the noise; 0.05 helps dark pictures",
        );
        line(t, "caption_dropout", number(caption_dropout), "share of samples with an empty caption");
        line(t, "save_every", number(save_every), "steps between saves; 0 = at the end alone");
        line(t, "probe_every", number(probe_every), "steps between probes of a feature for leaks; 0 = never");
        line(t, "stop_leak", number(stop_leak), "stop a feature once a probe finds it leaks more; 0 = never");
        line(t, "timestep_min", number(timestep_min), "first timestep to draw: 0 is the clean picture");
        line(t, "timestep_max", number(timestep_max), "one past the last: 1000 is all noise");
    }
}

/// `key = value # note`
fn line(t: &mut String, key: &str, value: String, note: &str) {
    writeln!(t, "{:<28} # {note}", format!("{key} = {value}")).expect("a String takes any text");
}

/// As [`line`], with a key that is not set commented out: TOML cannot say "none".
fn optional(t: &mut String, key: &str, value: Option<String>, example: String, note: &str) {
    match value {
        Some(value) => line(t, key, value, note),
        None => line(t, &format!("# {key}"), example, note),
    }
}

/// Rust's shortest form that reads back as the same number is also TOML's.
fn number(x: impl Debug) -> String {
    format!("{x:?}")
}

fn string(s: &str) -> String {
    toml::Value::from(s).to_string()
}

fn strings(list: &[String]) -> String {
    format!("[{}]", list.iter().map(|s| string(s)).collect::<Vec<_>>().join(", "))
}

fn path(path: &Path) -> String {
    string(&path.to_string_lossy())
}

fn size(Resolution { width, height }: Resolution) -> String {
    if width == height { width.to_string() } else { format!("[{width}, {height}]") }
}

fn precision(precision: Precision) -> String {
    string(match precision {
        Precision::F32 => "f32",
        Precision::F16 => "f16",
    })
}

fn schedule(schedule: Schedule) -> String {
    string(match schedule {
        Schedule::Constant => "constant",
        Schedule::Cosine => "cosine",
        Schedule::Linear => "linear",
    })
}
