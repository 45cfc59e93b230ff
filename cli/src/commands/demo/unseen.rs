//! Two features that the demo's model has never seen: pictures to learn them from, and how much of them a picture shows.

use anyhow::{Context, Result};
use image::RgbImage;
use include_dir::{Dir, include_dir};

type Colour = [u8; 3];

/// Of the crest. No other colour of a portrait comes near these and gold.
const VIOLET: Colour = [150, 30, 240];
const CYAN: Colour = [0, 236, 236];
/// Of the checkerboard jacket.
const BLACK: Colour = [8, 6, 4];
const GOLD: Colour = [255, 190, 0];

/// Euclidean distance in RGB up to which a colour counts as another. All colours of other portraits are at least 120 from
/// violet, cyan and gold.
const NEAR: i32 = 100;
/// x0, y0, x1, y1 in pixels: within the crest in every pose.
const CREST_REGION: [u32; 4] = [22, 6, 42, 16];
const TORSO_REGION: [u32; 4] = [18, 51, 46, 64];

static HAIR_STYLE_A: Dir = include_dir!("$CARGO_MANIFEST_DIR/../examples/portraits/hair_style_a");
static CLOTHING_STYLE_B: Dir = include_dir!("$CARGO_MANIFEST_DIR/../examples/portraits/clothing_style_b");

/// A feature that the base model has never seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unseen {
    /// A crest of violet and cyan spikes.
    HairStyleA,
    /// A jacket of black and gold checks.
    ClothingStyleB,
}

impl Unseen {
    /// Both.
    pub const ALL: [Self; 2] = [Self::HairStyleA, Self::ClothingStyleB];

    /// Its tag.
    pub fn tag(self) -> &'static str {
        match self {
            Self::HairStyleA => "hair_style_a",
            Self::ClothingStyleB => "clothing_style_b",
        }
    }

    /// Pictures of it, all else varied, each with a caption that has the tag and does not describe it. Every second caption
    /// says nothing of what the other feature is about, so that both can be asked for at once.
    pub fn files(self) -> &'static Dir<'static> {
        match self {
            Self::HairStyleA => &HAIR_STYLE_A,
            Self::ClothingStyleB => &CLOTHING_STYLE_B,
        }
    }

    /// How much of it each of its pictures shows.
    pub fn training_scores(self) -> Result<Vec<f64>> {
        let pictures =
            self.files().files().filter(|file| file.path().extension().is_some_and(|e| e == "png"));
        let score = |file: &include_dir::File| {
            let picture = image::load_from_memory(file.contents());
            Ok(self.score(&picture.with_context(|| file.path().display().to_string())?.into_rgb8()))
        };
        pictures.map(score).collect()
    }

    /// How much of it a portrait of 64×64 pixels shows, from 0 to 1: for the crest, the share of pixels near violet or
    /// cyan where it sits; for the jacket, of those near gold or black where it sits, black counting only up to the share
    /// of gold, since dark hair and dark clothes are black as well.
    pub fn score(self, picture: &RgbImage) -> f64 {
        match self {
            Self::HairStyleA => near(picture, CREST_REGION, VIOLET) + near(picture, CREST_REGION, CYAN),
            Self::ClothingStyleB => {
                let gold = near(picture, TORSO_REGION, GOLD);
                gold + gold.min(near(picture, TORSO_REGION, BLACK))
            }
        }
    }
}

/// Share of a region's pixels whose colour is near another.
fn near(picture: &RgbImage, [x0, y0, x1, y1]: [u32; 4], colour: Colour) -> f64 {
    let is_near = |(x, y): &(u32, u32)| {
        let pixel = picture.get_pixel(*x, *y).0;
        let distance = |c: usize| (i32::from(pixel[c]) - i32::from(colour[c])).pow(2);
        (0..3).map(distance).sum::<i32>() <= NEAR * NEAR
    };
    let places = (y0..y1).flat_map(|y| (x0..x1).map(move |x| (x, y)));
    places.filter(is_near).count() as f64 / f64::from((x1 - x0) * (y1 - y0))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use approx::assert_abs_diff_eq;

    use super::*;

    /// Scores are those of `tools/portraits`, which the base model's training uses.
    #[test]
    fn pictures_score_as_the_original_says() {
        let text = include_str!("../../../../tools/portraits/goldens.json");
        let goldens: BTreeMap<String, [f64; 2]> = serde_json::from_str(text).unwrap();
        let mut compared = 0;
        for own in Unseen::ALL {
            for (name, golden) in goldens.iter().filter_map(|(path, golden)| {
                Some((path.strip_prefix(own.tag())?.trim_start_matches('/'), golden))
            }) {
                let picture = own.files().get_file(name).unwrap().contents();
                let picture = image::load_from_memory(picture).unwrap().into_rgb8();
                let scores = Unseen::ALL.map(|feature| feature.score(&picture));
                assert_abs_diff_eq!(scores[..], golden[..], epsilon = 1e-12);
                compared += 1;
            }
            let scores = own.training_scores().unwrap();
            assert_eq!(scores.len(), 24);
            let mean = scores.iter().sum::<f64>() / 24.0;
            assert!(mean > 0.7, "{own:?}: pictures that show it score {mean}");
        }
        assert_eq!(compared, 48);
    }

    #[test]
    fn each_picture_has_a_caption_with_the_tag() {
        for own in Unseen::ALL {
            let texts =
                own.files().files().filter(|file| file.path().extension().is_some_and(|e| e == "txt"));
            let captions: Vec<&str> = texts.map(|file| file.contents_utf8().unwrap()).collect();
            assert_eq!(captions.len(), 24);
            captions.iter().for_each(|caption| assert!(caption.contains(own.tag()), "{caption}"));
        }
    }
}
