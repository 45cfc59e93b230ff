//! Pictures with words on them.

use std::convert::Infallible;

use embedded_graphics::mono_font::{MonoTextStyle, iso_8859_1::FONT_10X20};
use embedded_graphics::pixelcolor::{Rgb888, RgbColor};
use embedded_graphics::prelude::{DrawTarget, Drawable, OriginDimensions, Pixel, Point, Size};
use embedded_graphics::text::{Baseline, Text};
use image::{Rgb, RgbImage, imageops};

pub use embedded_graphics::text::Alignment;

use crate::Result;

/// A white sheet to put colours, pictures and words on. Letters are 10 pixels wide and 20 high.
pub struct Sheet(RgbImage);

impl Sheet {
    /// Pixels from the start of one letter to the next.
    pub const LETTER: u32 = 10;

    /// Empty.
    pub fn new(width: u32, height: u32) -> Self {
        Self(RgbImage::from_pixel(width, height, Rgb([255; 3])))
    }

    /// A rectangle of one colour.
    pub fn fill(&mut self, [x, y]: [u32; 2], [width, height]: [u32; 2], colour: [u8; 3]) {
        for y in y..y + height {
            (x..x + width).for_each(|x| self.0.put_pixel(x, y, Rgb(colour)));
        }
    }

    /// A picture, its left upper corner at (x, y); what is beyond the edge is left out.
    pub fn place(&mut self, picture: &RgbImage, [x, y]: [u32; 2]) {
        imageops::replace(&mut self.0, picture, x.into(), y.into());
    }

    /// A line of text. y is its middle, x its start, middle or end by the alignment.
    pub fn write(&mut self, text: &str, [x, y]: [u32; 2], alignment: Alignment, [r, g, b]: [u8; 3]) {
        let style = MonoTextStyle::new(&FONT_10X20, Rgb888::new(r, g, b));
        let mut text = Text::with_alignment(text, Point::new(x as i32, y as i32), style, alignment);
        text.text_style.baseline = Baseline::Middle;
        let Ok(_) = text.draw(self);
    }

    /// As a PNG.
    ///
    /// # Errors
    /// The sheet has no pixels.
    pub fn to_png(&self) -> Result<Vec<u8>> {
        Ok(strata_model::png(&self.0)?)
    }
}

impl OriginDimensions for Sheet {
    fn size(&self) -> Size {
        Size::new(self.0.width(), self.0.height())
    }
}

impl DrawTarget for Sheet {
    type Color = Rgb888;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Rgb888>>>(&mut self, pixels: I) -> Result<(), Infallible> {
        for Pixel(Point { x, y }, colour) in pixels {
            // letters may reach over the edge
            let pixel = u32::try_from(x).ok().zip(u32::try_from(y).ok());
            if let Some(pixel) = pixel.and_then(|(x, y)| self.0.get_pixel_mut_checked(x, y)) {
                *pixel = Rgb([colour.r(), colour.g(), colour.b()]);
            }
        }
        Ok(())
    }
}
