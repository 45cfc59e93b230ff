//! Two runs side by side.

use crate::{Report, Row};

/// Times differ if they differ by more than this and by more than both spreads.
const NOISE: f64 = 0.05;

/// A row of this run that an earlier one has too.
#[derive(Clone, Debug)]
pub struct Change<'a> {
    /// Of the earlier run.
    pub before: &'a Row,
    /// Of this run.
    pub now: &'a Row,
    /// Time before / time now: above 1 is faster.
    pub speedup: f64,
    /// Whether that is more than noise.
    pub significant: bool,
}

/// Rows that both have, by name, in the order of `now`.
pub fn compare<'a>(before: &'a Report, now: &'a Report) -> Vec<Change<'a>> {
    let pair = |row: &'a Row| Some((before.rows.iter().find(|other| other.name == row.name)?, row));
    now.rows
        .iter()
        .filter_map(pair)
        .map(|(before, now)| {
            let speedup = before.ms / now.ms;
            let noise = NOISE.max(before.spread).max(now.spread);
            Change { before, now, speedup, significant: (speedup.ln()).abs() > (1.0 + noise).ln() }
        })
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{Ceilings, Device};

    pub(crate) fn report(rows: &[(&str, f64, f64)]) -> Report {
        let row = |&(name, ms, spread): &(&str, f64, f64)| Row {
            name: name.into(),
            ms,
            spread,
            flops: 0,
            bytes: 0,
            tflops: 0.0,
            gbps: 0.0,
            of_gemm: 0.0,
            of_copy: 0.0,
            variant: String::new(),
            encode_ms: None,
            peak_mib: 0.0,
            kernels: Vec::new(),
        };
        let device = Device {
            name: String::new(),
            backend: String::new(),
            driver: String::new(),
            clock: "gpu".into(),
            gemm: "lane".into(),
            cpu: true,
        };
        Report {
            strata: String::new(),
            device,
            dtype: "f16".into(),
            latent: 64,
            ceilings: Ceilings::default(),
            rows: rows.iter().map(row).collect(),
        }
    }

    #[test]
    fn changes_beyond_noise() {
        let before = report(&[("a", 2.0, 0.01), ("b", 2.0, 0.5), ("gone", 1.0, 0.0), ("c", 1.0, 0.0)]);
        let now = report(&[("c", 1.04, 0.0), ("b", 1.5, 0.0), ("a", 1.0, 0.01), ("new", 1.0, 0.0)]);
        let changes = compare(&before, &now);
        let found: Vec<_> =
            changes.iter().map(|c| (c.now.name.as_str(), c.speedup > 1.0, c.significant)).collect();
        assert_eq!(found, [("c", false, false), ("b", true, false), ("a", true, true)]);
    }
}
