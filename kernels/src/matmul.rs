//! Matrix product of two tensors, either of which may be tracked: C = A B.

use strata_engine::{DType, Error, Result, Tape, Tensor};

use crate::gemm::{Gemm, Layout};
use crate::tokens::accumulate_product;

/// `[M, K]` times `[K, N]`. dA = dC Bᵀ, dB = Aᵀ dC (summed over M in f32).
///
/// # Errors
/// Shapes that do not fit.
pub fn matmul(tape: &Tape, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (&[m, k], &[bk, n]) = (a.shape(), b.shape()) else {
        return Err(Error::op("matmul", format!("{a:?} and {b:?} must have two axes each")));
    };
    if k != bk || a.dtype() != b.dtype() {
        return Err(Error::op("matmul", format!("{a:?} times {b:?}")));
    }
    let y = Gemm::new(a, b, Layout::Nn, [m, n, k]).run("matmul", &[m, n])?;
    let (saved_a, saved_b) = (tape.tracks(b).then(|| a.clone()), tape.tracks(a).then(|| b.clone()));
    let (ia, ib) = (a.id(), b.id());
    tape.record(&[a, b], &y, move |grad_out, grads| {
        if let Some(b) = saved_b {
            // the rows of B are its columns transposed: dA[m, k] = Σ_n dC[m, n] B[k, n]
            let before = grads.take(ia);
            let da = Gemm { residual: before.as_ref(), ..Gemm::new(grad_out, &b, Layout::Nt, [m, k, n]) }
                .run("matmul backward", &[m, k])?;
            grads.add_id(ia, da)?;
        }
        if let Some(a) = saved_a {
            let db = Tensor::zeros(a.gpu(), &[k, n], DType::F32)?;
            accumulate_product(&a, grad_out, &db, None)?;
            grads.add_id(ib, crate::cast(&db, a.dtype())?)?;
        }
        Ok(())
    });
    Ok(y)
}

/// The specification.
pub fn reference(a: &[f64], b: &[f64], [m, n, k]: [usize; 3]) -> Vec<f64> {
    let at = |i: usize| (0..k).map(|q| a[i / n * k + q] * b[q * n + i % n]).sum();
    (0..m * n).map(at).collect()
}
