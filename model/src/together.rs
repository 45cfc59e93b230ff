//! Several features in one picture: added up inside the model, or each in the places that it changes most.

use crate::{Error, Gates, Result};

/// How several features that are on in one picture act together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Together {
    /// Their changes are added up in every layer, as other programs do it.
    #[default]
    Sum,
    /// At each step the model is run without them and with each alone, and each place of the picture is predicted with
    /// the feature that changes it most: change, as a square summed over channels, is compared in units of the
    /// feature's mean over the picture, and averaged over the 3 × 3 places around. A picture in which one feature is on
    /// has the same bits as with [`Together::Sum`]. Features that are always on or kept to a region do not compete:
    /// they are on in all of these runs. ([LoRA composite](https://arxiv.org/abs/2402.16843) averages such runs over the
    /// whole picture instead.)
    Place,
}

/// One sample that the model sees at each step of sampling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Take {
    /// Which picture it is of.
    pub picture: usize,
    /// Whether it has the prompt of what the picture should show, or of what not.
    pub wanted: bool,
    /// Which features are on in it.
    pub with: With,
}

/// Which of the features that a take's prompt switches on are on in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum With {
    All,
    /// Those that do not compete.
    NoRival,
    /// Those that do not compete, and this one.
    Rival(usize),
}

/// The samples that the model sees at each step of sampling, and how strong each LoRA set is in them;
/// [`Wording::takes`](crate::Wording::takes) makes them from prompts.
#[derive(Debug)]
pub struct Takes {
    /// Those of one picture are neighbours but for the unwanted, which come first.
    takes: Vec<Take>,
    pictures: usize,
    pub(crate) gates: Gates,
}

impl Takes {
    /// Of so many pictures by a model without LoRAs. `guided`: the unwanted prompt counts.
    pub fn plain(pictures: usize, guided: bool) -> Self {
        let rivals = vec![Vec::new(); pictures];
        Self { takes: takes(&rivals, guided), pictures, gates: Gates::scalars(&[]) }
    }

    pub(crate) fn new(takes: Vec<Take>, pictures: usize, gates: Gates) -> Self {
        Self { takes, pictures, gates }
    }

    pub(crate) fn len(&self) -> usize {
        self.takes.len()
    }

    pub(crate) fn pictures(&self) -> usize {
        self.pictures
    }

    /// The text states of every take, from those of each picture.
    pub(crate) fn context(&self, wanted: &[f32], unwanted: &[f32]) -> Vec<f32> {
        let of = |states: &[f32], picture: usize| {
            let size = states.len() / self.pictures;
            states[picture * size..(picture + 1) * size].to_vec()
        };
        self.takes.iter().flat_map(|t| of(if t.wanted { wanted } else { unwanted }, t.picture)).collect()
    }

    /// The latents of every take, from those of each picture.
    pub(crate) fn latents(&self, latents: &[f32]) -> Vec<f32> {
        let size = latents.len() / self.pictures;
        self.takes.iter().flat_map(|t| &latents[t.picture * size..(t.picture + 1) * size]).copied().collect()
    }

    /// What the model says to each picture, [B, h, w, C] each: to the unwanted, where it counts, and to the wanted.
    pub(crate) fn outputs(&self, output: &[f32], shape: [usize; 4]) -> Result<(Vec<f32>, Vec<f32>)> {
        let place = shape[3];
        let size = shape[1] * shape[2] * place;
        if output.len() != self.takes.len() * size {
            let message = format!("{} values for {} samples of {size}", output.len(), self.takes.len());
            return Err(Error::Input(message));
        }
        let (mut unwanted, mut wanted) = (Vec::new(), Vec::new());
        let mut takes = self.takes.iter().zip(output.chunks_exact(size)).peekable();
        while let Some((take, first)) = takes.next() {
            match take {
                Take { wanted: false, .. } => unwanted.extend_from_slice(first),
                Take { with: With::NoRival, .. } => {
                    let mut alone = Vec::new();
                    while let Some((_, one)) = takes.next_if(|(t, _)| matches!(t.with, With::Rival(_))) {
                        alone.push(one);
                    }
                    wanted.extend(by_place(first, &alone, [shape[1], shape[2], place]));
                }
                Take { with: With::All | With::Rival(_), .. } => wanted.extend_from_slice(first),
            }
        }
        Ok((unwanted, wanted))
    }
}

/// The takes of pictures, each with the features that compete for it.
pub(crate) fn takes(rivals: &[Vec<usize>], guided: bool) -> Vec<Take> {
    let unwanted = (0..if guided { rivals.len() } else { 0 }).map(|picture| Take {
        picture,
        wanted: false,
        with: With::All,
    });
    let wanted = rivals.iter().enumerate().flat_map(|(picture, rivals)| {
        let with = match rivals[..] {
            [] | [_] => vec![With::All],
            _ => [With::NoRival].into_iter().chain(rivals.iter().map(|r| With::Rival(*r))).collect(),
        };
        with.into_iter().map(move |with| Take { picture, wanted: true, with })
    });
    unwanted.chain(wanted).collect()
}

/// Each place from the one of `alone` that differs from `base` most there; all [h, w, C].
fn by_place(base: &[f32], alone: &[&[f32]], [h, w, c]: [usize; 3]) -> Vec<f32> {
    let changes: Vec<Vec<f32>> = alone.iter().map(|one| change(base, one, [h, w, c])).collect();
    let strongest = |place: usize| {
        let stronger = |a: usize, b: usize| if changes[b][place] > changes[a][place] { b } else { a };
        (0..alone.len()).reduce(stronger)
    };
    let value = |place: usize| {
        let from = strongest(place).map_or(base, |one| alone[one]);
        &from[place * c..(place + 1) * c]
    };
    (0..h * w).flat_map(value).copied().collect()
}

/// How much each place changes, in units of the mean over all places, averaged over the places around.
fn change(base: &[f32], one: &[f32], [h, w, c]: [usize; 3]) -> Vec<f32> {
    let square = |(a, b): (&[f32], &[f32])| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>();
    let squares: Vec<f32> = base.chunks_exact(c).zip(one.chunks_exact(c)).map(square).collect();
    let mean = squares.iter().sum::<f32>() / squares.len() as f32;
    if mean == 0.0 {
        return squares;
    }
    let around = |i: usize, n: usize| i.saturating_sub(1)..=(i + 1).min(n - 1);
    let smooth = |place: usize| {
        let (rows, columns) = (around(place / w, h), around(place % w, w));
        let near: Vec<f32> =
            rows.flat_map(|y| columns.clone().map(move |x| y * w + x)).map(|i| squares[i]).collect();
        near.iter().sum::<f32>() / near.len() as f32 / mean
    };
    (0..h * w).map(smooth).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One feature changes the upper half a little, the other all places and the lower half more.
    #[test]
    fn a_place_is_of_the_feature_that_changes_it_most_for_its_own_mean() {
        let (h, w, c) = (6, 4, 2);
        let base: Vec<f32> = (0..h * w * c).map(|i| i as f32 / 7.0).collect();
        let with = |upper: f32, lower: f32| -> Vec<f32> {
            base.iter().enumerate().map(|(i, v)| v + if i < base.len() / 2 { upper } else { lower }).collect()
        };
        let (a, b) = (with(0.1, 0.0), with(1.0, 3.0));
        let half = base.len() / 2;
        let placed = by_place(&base, &[&a, &b], [h, w, c]);
        assert_eq!(placed, [&a[..half], &b[half..]].concat(), "the weak one keeps its half");
        assert_eq!(by_place(&base, &[&b, &a], [h, w, c]), placed, "in either order");
        // what changes nothing takes nothing
        assert_eq!(by_place(&base, &[&base, &b], [h, w, c]), b);
    }

    #[test]
    fn rivals_of_a_picture_get_a_take_each_and_one_without_them() {
        let got = takes(&[vec![], vec![3], vec![0, 2]], true);
        let take = |picture, wanted, with| Take { picture, wanted, with };
        let unwanted = (0..3).map(|picture| take(picture, false, With::All));
        let rest = [
            take(0, true, With::All),
            take(1, true, With::All),
            take(2, true, With::NoRival),
            take(2, true, With::Rival(0)),
            take(2, true, With::Rival(2)),
        ];
        assert_eq!(got, unwanted.chain(rest).collect::<Vec<_>>());
    }
}
