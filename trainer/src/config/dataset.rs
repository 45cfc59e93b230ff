//! Pictures and captions: `[dataset]`, `[feature.dataset]`.

use std::path::PathBuf;

use toml::de::DeValue;

use super::check::{named, require, validate};
use super::section::section;
use super::value::Value;
use crate::Result;
use crate::data::dataset::PICTURE_EXTENSIONS;

/// Pixels of one latent; a picture must be a whole number of latents wide and high.
const LATENT_PIXELS: u32 = 8;
/// Far beyond what Stable Diffusion can draw; a typing error should not ask for all of the memory.
const MAX_SIDE: u32 = 8192;

section! {
    /// A folder of pictures, each with a caption beside it.
    pub struct DatasetConfig {
        /// Folder of pictures. Default `pictures`.
        folder: PathBuf = "pictures".into(),
            "pictures (png, jpg, webp, bmp, gif, tiff, …), each with a caption beside it",
            check named("a folder of pictures"),
            also "train_data_dir" "image_dir" "instance_data_dir" "folder_path",
            decides false;
        /// Size in pixels that every picture is brought to. Default 512 × 512.
        resolution: Resolution = Resolution { width: 512, height: 512 },
            "pixels: a side, or [width, height]; multiples of 8",
            check Resolution::check;
        /// What replaces a picture's extension to name its caption. Default `.txt`.
        caption_extension: String = ".txt".into(), "a.png has its caption on the first line of a.txt",
            check caption_extension, also "caption_ext",
            // the captions themselves do
            decides false;
        /// `true` (default): keep proportions and cut off what is over at the edges; `false`: squeeze the whole picture
        /// in.
        center_crop: bool = true, "true: cut off what is over at the edges; false: squeeze";
        /// Show each picture mirrored half of the time. Default `false`: it harms text, faces and logos.
        flip: bool = false, "mirror half of the pictures; harms text, faces and logos",
            also "flip_aug" "random_flip";
    }
}

impl DatasetConfig {
    /// Checks every value, as [`Config::validate`](super::Config::validate) does for the whole.
    pub(crate) fn validate(&self) -> Result<()> {
        validate(self, "dataset")
    }
}

fn caption_extension(extension: &str) -> Result<(), String> {
    let bare = extension.strip_prefix('.').unwrap_or("");
    let named = !bare.is_empty() && !bare.contains(['/', '\\']);
    require(named, "must be a dot and a name, such as \".txt\"")?;
    let picture = PICTURE_EXTENSIONS.iter().any(|known| known.eq_ignore_ascii_case(bare));
    require(!picture, "is the extension of pictures; captions are text, such as \".txt\"")
}

/// Width and height in pixels: `512` or `[512, 768]` in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resolution {
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

impl Resolution {
    fn check(&self) -> Result<(), String> {
        [self.width, self.height].into_iter().try_for_each(|side| {
            let whole = side.is_multiple_of(LATENT_PIXELS) && (LATENT_PIXELS..=MAX_SIDE).contains(&side);
            let lower = (side - side % LATENT_PIXELS).clamp(LATENT_PIXELS, MAX_SIDE - LATENT_PIXELS);
            let upper = lower + LATENT_PIXELS;
            require(
                whole,
                format!(
                    "must be a multiple of {LATENT_PIXELS} from {LATENT_PIXELS} to {MAX_SIDE}; try {lower} or {upper}"
                ),
            )
        })
    }
}

impl Value for Resolution {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        let sides = match value {
            DeValue::Array(_) => Vec::<u32>::read(value).ok(),
            side => u32::read(side).ok().map(|side| vec![side; 2]),
        };
        match sides.as_deref() {
            Some(&[width, height]) => Ok(Self { width, height }),
            _ => Err(format!("must be pixels up to {MAX_SIDE}, such as 512, or [width, height]")),
        }
    }

    fn print(&self) -> Option<String> {
        let Self { width, height } = self;
        Some(if width == height { width.to_string() } else { format!("[{width}, {height}]") })
    }
}
