//! Heat maps: colours for numbers from 0 to 1, and tables as pictures.

use super::table::{Table, short};
use crate::Result;
use crate::inspection::sheet::{Alignment, Sheet};

/// From little to much: ColorBrewer's YlOrBr.
const COLOURS: [[u8; 3]; 5] = [[255, 255, 229], [254, 227, 145], [254, 153, 41], [204, 76, 2], [102, 37, 6]];
const BLACK: [u8; 3] = [0, 0, 0];
const WHITE: [u8; 3] = [255, 255, 255];

/// Pixels from one cell to the next, of the gap between them, and around all.
const CELL: [u32; 2] = [104, 40];
const GAP: u32 = 2;
const MARGIN: u32 = 16;
/// Letters of the longest label.
const LABEL: usize = 28;

/// The colour of a number from 0 to 1, and that of text on it.
pub(super) fn colours(heat: f64) -> ([u8; 3], [u8; 3]) {
    let place = heat.clamp(0.0, 1.0) * (COLOURS.len() - 1) as f64;
    let below = (place as usize).min(COLOURS.len() - 2);
    let share = place - below as f64;
    let mix = |i: usize| {
        let (from, to) = (f64::from(COLOURS[below][i]), f64::from(COLOURS[below + 1][i]));
        (from + share * (to - from)).round() as u8
    };
    ([mix(0), mix(1), mix(2)], if place < 2.5 { BLACK } else { WHITE })
}

/// A table as a PNG.
pub(super) fn png(table: &Table) -> Result<Vec<u8>> {
    let letters = table.rows.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0).min(LABEL);
    let (left, top) = (2 * MARGIN + Sheet::LETTER * letters as u32, MARGIN + 2 * CELL[1]);
    let least = 2 * MARGIN + Sheet::LETTER * table.title.chars().count() as u32;
    let width = (left + CELL[0] * table.columns.len() as u32 + MARGIN).max(least);
    let height = top + CELL[1] * table.rows.len() as u32 + MARGIN;
    let mut sheet = Sheet::new(width, height);
    let middle = |i: usize, start: u32, size: u32| start + size * i as u32 + size / 2;
    sheet.write(&table.title, [MARGIN, MARGIN + CELL[1] / 2], Alignment::Left, BLACK);
    for (i, column) in table.columns.iter().enumerate() {
        let at = [middle(i, left, CELL[0]), middle(1, MARGIN, CELL[1])];
        sheet.write(column, at, Alignment::Center, BLACK);
    }
    for (j, (label, cells)) in table.rows.iter().enumerate() {
        let y = middle(j, top, CELL[1]);
        sheet.write(&short(label, LABEL), [MARGIN, y], Alignment::Left, BLACK);
        for (i, cell) in cells.iter().enumerate() {
            let (back, ink) = cell.heat.map_or((WHITE, BLACK), colours);
            let at = [left + CELL[0] * i as u32, top + CELL[1] * j as u32];
            sheet.fill(at, CELL.map(|side| side - GAP), back);
            sheet.write(&cell.text, [middle(i, left, CELL[0]), y], Alignment::Center, ink);
        }
    }
    sheet.to_png()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspection::probe::table::Shown;

    #[test]
    fn colours_go_from_light_to_dark() {
        assert_eq!(colours(0.0), (COLOURS[0], BLACK));
        assert_eq!(colours(0.5), (COLOURS[2], BLACK));
        assert_eq!(colours(1.0), (COLOURS[4], WHITE));
        assert_eq!(colours(7.0), colours(1.0));
        assert_eq!(colours(0.125).0, [255, 241, 187]);
    }

    #[test]
    fn cells_have_their_colours_and_words_are_drawn() {
        let cell = |text: &str, heat| Shown { text: text.into(), heat };
        let table = |text: &str| Table {
            slug: "t",
            title: "t".into(),
            columns: vec!["a".into(), "b".into()],
            rows: vec![("row".into(), vec![cell(text, Some(0.0)), cell("", Some(1.0))])],
        };
        let draw = |text: &str| image::load_from_memory(&png(&table(text)).unwrap()).unwrap().into_rgb8();
        let (picture, blank) = (draw("12"), draw(""));
        let (left, top) = (2 * MARGIN + 3 * Sheet::LETTER, MARGIN + 2 * CELL[1]);
        assert_eq!(picture.dimensions(), (left + 2 * CELL[0] + MARGIN, top + CELL[1] + MARGIN));
        assert_eq!(picture.get_pixel(left, top).0, COLOURS[0]);
        assert_eq!(picture.get_pixel(left + CELL[0], top).0, COLOURS[4]);
        let ink = |picture: &image::RgbImage| picture.pixels().filter(|pixel| pixel.0 == BLACK).count();
        assert!(ink(&blank) > 0 && ink(&picture) > ink(&blank), "labels, and the number");
    }
}
