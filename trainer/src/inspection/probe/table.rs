//! Results as tables, which text, page and pictures all show.

use std::fmt::Write as _;

use super::report::{FeatureReport, Report};
use super::{Cell, Group, GroupKind, Kept, Matrix, Row};

/// Characters of the first column and of all others in text; eight of them are 96 wide.
const LABEL: usize = 24;
const COLUMN: usize = 9;

/// Names down the side and along the top, and numbers.
pub(super) struct Table {
    /// For names of files.
    pub slug: &'static str,
    pub title: String,
    pub columns: Vec<String>,
    pub rows: Vec<(String, Vec<Shown>)>,
}

/// A number as it is shown.
pub(super) struct Shown {
    pub text: String,
    /// From 0 to 1; `None` for what is no measurement.
    pub heat: Option<f64>,
}

impl Table {
    /// Lines of at most 100 characters.
    pub fn to_text(&self) -> String {
        let mut text = format!("{:<LABEL$}", self.title);
        if self.title.chars().count() > LABEL {
            text += &format!("\n{:<LABEL$}", "");
        }
        let line = |text: &mut String, cells: &mut dyn Iterator<Item = &String>| {
            cells.for_each(|cell| *text += &format!("{:>COLUMN$}", short(cell, COLUMN - 1)));
            text.truncate(text.trim_end().len());
            text.push('\n');
        };
        line(&mut text, &mut self.columns.iter());
        for (label, cells) in &self.rows {
            let _ = write!(text, "  {:<1$}", short(label, LABEL - 3), LABEL - 2);
            line(&mut text, &mut cells.iter().map(|cell| &cell.text));
        }
        text
    }
}

/// Cut to so many characters, of which the last says so.
pub(super) fn short(text: &str, most: usize) -> String {
    match text.chars().count() > most {
        true => text.chars().take(most - 1).chain(['…']).collect(),
        false => text.to_owned(),
    }
}

/// All features beside each other.
pub(super) fn overview(report: &Report) -> Table {
    let gates = report.features.first().map_or(&[][..], |feature| &feature.gates);
    let most = max(report.features.iter().filter_map(|f| f.gates.first()).map(Matrix::drift));
    let row = |feature: &FeatureReport| {
        let first = feature.gates.first().map_or(0.0, Matrix::drift);
        let leaks = feature.gates.iter().map(|matrix| leak(matrix.leak));
        (feature.name.clone(), [drift(first, most)].into_iter().chain(leaks).collect())
    };
    Table {
        slug: "overview",
        title: "mean leak by gate".into(),
        columns: ["drift".to_owned()].into_iter().chain(gates.iter().map(|m| m.gate.to_owned())).collect(),
        rows: report.features.iter().map(row).collect(),
    }
}

/// Those of one feature.
pub(super) fn tables(feature: &FeatureReport, bands: &[[usize; 2]]) -> Vec<Table> {
    let mut tables = vec![by_gate(&feature.gates)];
    if let Some(first) = feature.gates.first() {
        let most = max(first.rows.iter().flat_map(|row| &row.bands).map(|cell| cell.drift));
        let title = |what: &str| format!("{what}, gate {}", first.gate);
        tables.push(by_band("drift", title("drift by timestep"), first, bands, |c| drift(c.drift, most)));
        tables.push(by_band("leak", title("leak by timestep"), first, bands, |cell| leak(cell.leak)));
    }
    if !feature.kept.is_empty() {
        tables.push(by_kept(feature));
    }
    if !feature.blocks.is_empty() {
        tables.push(by_block(feature));
    }
    tables
}

fn by_kept(feature: &FeatureReport) -> Table {
    let plain = |value: f64| Shown { text: format!("{value:.3}"), heat: None };
    let row = |kept: &Kept| {
        let share = Shown { text: format!("{:.3}", kept.kept), heat: Some(1.0 - kept.kept.clamp(0.0, 1.0)) };
        (kept.gate.to_owned(), vec![share, plain(kept.distance), plain(kept.other)])
    };
    Table {
        slug: "kept",
        title: "what a tagged picture keeps, by gate".into(),
        columns: ["kept", "distance", "other"].map(str::to_owned).into(),
        rows: feature.kept.iter().map(row).collect(),
    }
}

fn by_gate(gates: &[Matrix]) -> Table {
    let rows = gates.first().map_or(&[][..], |matrix| &matrix.rows);
    let most = max(gates.iter().flat_map(|matrix| &matrix.rows).map(|row| row.all.drift));
    let row = |(i, row): (usize, &Row)| {
        let cells = gates.iter().map(|matrix| matrix.rows[i].all);
        (label(&row.group), cells.flat_map(|cell| [drift(cell.drift, most), leak(cell.leak)]).collect())
    };
    let mean = gates.iter().flat_map(|matrix| [nothing(), leak(matrix.leak)]).collect();
    Table {
        slug: "gates",
        title: "drift and leak by gate".into(),
        columns: gates.iter().flat_map(|matrix| [matrix.gate.to_owned(), "leak".to_owned()]).collect(),
        rows: rows.iter().enumerate().map(row).chain([("mean leak".to_owned(), mean)]).collect(),
    }
}

fn by_band(
    slug: &'static str,
    title: String,
    matrix: &Matrix,
    bands: &[[usize; 2]],
    show: impl Fn(&Cell) -> Shown,
) -> Table {
    Table {
        slug,
        title,
        columns: bands.iter().map(|[from, to]| format!("{from}-{}", to - 1)).collect(),
        rows: matrix
            .rows
            .iter()
            .map(|row| (label(&row.group), row.bands.iter().map(&show).collect()))
            .collect(),
    }
}

fn by_block(feature: &FeatureReport) -> Table {
    let most = max(feature.blocks.iter().map(|block| block.alone.drift()));
    let plain = |text: String| Shown { text, heat: None };
    let row = |block: &super::Block| {
        let share = Shown { text: format!("{:.1}%", 100.0 * block.share), heat: Some(block.share) };
        let cells = vec![
            plain(block.layers.to_string()),
            plain(block.parameters.to_string()),
            drift(block.alone.drift(), most),
            share,
            leak(block.alone.leak),
        ];
        (block.block.clone(), cells)
    };
    Table {
        slug: "blocks",
        title: "each block alone".into(),
        columns: ["layers", "numbers", "drift", "share", "leak"].map(str::to_owned).into(),
        rows: feature.blocks.iter().map(row).collect(),
    }
}

fn label(group: &Group) -> String {
    let of = group.of.as_deref().unwrap_or_default();
    match group.kind {
        GroupKind::OwnTag => "own tag".into(),
        GroupKind::OtherTag => format!("tag of {of}"),
        GroupKind::Class => format!("class {of}"),
        GroupKind::Ordinary => format!("{} ordinary", group.prompts.len()),
        GroupKind::Empty => "empty".into(),
    }
}

fn max(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, f64::max)
}

/// Root of the share, since drifts are squares.
fn drift(value: f64, most: f64) -> Shown {
    let text = if value == 0.0 { "0".into() } else { format!("{value:.2e}") };
    Shown { text, heat: Some(if most > 0.0 { (value / most).sqrt() } else { 0.0 }) }
}

fn leak(value: Option<f64>) -> Shown {
    let Some(value) = value else { return nothing() };
    let text = match value {
        0.0 => "0".into(),
        v if v < 5e-4 => format!("{v:.0e}"),
        v if v >= 100.0 => format!("{v:.1e}"),
        v => format!("{v:.3}"),
    };
    Shown { text, heat: Some(value.min(1.0)) }
}

fn nothing() -> Shown {
    Shown { text: String::new(), heat: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_zero_is_told_from_little() {
        let leaks = [0.0, 1e-9, 0.0005, 0.25, 3.5, 1234.0].map(|value| leak(Some(value)).text);
        assert_eq!(leaks, ["0", "1e-9", "0.001", "0.250", "3.500", "1.2e3"]);
        assert_eq!((drift(0.0, 1.0).text.as_str(), drift(0.0123, 1.0).text.as_str()), ("0", "1.23e-2"));
        assert_eq!(drift(0.25, 1.0).heat, Some(0.5));
        assert_eq!((leak(None).text.as_str(), leak(Some(7.0)).heat), ("", Some(1.0)));
        assert_eq!(short("abcdef", 4), "abc…");
    }
}
