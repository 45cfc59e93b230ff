//! Flat shapes on a canvas of 256×256 samples, four by four of which make a pixel.

use image::{Rgb, RgbImage};

/// Pixels of a side.
pub const SIZE: usize = 64;
/// Samples of a side; coordinates are in samples, y down.
pub const FINE: i32 = 256;

/// Red, green, blue.
pub type Colour = [u8; 3];

/// Samples that shapes are painted on, one over the other. A sample belongs to a shape if its centre (i + 1/2) does;
/// doubled coordinates keep that in whole numbers.
pub struct Canvas(Vec<Colour>);

impl Canvas {
    /// All of one colour.
    pub fn new(colour: Colour) -> Self {
        Self(vec![colour; (FINE * FINE) as usize])
    }

    /// Samples x0 ≤ x < x1, y0 ≤ y < y1.
    pub fn rect(&mut self, [x0, y0, x1, y1]: [i32; 4], colour: Colour) {
        self.paint([x0, y0, x1, y1], colour, |_, _| true);
    }

    /// (x − cx)² ry² + (y − cy)² rx² ≤ rx² ry².
    pub fn ellipse(&mut self, centre: [i32; 2], radii: [i32; 2], colour: Colour) {
        self.ellipse_within(centre, radii, [0, FINE], colour);
    }

    /// The part of an ellipse in rows top ≤ y < bottom.
    pub fn ellipse_within(
        &mut self,
        [cx, cy]: [i32; 2],
        [rx, ry]: [i32; 2],
        [top, bottom]: [i32; 2],
        colour: Colour,
    ) {
        let area = [cx - rx, (cy - ry).max(top), cx + rx, (cy + ry).min(bottom)];
        let [cx, cy, rx, ry] = [cx, cy, rx, ry].map(i64::from);
        self.paint(area, colour, |x, y| {
            let (x, y) = (x - 2 * cx, y - 2 * cy);
            x * x * ry * ry + y * y * rx * rx <= 4 * rx * rx * ry * ry
        });
    }

    /// What the closed line through `points` (x, y) goes round, by the even-odd rule.
    pub fn polygon(&mut self, points: &[[i32; 2]], colour: Colour) {
        let span = |axis: usize| {
            let values = points.iter().map(|point| point[axis]);
            (values.clone().min().unwrap_or(0), values.max().unwrap_or(0))
        };
        let ((x0, x1), (y0, y1)) = (span(0), span(1));
        let edges = points.iter().zip(points.iter().cycle().skip(1)).map(|(&a, &b)| {
            let (upper, lower) = if a[1] > b[1] { (b, a) } else { (a, b) };
            [upper, lower].map(|point| point.map(|v| 2 * i64::from(v)))
        });
        let edges: Vec<_> = edges.collect();
        self.paint([x0, y0, x1, y1], colour, |x, y| {
            let crossed = edges.iter().filter(|[[ax, ay], [bx, by]]| {
                y > *ay && y < *by && (x - ax) * (by - ay) < (y - ay) * (bx - ax)
            });
            crossed.count() % 2 == 1
        });
    }

    /// Colours the samples of an area, given as x0, y0, x1, y1, whose doubled centre is inside.
    fn paint(&mut self, [x0, y0, x1, y1]: [i32; 4], colour: Colour, inside: impl Fn(i64, i64) -> bool) {
        for y in y0.max(0)..y1.min(FINE) {
            for x in x0.max(0)..x1.min(FINE) {
                if inside(2 * i64::from(x) + 1, 2 * i64::from(y) + 1) {
                    self.0[(y * FINE + x) as usize] = colour;
                }
            }
        }
    }

    /// Gives the samples of one colour another, where `other` says so of (x, y), in rows from `top` on.
    pub fn recolour(&mut self, top: i32, from: Colour, to: Colour, other: impl Fn(i32, i32) -> bool) {
        for y in top..FINE {
            for x in 0..FINE {
                let sample = &mut self.0[(y * FINE + x) as usize];
                if *sample == from && other(x, y) {
                    *sample = to;
                }
            }
        }
    }

    /// The mean of each 4×4 block, halves up.
    pub fn picture(&self) -> RgbImage {
        RgbImage::from_fn(SIZE as u32, SIZE as u32, |px, py| {
            let block =
                (0..16).map(|i| (4 * py + i / 4) as usize * FINE as usize + (4 * px + i % 4) as usize);
            let sums = block.fold([0u32; 3], |sums, at| {
                let sample = self.0[at];
                [0, 1, 2].map(|c| sums[c] + u32::from(sample[c]))
            });
            Rgb(sums.map(|sum| ((sum + 8) / 16) as u8))
        })
    }
}
