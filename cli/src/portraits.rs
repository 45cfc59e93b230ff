//! Portraits of 64×64 pixels and their captions, drawn from attributes: what the tiny model in `demo/model` has learned,
//! and two features that it has never seen.
//!
//! The base model's training draws the same pictures with `tools/portraits`; `goldens.json` there holds both to one
//! another.

mod attributes;
mod canvas;
mod draw;

pub use attributes::{Attributes, Background, Clothing, Expression, Gender, Hair, Paint, Rng};
pub use canvas::{Colour, SIZE};
pub use draw::draw;

use image::RgbImage;

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
    /// Pictures to learn it from.
    pub const PICTURES: usize = 24;

    /// Its tag.
    pub fn tag(self) -> &'static str {
        match self {
            Self::HairStyleA => "hair_style_a",
            Self::ClothingStyleB => "clothing_style_b",
        }
    }

    /// Its pictures, all else varied, with captions that have the tag and do not describe it. Every second caption says
    /// nothing of what the other feature is about, so that both can be asked for at once.
    pub fn pictures(self) -> Vec<(RgbImage, String)> {
        let mut rng = Rng::new(if self == Self::HairStyleA { 11 } else { 12 });
        let picture = |i| {
            let mut attributes = Attributes::sample(&mut rng);
            let (own, other) = (Some(self.tag()), (i % 2 == 1).then_some(""));
            let caption = match self {
                Self::HairStyleA => {
                    attributes.hair = Hair::Crest;
                    attributes.caption(own, other)
                }
                Self::ClothingStyleB => {
                    attributes.clothing = Clothing::Checker;
                    attributes.caption(other, own)
                }
            };
            (draw(&attributes), caption)
        };
        (0..Self::PICTURES).map(picture).collect()
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
