//! Drift and leak of one feature: a row for each group of prompts, a cell for each band of timesteps.

use std::ops::Range;

use serde::Serialize;

use super::Errors;
use super::draws::BANDS;
use super::prompts::{Group, GroupKind};

/// Drift and leak of a feature, gated in one way.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Matrix {
    /// The gate's name.
    pub gate: &'static str,
    /// The leak of groups without the tag, averaged; `None` where the feature does nothing with its tag.
    pub leak: Option<f64>,
    /// By group, the own tag first.
    pub rows: Vec<Row>,
}

/// Of one group of prompts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// What the prompts are, and which.
    #[serde(flatten)]
    pub group: Group,
    /// Over all timesteps.
    #[serde(flatten)]
    pub all: Cell,
    /// By band of timesteps.
    pub bands: Vec<Cell>,
}

/// Two numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cell {
    /// Σ ‖ε_LoRA − ε_base‖² / Σ ‖ε_base‖².
    pub drift: f64,
    /// That, divided by the drift with the own tag. `None` for the own tag, and where that drift is 0.
    pub leak: Option<f64>,
}

impl Matrix {
    /// `groups` begin with that of the own tag; there are `samples` draws in each band; `energies` gives ‖ε_base‖² of
    /// each draw for a prompt.
    pub(super) fn new<'a>(
        gate: &'static str,
        groups: &[Group],
        samples: usize,
        errors: &Errors,
        energies: impl Fn(usize) -> &'a [f64],
    ) -> Self {
        let ratio = |group: &Group, draws: Range<usize>| {
            let sum = |values: &[f64]| values[draws.clone()].iter().sum::<f64>();
            let changed: f64 = group.prompts.iter().map(|prompt| sum(&errors[prompt])).sum();
            let base: f64 = group.prompts.iter().map(|prompt| sum(energies(*prompt))).sum();
            // a model that predicts nothing, with a LoRA or without
            if changed == 0.0 { 0.0 } else { changed / base }
        };
        let own = groups.iter().find(|group| group.kind == GroupKind::OwnTag);
        let cell = |group: &Group, draws: Range<usize>| {
            let drift = ratio(group, draws.clone());
            let with_tag = own.map_or(0.0, |own| ratio(own, draws));
            let leak = (group.kind != GroupKind::OwnTag && with_tag > 0.0).then(|| drift / with_tag);
            Cell { drift, leak }
        };
        let row = |group: &Group| Row {
            group: group.clone(),
            all: cell(group, 0..BANDS * samples),
            bands: (0..BANDS).map(|b| cell(group, b * samples..(b + 1) * samples)).collect(),
        };
        let rows: Vec<Row> = groups.iter().map(row).collect();
        let leaks: Vec<f64> = rows.iter().filter_map(|row| row.all.leak).collect();
        let leak = (!leaks.is_empty()).then(|| leaks.iter().sum::<f64>() / leaks.len() as f64);
        Self { gate, leak, rows }
    }

    /// The drift with the own tag.
    pub fn drift(&self) -> f64 {
        let own = self.rows.iter().find(|row| row.group.kind == GroupKind::OwnTag);
        own.map_or(0.0, |row| row.all.drift)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(kind: GroupKind, prompts: &[usize]) -> Group {
        Group { kind, of: None, prompts: prompts.to_vec() }
    }

    /// Two samples in each band; sums over prompts and draws come before the ratio.
    #[test]
    fn ratios_of_sums() {
        let groups =
            [group(GroupKind::OwnTag, &[0, 1]), group(GroupKind::Class, &[2]), group(GroupKind::Empty, &[3])];
        let errors = Errors::from([
            (0, vec![1.0, 3.0, 0.0, 0.0, 2.0, 2.0, 8.0, 0.0]),
            (1, vec![5.0, 7.0, 0.0, 0.0, 2.0, 2.0, 0.0, 0.0]),
            (2, vec![1.0, 1.0, 4.0, 0.0, 1.0, 0.0, 0.0, 0.0]),
            (3, vec![0.0; 8]),
        ]);
        let energies = [[10.0; 8], [30.0; 8], [5.0; 8], [1.0; 8]];
        let matrix = Matrix::new("always", &groups, 2, &errors, |prompt| &energies[prompt]);
        let near =
            |found: f64, expected: f64| assert!((found - expected).abs() < 1e-12, "{found}, not {expected}");
        let drifts = [[16.0 / 80.0, 0.0, 8.0 / 80.0, 8.0 / 80.0], [0.2, 0.4, 0.1, 0.0]];
        for (row, expected) in matrix.rows.iter().zip(drifts) {
            row.bands.iter().zip(expected).for_each(|(cell, drift)| near(cell.drift, drift));
        }
        near(matrix.drift(), 32.0 / 320.0);
        let leaks = [Some(1.0), None, Some(1.0), Some(0.0)];
        for (cell, leak) in matrix.rows[1].bands.iter().zip(leaks) {
            assert_eq!(cell.leak.is_some(), leak.is_some());
            near(cell.leak.unwrap_or(0.0), leak.unwrap_or(0.0));
        }
        near(matrix.rows[1].all.leak.unwrap(), (7.0 / 40.0) / (32.0 / 320.0));
        assert_eq!(matrix.rows[0].all.leak, None, "the own tag does not leak");
        near(matrix.leak.unwrap(), 1.75 / 2.0);
        assert_eq!(matrix.rows[2].all.leak, Some(0.0));
    }
}
