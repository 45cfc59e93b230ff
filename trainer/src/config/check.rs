//! What a config must satisfy beyond its types.

use std::collections::BTreeSet;

use super::{Config, DatasetConfig, FeatureConfig, LoraRule, TrainConfig};
use crate::data::dataset::PICTURE_EXTENSIONS;
use crate::{Error, Result};

/// Timesteps of Stable Diffusion's noise schedule.
const TIMESTEPS: u32 = 1000;
/// Pixels of one latent; a picture must be a whole number of latents wide and high.
const LATENT_PIXELS: u32 = 8;
/// Far beyond what Stable Diffusion can draw; a typing error should not ask for all of the memory.
const MAX_SIDE: u32 = 8192;

/// A key, its value, and what it must be.
pub(super) struct Problem {
    pub key: String,
    pub value: String,
    pub must: String,
}

impl Problem {
    pub fn message(&self) -> String {
        format!("{} = {}: {}", self.key, self.value, self.must)
    }

    /// For a config that came from no file.
    fn into_error(self) -> Error {
        Error::Config { file: None, line: None, message: self.message() }
    }
}

impl Config {
    /// Checks every value. [`Config::load`] does this already; a config built in code needs it.
    ///
    /// # Errors
    /// [`Error::Config`] with the first key whose value cannot work.
    pub fn validate(&self) -> Result<()> {
        self.check().map_err(Problem::into_error)
    }

    pub(super) fn check(&self) -> Result<(), Problem> {
        let Self {
            model,
            output,
            save_dtype: _,
            log,
            tensorboard: _,
            seed,
            order: _,
            dataset,
            lora,
            feature,
            train,
        } = self;
        let safetensors =
            output.extension().is_some_and(|e| e == "safetensors") && output.file_stem().is_some();
        require(!model.as_os_str().is_empty(), "model", model, "must be the folder of a diffusers model")?;
        require(safetensors, "output", output, "must be the path of a `.safetensors` file")?;
        if let Some(log) = log {
            require(
                log.file_name().is_some(),
                "log",
                log,
                "must be the path of a file; omit it for the default",
            )?;
            require(log != output, "log", log, "is also `output`; give the log a path of its own")?;
        }
        require(i64::try_from(*seed).is_ok(), "seed", seed, "must be at most 9223372036854775807")?;
        train.check()?;
        let probes = train.probe_every > 0;
        let must = "probes features; give at least one [[feature]], or set it to 0";
        require(!probes || !feature.is_empty(), "train.probe_every", train.probe_every, must)?;
        let limit = train.stop_leak;
        require(not_negative(limit), "train.stop_leak", limit, "must be 0 (never) or more")?;
        let must = "needs train.probe_every, since it is a probe that finds it";
        require(limit == 0.0 || probes, "train.stop_leak", limit, must)?;
        if feature.is_empty() {
            dataset.check("")?;
            return check_rules(lora, "");
        }
        // what would be ignored in silence
        let must = "is for runs without features; move it into each [[feature]]";
        require(*dataset == DatasetConfig::default(), "dataset", &dataset.folder, must)?;
        let selects: Vec<&String> = lora.iter().map(|rule| &rule.select).collect();
        require(*lora == Config::default().lora, "lora", selects, must)?;
        feature.iter().enumerate().try_for_each(|(i, feature)| feature.check(i, self))?;
        let features = self.features();
        let mut files = BTreeSet::from([output.as_path()]);
        for (i, feature) in features.iter().enumerate() {
            let (key, file) = (format!("feature[{i}].output"), feature.file());
            require(
                files.insert(file),
                &key,
                file,
                "is another file of this run; give it a path of its own",
            )?;
        }
        Ok(())
    }
}

fn check_rules(lora: &[LoraRule], prefix: &str) -> Result<(), Problem> {
    let key = format!("{prefix}lora");
    require(!lora.is_empty(), &key, lora, "selects no layers; give at least one rule")?;
    lora.iter().enumerate().try_for_each(|(i, rule)| rule.check(&format!("{key}[{i}]")))
}

impl FeatureConfig {
    /// `i` is its place in `config`.
    fn check(&self, i: usize, config: &Config) -> Result<(), Problem> {
        let Self {
            name,
            tags,
            class: _,
            describes: _,
            output,
            steps,
            loss_weight,
            with_frozen: _,
            dataset,
            lora,
            silence,
            preserve,
        } = self;
        let prefix = format!("feature[{i}].");
        let key = |name: &str| format!("{prefix}{name}");
        let simple = |c: char| c.is_alphanumeric() || "_-.".contains(c);
        let named = !name.is_empty() && name.chars().all(simple) && !name.starts_with('.');
        require(
            named,
            &key("name"),
            name,
            "must be letters, digits, `_`, `-` and `.`, as files are named after it",
        )?;
        let earlier = &config.feature[..i];
        let taken = earlier.iter().any(|f| f.name == *name);
        require(
            !taken,
            &key("name"),
            name,
            "is the name of an earlier feature; give each a name of its own",
        )?;
        let must = "must name at least one tag; a feature without one could not be called";
        require(!tags.is_empty() && tags.iter().all(|t| !t.trim().is_empty()), &key("tags"), tags, must)?;
        for tag in tags {
            let same = |other: &String| other.trim().eq_ignore_ascii_case(tag.trim());
            let of = earlier.iter().find(|f| f.tags.iter().any(same)).map(|f| &f.name);
            let must =
                format!("is also a tag of {}; give each feature tags of its own", of.map_or("", |n| n));
            require(of.is_none(), &key("tags"), tag, &must)?;
        }
        if let Some(output) = output {
            let safetensors = output.extension().is_some_and(|e| e == "safetensors");
            require(safetensors, &key("output"), output, "must be the path of a `.safetensors` file")?;
        }
        require(*steps != Some(0), &key("steps"), 0, "must be at least 1; omit it to use train.steps")?;
        require(positive(*loss_weight), &key("loss_weight"), loss_weight, "must be more than 0")?;
        dataset.check(&prefix)?;
        check_rules(lora, &prefix)?;
        if let Some(silence) = silence {
            require(
                !silence.bank.is_empty(),
                &key("silence.bank"),
                &silence.bank,
                "must be \"default\" or a file",
            )?;
        }
        if let Some(preserve) = preserve {
            let weight = preserve.weight;
            require(
                positive(weight),
                &key("preserve.weight"),
                weight,
                "must be more than 0; omit [feature.preserve]",
            )?;
            let (share, must) = (preserve.share, "must be more than 0 and at most 8");
            require(positive(share) && share <= 8.0, &key("preserve.share"), share, must)?;
            let kinds = &preserve.prompts;
            require(
                !kinds.is_empty(),
                &key("preserve.prompts"),
                kinds,
                "must name at least one kind of prompts",
            )?;
        }
        Ok(())
    }
}

impl DatasetConfig {
    /// Checks every value, as [`Config::validate`] does for the whole.
    pub(crate) fn validate(&self) -> Result<()> {
        self.check("").map_err(Problem::into_error)
    }

    /// `prefix` is what stands before `dataset` in the keys of errors.
    fn check(&self, prefix: &str) -> Result<(), Problem> {
        let key = |name: &str| format!("{prefix}dataset.{name}");
        let Self { folder, resolution, caption_extension: extension, center_crop: _, flip: _ } = self;
        require(!folder.as_os_str().is_empty(), &key("folder"), folder, "must be a folder of pictures")?;
        for side in [resolution.width, resolution.height] {
            let whole = side.is_multiple_of(LATENT_PIXELS) && (LATENT_PIXELS..=MAX_SIDE).contains(&side);
            let lower = (side - side % LATENT_PIXELS).clamp(LATENT_PIXELS, MAX_SIDE - LATENT_PIXELS);
            let must = format!(
                "must be a multiple of {LATENT_PIXELS} from {LATENT_PIXELS} to {MAX_SIDE}; try {lower} or {}",
                lower + LATENT_PIXELS
            );
            require(whole, &key("resolution"), side, &must)?;
        }
        let bare = extension.strip_prefix('.').unwrap_or("");
        let key = &key("caption_extension");
        require(
            !bare.is_empty() && !bare.contains(['/', '\\']),
            key,
            extension,
            "must be a dot and a name, such as \".txt\"",
        )?;
        let picture = PICTURE_EXTENSIONS.iter().any(|known| known.eq_ignore_ascii_case(bare));
        require(!picture, key, extension, "is the extension of pictures; captions are text, such as \".txt\"")
    }
}

impl LoraRule {
    fn check(&self, rule: &str) -> Result<(), Problem> {
        let Self { select, rank, alpha, lr } = self;
        let key = |name: &str| format!("{rule}.{name}");
        require(
            !select.trim().is_empty(),
            &key("select"),
            select,
            "must be a pattern or a group, such as \"attn\"",
        )?;
        require(*rank > 0, &key("rank"), rank, "must be at least 1")?;
        require(positive(*alpha), &key("alpha"), alpha, "must be more than 0")?;
        require(
            lr.is_none_or(positive),
            &key("lr"),
            lr.unwrap_or_default(),
            "must be more than 0; omit it to use train.lr",
        )
    }
}

impl TrainConfig {
    fn check(&self) -> Result<(), Problem> {
        let key = |name: &str| format!("train.{name}");
        require(self.steps > 0, &key("steps"), self.steps, "must be at least 1")?;
        require(self.batch_size > 0, &key("batch_size"), self.batch_size, "must be at least 1")?;
        let accumulation = self.gradient_accumulation;
        require(accumulation > 0, &key("gradient_accumulation"), accumulation, "must be at least 1")?;
        require(positive(self.lr), &key("lr"), self.lr, "must be more than 0")?;
        let must =
            format!("is more than train.steps = {}, so the full learning rate is never reached", self.steps);
        require(self.warmup_steps <= self.steps, &key("warmup_steps"), self.warmup_steps, &must)?;
        require(
            not_negative(self.max_grad_norm),
            &key("max_grad_norm"),
            self.max_grad_norm,
            "must be 0 (off) or more",
        )?;
        require(
            not_negative(self.weight_decay),
            &key("weight_decay"),
            self.weight_decay,
            "must be 0 or more",
        )?;
        let betas = self.betas.iter().all(|beta| (0.0..1.0).contains(beta));
        require(betas, &key("betas"), self.betas, "must both be at least 0 and less than 1")?;
        require(positive(self.eps), &key("eps"), self.eps, "must be more than 0")?;
        let gamma = self.min_snr_gamma;
        require(
            gamma.is_none_or(positive),
            &key("min_snr_gamma"),
            gamma.unwrap_or_default(),
            "must be more than 0; omit it for off",
        )?;
        require(
            not_negative(self.noise_offset),
            &key("noise_offset"),
            self.noise_offset,
            "must be 0 (off) or more",
        )?;
        let share = (0.0..=1.0).contains(&self.caption_dropout);
        require(share, &key("caption_dropout"), self.caption_dropout, "must be a share from 0 to 1")?;
        let (min, max) = (self.timestep_min, self.timestep_max);
        require(max <= TIMESTEPS, &key("timestep_max"), max, &format!("must be at most {TIMESTEPS}"))?;
        let must =
            format!("must be less than train.timestep_max = {max}, which is one past the last timestep");
        require(min < max, &key("timestep_min"), min, &must)
    }
}

fn require(ok: bool, key: &str, value: impl std::fmt::Debug, must: &str) -> Result<(), Problem> {
    if ok {
        return Ok(());
    }
    Err(Problem { key: key.to_owned(), value: format!("{value:?}"), must: must.to_owned() })
}

/// More than 0 and finite; NaN is not.
fn positive(x: f64) -> bool {
    x > 0.0 && x.is_finite()
}

/// At least 0 and finite; NaN is not.
fn not_negative(x: f64) -> bool {
    x >= 0.0 && x.is_finite()
}
