//! What a portrait shows, at random or in words.

use super::canvas::Colour;

/// A colour that captions can name.
#[derive(Debug, PartialEq, Eq)]
pub struct Paint {
    /// In captions.
    pub name: &'static str,
    /// Flat, without light and shade.
    pub rgb: Colour,
}

const fn paint(name: &'static str, rgb: Colour) -> Paint {
    Paint { name, rgb }
}

/// Colours of skin.
pub static SKIN: [Paint; 4] = [
    paint("light", [240, 206, 180]),
    paint("tan", [214, 166, 124]),
    paint("brown", [158, 108, 76]),
    paint("dark", [100, 66, 50]),
];

/// Colours of hair.
pub static HAIR: [Paint; 6] = [
    paint("black", [40, 36, 42]),
    paint("brown", [112, 66, 36]),
    paint("blonde", [236, 208, 140]),
    paint("red", [196, 64, 28]),
    paint("blue", [50, 92, 214]),
    paint("pink", [244, 132, 180]),
];

/// Colours of clothes.
pub static CLOTH: [Paint; 6] = [
    paint("red", [206, 40, 48]),
    paint("green", [44, 146, 70]),
    paint("blue", [40, 80, 196]),
    paint("white", [238, 238, 232]),
    paint("grey", [122, 126, 132]),
    paint("pink", [246, 150, 186]),
];

/// Declares an enum whose values have a name in captions.
macro_rules! named {
    ($(#[$doc:meta])* $type:ident { $($value:ident = $name:literal),* $(,)? }) => {
        $(#[$doc])*
        #[allow(missing_docs)]
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $type { $($value),* }

        impl $type {
            /// What captions call it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$value => $name),* }
            }
        }
    };
}

named!(
    /// Whose portrait it is.
    Gender { Woman = "woman", Man = "man" }
);
named!(
    /// Hair styles. No picture that the base model learned from has [`Hair::Crest`].
    Hair {
        Short = "short", Long = "long", Bob = "bob", Curly = "curly", Ponytail = "ponytail", Bald = "bald",
        Crest = "crest",
    }
);
named!(
    /// What is worn. No picture that the base model learned from has [`Clothing::Checker`].
    Clothing {
        TShirt = "t-shirt", Hoodie = "hoodie", Dress = "dress", Suit = "suit", Sweater = "sweater",
        Checker = "checker",
    }
);
named!(
    /// What is behind.
    Background {
        Plain = "plain", Beach = "beach", Forest = "forest", City = "city", Night = "night", Room = "room",
    }
);
named!(
    /// Of the face.
    Expression { Neutral = "neutral", Smiling = "smiling", Surprised = "surprised" }
);

use Background::{Beach, City, Forest, Night, Plain, Room};
use Clothing::{Dress, Hoodie, Suit, Sweater, TShirt};
use Expression::{Neutral, Smiling, Surprised};
use Gender::{Man, Woman};
use Hair::{Bald, Bob, Curly, Long, Ponytail, Short};

/// Everything that a portrait is drawn from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// Whose portrait it is.
    pub gender: Gender,
    /// One of [`SKIN`].
    pub skin: &'static Paint,
    /// The style.
    pub hair: Hair,
    /// One of [`HAIR`].
    pub hair_colour: &'static Paint,
    /// What is worn.
    pub clothing: Clothing,
    /// One of [`CLOTH`].
    pub clothing_colour: &'static Paint,
    /// What is behind.
    pub background: Background,
    /// Of the face.
    pub expression: Expression,
    /// Of the body from the middle, in quarters of a pixel.
    pub body_x: i32,
    /// Of the head from the body.
    pub head_x: i32,
    /// Of the head from where it would be.
    pub head_y: i32,
    /// On which side a ponytail hangs.
    pub right: bool,
    /// 0 to 63; shifts the parts of the background.
    pub scene: i32,
    /// 0 to 2; of a plain background.
    pub tone: usize,
}

impl Attributes {
    /// All at random. The order of the draws is part of what a seed means.
    pub fn sample(rng: &mut Rng) -> Self {
        Self {
            gender: *rng.pick(&[Woman, Man]),
            skin: rng.pick(&SKIN),
            hair: *rng.pick(&[Short, Long, Bob, Curly, Ponytail, Bald]),
            hair_colour: rng.pick(&HAIR),
            clothing: *rng.pick(&[TShirt, Hoodie, Dress, Suit, Sweater]),
            clothing_colour: rng.pick(&CLOTH),
            background: *rng.pick(&[Plain, Beach, Forest, City, Night, Room]),
            expression: *rng.pick(&[Neutral, Smiling, Surprised]),
            body_x: rng.between(-8, 8),
            head_x: rng.between(-4, 4),
            head_y: rng.between(-6, 6),
            right: rng.below(2) == 1,
            scene: rng.below(64) as i32,
            tone: rng.below(3) as usize,
        }
    }

    /// What the caption of a picture says: everything but the skin. Words given for hair or clothes stand in place of their
    /// own; with "" nothing is said of them.
    pub fn caption(&self, hair: Option<&str>, clothing: Option<&str>) -> String {
        let words = [
            format!("a portrait of a {}", self.gender.name()),
            hair.map_or_else(|| self.hair_words(), str::to_owned),
            clothing.map_or_else(|| self.clothing_words(), str::to_owned),
            format!("{} background", self.background.name()),
            if self.expression == Neutral { String::new() } else { self.expression.name().to_owned() },
        ];
        words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(", ")
    }

    fn hair_words(&self) -> String {
        let (hair, colour) = (self.hair.name(), self.hair_colour.name);
        match self.hair {
            Bald => hair.to_owned(),
            Bob | Ponytail => format!("{colour} {hair}"),
            _ => format!("{hair} {colour} hair"),
        }
    }

    fn clothing_words(&self) -> String {
        format!("{} {}", self.clothing_colour.name, self.clothing.name())
    }
}

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
pub struct Rng(u64);

impl Rng {
    /// A sequence that is a function of `seed` alone.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A whole number from 0 to n − 1.
    fn below(&mut self, n: u64) -> u64 {
        ((self.next() >> 32) * n) >> 32
    }

    /// A whole number from low to high, both included.
    fn between(&mut self, low: i32, high: i32) -> i32 {
        low + self.below((high - low + 1) as u64) as i32
    }

    fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }
}
