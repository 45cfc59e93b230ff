//! What a config must satisfy beyond its types.

use super::{Config, DatasetConfig, LoraRule, TrainConfig};
use crate::dataset::PICTURE_EXTENSIONS;
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
        let Self { model, output, save_dtype: _, log, seed, dataset, lora, train } = self;
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
        dataset.check()?;
        require(!lora.is_empty(), "lora", lora, "selects no layers; give at least one [[lora]] rule")?;
        lora.iter().enumerate().try_for_each(|(i, rule)| rule.check(i))?;
        train.check()
    }
}

impl DatasetConfig {
    /// Checks every value, as [`Config::validate`] does for the whole.
    pub(crate) fn validate(&self) -> Result<()> {
        self.check().map_err(Problem::into_error)
    }

    fn check(&self) -> Result<(), Problem> {
        let Self { folder, resolution, caption_extension: extension, center_crop: _, flip: _ } = self;
        require(!folder.as_os_str().is_empty(), "dataset.folder", folder, "must be a folder of pictures")?;
        for side in [resolution.width, resolution.height] {
            let whole = side.is_multiple_of(LATENT_PIXELS) && (LATENT_PIXELS..=MAX_SIDE).contains(&side);
            let lower = (side - side % LATENT_PIXELS).clamp(LATENT_PIXELS, MAX_SIDE - LATENT_PIXELS);
            let must = format!(
                "must be a multiple of {LATENT_PIXELS} from {LATENT_PIXELS} to {MAX_SIDE}; try {lower} or {}",
                lower + LATENT_PIXELS
            );
            require(whole, "dataset.resolution", side, &must)?;
        }
        let bare = extension.strip_prefix('.').unwrap_or("");
        let key = "dataset.caption_extension";
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
    fn check(&self, i: usize) -> Result<(), Problem> {
        let Self { select, rank, alpha, lr } = self;
        let key = |name: &str| format!("lora[{i}].{name}");
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
