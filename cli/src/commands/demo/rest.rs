//! What a portrait shows beside the features, to see whether a feature leaves it alone.

use image::RgbImage;

use super::unseen::Unseen;

type Colour = [u8; 3];
/// x0, y0, x1, y1 in pixels.
type Region = [u32; 4];

/// Backgrounds: mean and standard deviation of red, green and blue where nobody stands, over the pictures that the model was
/// trained on.
const BACKGROUNDS: [(&str, [f64; 6]); 6] = [
    ("plain", [205.0, 204.0, 201.0, 1.0, 1.0, 1.0]),
    ("beach", [127.0, 181.0, 218.0, 61.0, 41.0, 28.0]),
    ("forest", [112.0, 159.0, 120.0, 59.0, 50.0, 58.0]),
    ("city", [168.0, 163.0, 163.0, 41.0, 38.0, 30.0]),
    ("night", [34.0, 39.0, 79.0, 34.0, 32.0, 22.0]),
    ("room", [205.0, 175.0, 150.0, 38.0, 36.0, 38.0]),
];
/// Hair.
const HAIR: [(&str, &[Colour]); 6] = [
    ("black", &[[40, 36, 42]]),
    ("brown", &[[112, 66, 36]]),
    ("blonde", &[[236, 208, 140]]),
    ("red", &[[196, 64, 28]]),
    ("blue", &[[50, 92, 214]]),
    ("pink", &[[244, 132, 180]]),
];
/// Clothes, in light and in shade.
const CLOTHES: [(&str, &[Colour]); 6] = [
    ("red", &[[206, 40, 48], [154, 30, 36]]),
    ("green", &[[44, 146, 70], [33, 109, 52]]),
    ("blue", &[[40, 80, 196], [30, 60, 147]]),
    ("white", &[[238, 238, 232], [178, 178, 174]]),
    ("grey", &[[122, 126, 132], [91, 94, 99]]),
    ("pink", &[[246, 150, 186], [184, 112, 139]]),
];
/// Euclidean distance in RGB up to which a colour counts as one of hair; skin and backgrounds are near some.
const NEAR: i32 = 60;

/// Where nobody stands.
const SIDES: [Region; 2] = [[0, 0, 12, 44], [52, 0, 64, 44]];
/// Within the fringe of every hair style.
const FRINGE: Region = [26, 13, 38, 19];
const CHEST: Region = [20, 56, 44, 64];

/// What features are in, in every pose: hair falls over the shoulders, or leaves them free.
fn place(feature: Unseen) -> Region {
    match feature {
        Unseen::HairStyleA => [12, 0, 52, 50],
        Unseen::ClothingStyleB => [6, 40, 58, 64],
    }
}

/// Of what a caption asks for beside the features, by background and colours of hair and clothes: what a picture shows, and how
/// much there was to show. `caption` has the features' words, whose tags are `tags`, in their places.
pub fn obeyed(picture: &RgbImage, caption: &str, tags: &[Unseen]) -> [usize; 2] {
    let words: Vec<&str> = caption.split(", ").collect();
    let asked = |place: usize| words.get(place).copied().unwrap_or_default();
    let mut right = vec![asked(3).strip_suffix(" background") == Some(background(picture))];
    if !tags.contains(&Unseen::HairStyleA) && asked(1) != "bald" {
        let shown = most(picture, FRINGE, &HAIR, NEAR * NEAR);
        right.push(asked(1).split(' ').any(|word| word == shown));
    }
    if !tags.contains(&Unseen::ClothingStyleB) {
        right.push(asked(2).split(' ').next() == Some(most(picture, CHEST, &CLOTHES, i32::MAX)));
    }
    [right.iter().filter(|right| **right).count(), right.len()]
}

/// Mean difference of two pictures where none of the features is, values in −1 to 1.
pub fn distance(a: &RgbImage, b: &RgbImage, tags: &[Unseen]) -> f64 {
    let within = |[x0, y0, x1, y1]: Region, x: u32, y: u32| (x0..x1).contains(&x) && (y0..y1).contains(&y);
    let (mut sum, mut count) = (0, 0);
    for ((x, y, a), b) in a.enumerate_pixels().zip(b.pixels()) {
        if !tags.iter().any(|feature| within(place(*feature), x, y)) {
            sum += a.0.iter().zip(b.0).map(|(a, b)| u32::from(a.abs_diff(b))).sum::<u32>();
            count += 3;
        }
    }
    f64::from(sum) / 127.5 / f64::from(count)
}

/// The background whose mean and spread of colours are nearest.
fn background(picture: &RgbImage) -> &'static str {
    let pixels: Vec<[f64; 3]> =
        SIDES.into_iter().flat_map(places).map(|(x, y)| picture.get_pixel(x, y).0.map(f64::from)).collect();
    let mean = |of: &dyn Fn(&[f64; 3]) -> f64| pixels.iter().map(of).sum::<f64>() / pixels.len() as f64;
    let means = [0, 1, 2].map(|c| mean(&|pixel| pixel[c]));
    let spreads = [0, 1, 2].map(|c| mean(&|pixel| (pixel[c] - means[c]).powi(2)).sqrt());
    let shown = [means, spreads].concat();
    let far = |usual: &[f64; 6]| shown.iter().zip(usual).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
    BACKGROUNDS.iter().min_by(|(_, a), (_, b)| far(a).total_cmp(&far(b))).map_or("", |(name, _)| name)
}

/// Which of these the most pixels are nearest to; those further than `limit` (squared) from all do not count.
fn most<'a>(picture: &RgbImage, region: Region, kinds: &[(&'a str, &[Colour])], limit: i32) -> &'a str {
    let mut votes = vec![0; kinds.len()];
    for (x, y) in places(region) {
        let pixel = picture.get_pixel(x, y).0;
        let far = |colour: &Colour| -> i32 {
            pixel.iter().zip(colour).map(|(a, b)| (i32::from(*a) - i32::from(*b)).pow(2)).sum()
        };
        let least = |colours: &[Colour]| colours.iter().map(far).min().unwrap_or(i32::MAX);
        let nearest = kinds.iter().map(|(_, colours)| least(colours)).enumerate().min_by_key(|(_, d)| *d);
        if let Some((kind, _)) = nearest.filter(|(_, distance)| *distance <= limit) {
            votes[kind] += 1;
        }
    }
    let winner = votes.iter().enumerate().rev().max_by_key(|(_, votes)| **votes).map_or(0, |(kind, _)| kind);
    kinds[winner].0
}

fn places([x0, y0, x1, y1]: Region) -> impl Iterator<Item = (u32, u32)> {
    (y0..y1).flat_map(move |y| (x0..x1).map(move |x| (x, y)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The training pictures are as their captions say.
    #[test]
    fn drawn_pictures_show_what_their_captions_say() {
        let (mut right, mut all) = (0, 0);
        for feature in Unseen::ALL {
            let files = feature.files();
            for text in files.files().filter(|file| file.path().extension().is_some_and(|e| e == "txt")) {
                let picture = files.get_file(text.path().with_extension("png")).unwrap().contents();
                let picture = image::load_from_memory(picture).unwrap().into_rgb8();
                let caption = text.contents_utf8().unwrap().trim();
                // every second caption leaves the other feature's place out
                if caption.split(", ").nth(3).is_some_and(|words| words.ends_with("background")) {
                    let [shown, asked] = obeyed(&picture, caption, &[feature]);
                    (right, all) = (right + shown, all + asked);
                }
            }
        }
        assert!(all > 40, "{all}");
        assert_eq!(right, all);
    }

    #[test]
    fn what_is_not_asked_for_is_not_shown() {
        let plain = RgbImage::from_pixel(64, 64, image::Rgb([206, 206, 204]));
        let none: &[Unseen] = &[];
        assert_eq!(
            obeyed(&plain, "a portrait of a man, red bob, green suit, plain background", none),
            [1, 3]
        );
        assert_eq!(obeyed(&plain, "a portrait of a man, bald, white suit, night background", none), [1, 2]);
        assert_eq!(obeyed(&plain, "a portrait of a man, t, u, night background", &Unseen::ALL), [0, 1]);
    }

    #[test]
    fn a_features_own_place_does_not_count() {
        let a = RgbImage::from_pixel(64, 64, image::Rgb([0; 3]));
        let mut b = a.clone();
        (0..64).for_each(|x| b.put_pixel(x, 63, image::Rgb([255; 3])));
        assert_eq!(distance(&a, &b, &[]), 2.0 / 64.0);
        let outside = 64 * 64 - 52 * 24;
        approx::assert_abs_diff_eq!(
            distance(&a, &b, &[Unseen::ClothingStyleB]),
            2.0 * 12.0 / f64::from(outside),
            epsilon = 1e-12
        );
        assert_eq!(distance(&a, &a, &[]), 0.0);
    }
}
