//! What of a picture stays beside a feature.

use image::RgbImage;
use serde::Serialize;

/// What a feature leaves of pictures that have its tag.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Kept {
    /// How the feature was on.
    pub gate: &'static str,
    /// Pairs of pictures, with the tag and without.
    pub pairs: usize,
    /// Mean difference from the base model's picture without the tag, of values in −1 to 1, where the feature is not.
    pub distance: f64,
    /// The same of the base model's picture of other noise.
    pub other: f64,
    /// 1 − `distance` / `other`: 1 is a picture that is the base model's but for the feature, 0 or less one that has as little
    /// to do with it as any other.
    pub kept: f64,
}

/// Pictures that tell what a feature leaves, all of one size.
#[derive(Debug, Clone)]
pub struct Trio {
    /// The base model's without the tag.
    pub base: RgbImage,
    /// With the tag, the same noise.
    pub tagged: RgbImage,
    /// The base model's without the tag, of other noise.
    pub other: RgbImage,
}

impl Kept {
    /// The feature's own place is the quarter of the pixels that it changes most on average, since nothing else says where
    /// it belongs; all others count. None without pictures.
    pub fn new(gate: &'static str, trios: &[Trio]) -> Option<Self> {
        let first = trios.first()?;
        let pixels = (first.base.width() * first.base.height()) as usize;
        let sum = |of: &dyn Fn(&Trio) -> Vec<f64>| {
            trios.iter().map(of).fold(vec![0.0; pixels], |mut sum, trio| {
                sum.iter_mut().zip(trio).for_each(|(sum, value)| *sum += value);
                sum
            })
        };
        let changed = sum(&|trio| differences(&trio.base, &trio.tagged));
        let unlike = sum(&|trio| differences(&trio.base, &trio.other));
        let mut order: Vec<usize> = (0..pixels).collect();
        order.sort_by(|a, b| changed[*a].total_cmp(&changed[*b]));
        let rest = &order[..pixels - pixels / 4];
        let mean = |values: &[f64]| {
            rest.iter().map(|i| values[*i]).sum::<f64>() / (rest.len() * trios.len()).max(1) as f64
        };
        let (distance, other) = (mean(&changed), mean(&unlike));
        (other > 0.0).then(|| Self {
            gate,
            pairs: trios.len(),
            distance,
            other,
            kept: 1.0 - distance / other,
        })
    }
}

/// Of each pixel, the mean over its colours of how far they differ.
fn differences(a: &RgbImage, b: &RgbImage) -> Vec<f64> {
    let pixel = |(a, b): (&image::Rgb<u8>, &image::Rgb<u8>)| {
        f64::from(a.0.iter().zip(b.0).map(|(a, b)| u32::from(a.abs_diff(b))).sum::<u32>()) / (3.0 * 127.5)
    };
    a.pixels().zip(b.pixels()).map(pixel).collect()
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;

    use super::*;

    /// Four pixels: one is the feature's place.
    #[test]
    fn a_feature_keeps_what_it_does_not_change_outside_its_place() {
        let picture =
            |values: [u8; 4]| RgbImage::from_fn(2, 2, |x, y| image::Rgb([values[(2 * y + x) as usize]; 3]));
        let base = picture([100, 100, 100, 100]);
        let trio =
            |tagged, other| Trio { base: base.clone(), tagged: picture(tagged), other: picture(other) };
        let kept = |trios: &[Trio]| Kept::new("always", trios).unwrap();
        let all = kept(&[trio([100, 255, 100, 100], [150, 150, 150, 150])]);
        assert_eq!((all.kept, all.distance, all.pairs), (1.0, 0.0, 1));
        assert_abs_diff_eq!(all.other, 50.0 / 127.5, epsilon = 1e-12);
        let half = kept(&[trio([125, 255, 75, 125], [150, 0, 150, 150])]);
        assert_abs_diff_eq!(half.kept, 0.5, epsilon = 1e-12);
        // the place is what changes most on average
        let mean = kept(&[trio([100, 255, 100, 100], [150; 4]), trio([100, 100, 100, 250], [150; 4])]);
        assert_abs_diff_eq!(mean.kept, 1.0 - (150.0 / 6.0) / 50.0, epsilon = 1e-12);
        assert_eq!(kept(&[trio([150, 255, 150, 150], [150, 150, 150, 150])]).kept, 0.0);
        assert_eq!(Kept::new("always", &[]), None);
        assert_eq!(Kept::new("always", &[trio([0; 4], [100; 4])]), None);
    }
}
