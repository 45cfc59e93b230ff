//! The roofline: how fast kernels are, over how many operations they do for each byte they move (Williams, Waterman and
//! Patterson, CACM 2009).

use std::ops::Range;

use anyhow::{Result, anyhow};
use image::{ImageEncoder, codecs::png::PngEncoder};
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

use crate::{Report, Row};

const SIZE: (u32, u32) = (1200, 800);
/// Colour by kind of row, and what its name begins with.
const KINDS: [(&str, &str, RGBColor); 5] = [
    ("conv", "convolutions", RGBColor(214, 96, 77)),
    ("linear", "linear layers", RGBColor(67, 147, 195)),
    ("attention", "attention", RGBColor(90, 174, 97)),
    ("training", "training step", RGBColor(0, 0, 0)),
    ("", "U-Net, VAE and CLIP", RGBColor(153, 112, 171)),
];

/// Draws the rows that are `wanted` by their names and do products, beneath the device's two ceilings, as a PNG.
///
/// # Errors
/// The ceilings are not numbers above 0.
pub fn roofline(report: &Report, wanted: impl Fn(&str) -> bool) -> Result<Vec<u8>> {
    let intensity = |row: &Row| row.flops as f64 / row.bytes as f64;
    let rows: Vec<&Row> = report.rows.iter().filter(|row| row.flops > 0 && wanted(&row.name)).collect();
    let (unit, scale) = report.unit();
    let (peak, bandwidth) = (report.ceilings.gemm_tflops * scale, report.ceilings.copy_gbps / 1e3 * scale);
    let xs = around(rows.iter().map(|row| intensity(row)).chain([peak / bandwidth])).ok_or_else(|| {
        anyhow!("the ceilings are {peak} {unit} and {bandwidth}; there is no roofline to draw")
    })?;
    let roof = |x: f64| peak.min(x * bandwidth);
    let ys = around(rows.iter().map(|row| row.tflops * scale).chain([peak]))
        .ok_or_else(|| anyhow!("no row took any time"))?;

    register_font("sans-serif", FontStyle::Normal, dejavu::sans::regular())
        .map_err(|_| anyhow!("the plot's font cannot be read"))?;
    let mut pixels = vec![0; 3 * (SIZE.0 * SIZE.1) as usize];
    {
        let area = BitMapBackend::with_buffer(&mut pixels, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let title = format!("{}, {}, {}", report.device.name, report.device.gemm, report.dtype);
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 24))
            .margin(16)
            .x_label_area_size(50)
            .y_label_area_size(80)
            .build_cartesian_2d(xs.clone().log_scale(), ys.log_scale())?;
        chart
            .configure_mesh()
            .x_desc("operations for each byte moved")
            .y_desc(unit)
            .label_style(("sans-serif", 18))
            .bold_line_style(RGBColor(220, 220, 220))
            .light_line_style(RGBColor(245, 245, 245))
            .draw()?;
        // a line between points of a log scale is straight only where the roof is: its corner is a point too
        let corner = (peak / bandwidth).clamp(xs.start, xs.end);
        let line = [xs.start, corner, xs.end].map(|x| (x, roof(x)));
        chart
            .draw_series(LineSeries::new(line, BLACK.stroke_width(2)))?
            .label(format!("copy {:.0} GB/s, GEMM {peak:.0} {unit}", report.ceilings.copy_gbps))
            .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], BLACK.stroke_width(2)));
        for (kind, (_, label, colour)) in KINDS.iter().enumerate() {
            let of_kind = rows.iter().filter(|row| kind_of(row) == kind);
            let points: Vec<_> = of_kind.map(|row| (intensity(row), row.tflops * scale)).collect();
            if points.is_empty() {
                continue;
            }
            let dot = |point| Circle::new(point, 5, colour.filled());
            chart
                .draw_series(points.into_iter().map(dot))?
                .label(*label)
                .legend(|(x, y)| Circle::new((x + 8, y), 5, colour.filled()));
        }
        chart
            .configure_series_labels()
            .label_font(("sans-serif", 18))
            .background_style(WHITE)
            .border_style(RGBColor(200, 200, 200))
            .position(SeriesLabelPosition::LowerRight)
            .draw()?;
        area.present()?;
    }
    let mut png = Vec::new();
    PngEncoder::new(&mut png).write_image(&pixels, SIZE.0, SIZE.1, image::ExtendedColorType::Rgb8)?;
    Ok(png)
}

fn kind_of(row: &Row) -> usize {
    KINDS.iter().position(|(start, ..)| row.name.starts_with(start)).unwrap_or(KINDS.len() - 1)
}

/// Whole decades that hold the values.
fn around(values: impl Iterator<Item = f64> + Clone) -> Option<Range<f64>> {
    let positive = values.filter(|v| v.is_finite() && *v > 0.0);
    let (low, high) = (positive.clone().reduce(f64::min)?, positive.reduce(f64::max)?);
    // a little more, so that no dot lies on the edge
    Some(10_f64.powf((low / 1.2).log10().floor())..10_f64.powf((high * 1.2).log10().ceil()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::tests::report;

    #[test]
    fn only_what_is_wanted_is_drawn() {
        let mut report = report(&[("conv a", 1.0, 0.0), ("linear b", 1.0, 0.0), ("layer norm", 1.0, 0.0)]);
        (report.ceilings.gemm_tflops, report.ceilings.copy_gbps) = (0.1, 10.0);
        for (row, flops) in report.rows.iter_mut().zip([1 << 30, 1 << 32, 0]) {
            (row.flops, row.bytes, row.tflops) = (flops, 1 << 20, 0.05);
        }
        let has = |wanted: &dyn Fn(&str) -> bool, RGBColor(r, g, b): RGBColor| {
            let picture = image::load_from_memory(&roofline(&report, wanted).unwrap()).unwrap().into_rgb8();
            picture.pixels().any(|pixel| pixel.0 == [r, g, b])
        };
        let [(_, _, conv), (_, _, linear), ..] = KINDS;
        assert!(has(&|_| true, conv) && has(&|_| true, linear));
        let convs = |name: &str| name.contains("conv");
        assert!(has(&convs, conv) && !has(&convs, linear));
        // without any, the roof alone
        let norms = |name: &str| name.contains("norm");
        assert!(!has(&norms, conv) && !has(&norms, linear) && has(&norms, BLACK));
    }
}
