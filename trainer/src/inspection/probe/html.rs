//! The report as one page that needs no other file.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use image::RgbImage;
use image::codecs::jpeg::JpegEncoder;
use minijinja::value::Value;
use minijinja::{Environment, UndefinedBehavior, context};

use super::report::{FeatureReport, Grid, Report};
use super::table::{Shown, Table, overview, tables};
use super::{GroupKind, heat};
use crate::{Error, Result};

/// Of the pictures in the page; the PNG of a grid loses nothing.
const JPEG_QUALITY: u8 = 90;

impl Report {
    /// As one self-contained page: heat maps as tables, and picture grids.
    ///
    /// # Errors
    /// A picture has not as many pixels as it says.
    pub fn to_html(&self) -> Result<String> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        let failed = |e: minijinja::Error| Error::Probe(format!("the page cannot be put together: {e}"));
        // the name's ending turns the escaping on
        environment.add_template("report.html", include_str!("report.html")).map_err(failed)?;
        let features =
            self.features.iter().map(|feature| self.feature(feature)).collect::<Result<Vec<_>>>()?;
        let latents = match &self.latents.folder {
            Some(folder) => format!("the pictures of {folder}"),
            None => "standard normal numbers".into(),
        };
        let [height, width, _] = self.latents.shape;
        let page = context! {
            model => &self.model,
            dtype => self.dtype,
            seed => self.seed,
            samples => self.samples,
            bands => self.bands.len(),
            latents => latents,
            size => format!("{width}×{height}"),
            overview => shown(&overview(self)),
            features => features,
        };
        environment.get_template("report.html").and_then(|page_of| page_of.render(page)).map_err(failed)
    }

    fn feature(&self, feature: &FeatureReport) -> Result<Value> {
        let groups = feature.gates.first().map_or(&[][..], |matrix| &matrix.rows);
        let groups = groups.iter().map(|row| {
            let of = row.group.of.clone().unwrap_or_default();
            let kind = match row.group.kind {
                GroupKind::OwnTag => "own tag".into(),
                GroupKind::OtherTag => format!("tag of {of}"),
                GroupKind::Class => format!("class {of}"),
                GroupKind::Ordinary => "ordinary".into(),
                GroupKind::Empty => "empty".to_owned(),
            };
            let prompts = row.group.prompts.iter().map(|prompt| self.prompts[*prompt].text.clone());
            context! { kind => kind, prompts => prompts.collect::<Vec<_>>() }
        });
        Ok(context! {
            name => &feature.name,
            file => &feature.file,
            weight => feature.weight.to_string(),
            tags => &feature.tags,
            tables => tables(feature, &self.bands).iter().map(shown).collect::<Vec<_>>(),
            groups => groups.collect::<Vec<_>>(),
            grid => feature.pictures.as_ref().map(grid).transpose()?,
        })
    }
}

fn shown(table: &Table) -> Value {
    let cell = |cell: &Shown| {
        let style = cell.heat.map(|value| {
            let ([r, g, b], ink) = heat::colours(value);
            format!("background:rgb({r},{g},{b});color:rgb({},{},{})", ink[0], ink[1], ink[2])
        });
        context! { text => &cell.text, style => style }
    };
    let rows = table.rows.iter().map(|(label, cells)| {
        context! { label => label, cells => cells.iter().map(cell).collect::<Vec<_>>() }
    });
    context! { title => &table.title, columns => &table.columns, rows => rows.collect::<Vec<_>>() }
}

fn grid(grid: &Grid) -> Result<Value> {
    let rows = grid.rows.iter().map(|row| {
        let pictures = row.pictures.iter().map(jpeg).collect::<Result<Vec<_>>>()?;
        Ok(context! { prompt => &row.prompt, pictures => pictures })
    });
    Ok(context! { columns => &grid.columns, rows => rows.collect::<Result<Vec<_>>>()? })
}

fn jpeg(picture: &RgbImage) -> Result<String> {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY)
        .encode_image(picture)
        .map_err(|e| Error::Probe(format!("a picture cannot be encoded: {e}")))?;
    Ok(BASE64_STANDARD.encode(bytes))
}
