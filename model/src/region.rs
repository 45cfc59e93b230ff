//! Parts of a picture that a feature is kept to.

use crate::{Error, Result};

/// A part of a picture, whatever the picture's size.
#[derive(Debug, Clone, PartialEq)]
pub enum Region {
    /// Left, top, right and bottom as shares of width and height, from 0 to 1.
    Box([f64; 4]),
    /// `height` rows of `width` values from 0 (outside) to 1 (inside), stretched over the picture.
    Mask {
        /// Values in a row.
        width: usize,
        /// Rows.
        height: usize,
        /// height · width values.
        values: Vec<f32>,
    },
}

/// How much of each place of a latent lies within a [`Region`], from 0 to 1.
#[derive(Debug, Clone, PartialEq)]
pub struct PlaceMask {
    size: [usize; 2],
    values: Vec<f32>,
}

/// What rounding leaves of a place that is outside or inside altogether.
const ROUNDING: f64 = 1e-6;

impl Region {
    /// The share of each place of a latent of h × w that lies inside: the average of the region over the place's area.
    ///
    /// # Errors
    /// [`check`](Self::check)'s.
    pub fn places(&self, [h, w]: [usize; 2]) -> Result<PlaceMask> {
        self.check()?;
        let mut values = Vec::with_capacity(h * w);
        for y in 0..h {
            for x in 0..w {
                let share = match self {
                    Self::Box([left, top, right, bottom]) => {
                        overlap(x as f64, left * w as f64, right * w as f64)
                            * overlap(y as f64, top * h as f64, bottom * h as f64)
                    }
                    Self::Mask { width, height, values } => {
                        let (rows, columns) = (covered(y, h, *height), covered(x, w, *width));
                        let at = |(y, row): &(usize, f64)| -> f64 {
                            let row_of =
                                |(x, column): &(usize, f64)| f64::from(values[y * width + x]) * row * column;
                            columns.iter().map(row_of).sum()
                        };
                        rows.iter().map(at).sum()
                    }
                };
                values.push(match share {
                    _ if share < ROUNDING => 0.0,
                    _ if share > 1.0 - ROUNDING => 1.0,
                    _ => share as f32,
                });
            }
        }
        Ok(PlaceMask { size: [h, w], values })
    }

    /// Whether this is a region at all.
    ///
    /// # Errors
    /// The box is empty or not within 0 to 1, or the mask's values do not fit its size or that range.
    pub fn check(&self) -> Result<()> {
        let fail = |message: String| Err(Error::Input(message));
        match self {
            Self::Box([left, top, right, bottom]) => {
                let inside = |from: f64, to: f64| 0.0 <= from && from < to && to <= 1.0;
                if !(inside(*left, *right) && inside(*top, *bottom)) {
                    return fail(format!(
                        "region {left}:{top}:{right}:{bottom}: left must be less than right and top less than bottom, all \
                         as shares of the picture from 0 to 1; the left half is 0:0:0.5:1"
                    ));
                }
            }
            Self::Mask { width, height, values } => {
                if values.is_empty() || values.len() != width * height {
                    let count = values.len();
                    return fail(format!("a mask of {width}×{height} has {count} values"));
                }
                if let Some(bad) = values.iter().find(|value| !(0.0..=1.0).contains(*value)) {
                    return fail(format!("a mask has the value {bad}, which is not from 0 to 1"));
                }
            }
        }
        Ok(())
    }
}

/// The length of [i, i + 1] within [from, to].
fn overlap(i: f64, from: f64, to: f64) -> f64 {
    (to.min(i + 1.0) - from.max(i)).max(0.0)
}

/// The values out of `count` that place i of n covers, and the share of the place's side that each of them takes.
fn covered(i: usize, n: usize, count: usize) -> Vec<(usize, f64)> {
    let side = count as f64 / n as f64;
    let (from, to) = (i as f64 * side, (i + 1) as f64 * side);
    let last = (to.ceil() as usize).min(count);
    (from as usize..last).map(|at| (at, overlap(at as f64, from, to) / side)).collect()
}

impl PlaceMask {
    /// The mask at the level of the U-Net that has so many places: each level halves height and width, rounded up, and
    /// a place there averages those of the latent that it covers.
    ///
    /// # Errors
    /// No level has so many places.
    pub(crate) fn level(&self, places: usize) -> Result<Vec<f32>> {
        let [height, width] = self.size;
        let (mut h, mut w, mut side) = (height, width, 1);
        while h * w > places && h * w > 1 {
            side *= 2;
            (h, w) = (height.div_ceil(side), width.div_ceil(side));
        }
        if h * w != places {
            return Err(Error::Input(format!(
                "a region is made for latents of {height}×{width}, but a layer is given {places} places"
            )));
        }
        let average = |i: usize| {
            let (y, x) = (i / w * side, i % w * side);
            let row = |y: usize| &self.values[y * width..][x..width.min(x + side)];
            let covered: Vec<f32> = (y..height.min(y + side)).flat_map(row).copied().collect();
            covered.iter().sum::<f32>() / covered.len() as f32
        };
        Ok((0..places).map(average).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(region: Region, size: [usize; 2]) -> Vec<f32> {
        region.places(size).unwrap().values
    }

    #[test]
    fn boxes_are_averaged_over_places() {
        assert_eq!(shares(Region::Box([0.0, 0.0, 0.5, 1.0]), [1, 4]), [1.0, 1.0, 0.0, 0.0]);
        assert_eq!(shares(Region::Box([0.25, 0.5, 1.0, 1.0]), [2, 2]), [0.0, 0.0, 0.5, 1.0]);
        assert_eq!(shares(Region::Box([0.3, 0.0, 0.7, 1.0]), [1, 10])[2..8], [0.0, 1.0, 1.0, 1.0, 1.0, 0.0]);
    }

    #[test]
    fn masks_are_stretched() {
        let mask = |width, height, values: &[f32]| Region::Mask { width, height, values: values.to_vec() };
        assert_eq!(shares(mask(2, 1, &[0.0, 1.0]), [2, 4]), [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0]);
        assert_eq!(shares(mask(4, 2, &[1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0]), [1, 2]), [1.0, 0.25]);
        // three values over two places: the middle one belongs to both
        let halves = shares(mask(3, 1, &[1.0, 1.0, 0.0]), [1, 2]);
        assert_eq!(halves[0], 1.0);
        assert!((halves[1] - 1.0 / 3.0).abs() < 1e-6);
    }

    #[test]
    fn levels_round_up() {
        let region = Region::Box([0.0, 0.0, 0.4, 1.0]).places([3, 5]).unwrap();
        assert_eq!(region.level(15).unwrap()[..5], [1.0, 1.0, 0.0, 0.0, 0.0]);
        assert_eq!(region.level(6).unwrap(), [1.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
        assert_eq!(region.level(2).unwrap(), [0.5, 0.0]);
        assert!((region.level(1).unwrap()[0] - 0.4).abs() < 1e-6);
        assert!(region.level(5).is_err());
    }

    #[test]
    fn what_is_no_region_is_refused() {
        let bad =
            [[0.5, 0.0, 0.5, 1.0], [0.0, 0.0, 1.5, 1.0], [-0.1, 0.0, 1.0, 1.0], [0.0, f64::NAN, 1.0, 1.0]];
        bad.into_iter().for_each(|sides| assert!(Region::Box(sides).places([4, 4]).is_err(), "{sides:?}"));
        for (width, values) in [(2, vec![1.0]), (0, vec![]), (1, vec![1.5]), (1, vec![f32::NAN])] {
            let mask = Region::Mask { width, height: 1, values };
            assert!(mask.places([4, 4]).is_err(), "{mask:?}");
        }
    }
}
