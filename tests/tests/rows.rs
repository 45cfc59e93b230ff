//! The table of rows: every op, at shapes that no tile divides, forward and backward, in f32 and f16.

mod attention;
mod blend;
mod conv;
mod conv_lora;
mod embedding;
mod image;
mod linear;
mod lora;
mod loss;
mod matmul;
mod norms;
mod optimizer;
mod pointwise;
mod project;
mod recompute;

use std::collections::HashSet;
use std::sync::LazyLock;

use strata_engine::DType;
use strata_kernels::{bodies, variants};
use strata_tests::{Effort, Expected, Row, Setup, check, coop, gpu, skipped};

#[test]
fn cooperative_matrices_are_used_where_they_are_offered() {
    match coop() {
        Some(offered) => assert_eq!(bodies(&gpu(Setup::Coop)).unwrap(), offered, "the self-test fails"),
        None => skipped("rows on cooperative matrices: the GPU adapter has none"),
    }
}

const SETUPS: [Setup; 6] =
    [Setup::Lane, Setup::Tile, Setup::Coop, Setup::Arena, Setup::Minimal, Setup::MinimalTile];

/// Holds every setup to every row, in both dtypes. That params are read as well from the uniform arena is seen on the
/// first row.
///
/// # Panics
/// With all that is wrong, one line each.
fn hold(rows: impl IntoIterator<Item = Row>) {
    static LISTED: LazyLock<HashSet<String>> =
        LazyLock::new(|| variants().into_iter().map(|v| v.name).collect());
    let mut wrong = Vec::new();
    for (i, row) in rows.into_iter().enumerate() {
        for dtype in [DType::F32, DType::F16] {
            let expected = Expected::new(&row, dtype);
            for setup in SETUPS {
                let effort = match setup {
                    // all but GEMMs in f16 is as in the setup before
                    Setup::Coop if dtype == DType::F32 || coop().is_none() => continue,
                    Setup::Coop => Effort::Full,
                    Setup::Arena if i > 0 || dtype == DType::F16 => continue,
                    // which have no f16
                    Setup::Minimal | Setup::MinimalTile if dtype == DType::F16 => continue,
                    Setup::Arena | Setup::Minimal | Setup::MinimalTile => Effort::Light,
                    Setup::Lane | Setup::Tile => Effort::Full,
                };
                let gpu = gpu(setup);
                if dtype == DType::F16 && !gpu.caps().f16 {
                    skipped(&format!("{} [f16, {setup:?}]: {} has no f16", row.name, gpu.caps().name));
                    continue;
                }
                let before: HashSet<String> = gpu.pipelines().into_iter().collect();
                wrong.extend(check(&row, &expected, &gpu, effort).err());
                // the attention of a head dim is listed for some of them only
                let new = gpu.pipelines().into_iter().filter(|name| !before.contains(name));
                let unlisted = new.filter(|name| !LISTED.contains(name) && !name.starts_with("attention"));
                wrong.extend(unlisted.map(|name| format!("{}: variants() lacks {name}", row.name)));
            }
        }
    }
    assert!(wrong.is_empty(), "{} checks failed:\n{}", wrong.len(), wrong.join("\n"));
}
