//! Matrix products.

use strata_kernels::{matmul, reference};
use strata_tests::Row;

use super::hold;

fn row(m: usize, k: usize, n: usize) -> Row {
    Row::new(format!("matmul {m}×{k}×{n}"), &[m, n], m.max(n).max(k))
        .input("a", &[m, k])
        .input("b", &[k, n])
        .run(|tape, t| matmul(tape, &t[0], &t[1]))
        .reference(move |v| reference::matmul(&v[0], &v[1], [m, n, k]))
}

#[test]
fn matmuls() {
    hold([row(1, 1, 1), row(3, 5, 7), row(33, 17, 65), row(64, 64, 64), row(13, 130, 77), row(130, 12, 20)]);
}
