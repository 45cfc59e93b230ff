//! When two numbers are close enough.

use strata_engine::DType;

/// The tolerance of everything: how far a value may be off, relative to its own size plus the rms of its tensor.
///
/// With u = 2⁻²⁴, half an ulp of f32: 16 u for functions the hardware approximates, plus 4 u √K for a sum of K terms
/// (rounding errors add up like a random walk; 4 standard deviations). f16 storage adds 4 half ulps (2⁻¹¹ each): the
/// value's own rounding, those of stored intermediates, and drivers that round toward zero.
pub fn tolerance(dtype: DType, k: usize) -> f64 {
    let accumulation = 2_f64.powi(-24) * (16.0 + 4.0 * (k as f64).sqrt());
    match dtype {
        DType::F16 => accumulation + 4.0 * 2_f64.powi(-11),
        DType::F32 | DType::U32 => accumulation,
    }
}

/// Root mean square; 0 for no values.
pub fn rms(values: &[f64]) -> f64 {
    (values.iter().map(|v| v * v).sum::<f64>() / values.len().max(1) as f64).sqrt()
}

/// Checks that each value is within `tolerance` · (its own size + `scale`) of what it should be. NaN never is.
///
/// # Errors
/// `what`, the worst index, and both values there.
pub fn compare(what: &str, got: &[f64], want: &[f64], scale: f64, tolerance: f64) -> Result<(), String> {
    if got.len() != want.len() {
        return Err(format!("{what}: {} values instead of {}", got.len(), want.len()));
    }
    let mut worst: Option<(usize, f64)> = None;
    let mut wrong = 0;
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let (diff, limit) = ((got - want).abs(), tolerance * (want.abs() + scale));
        // written so that NaN on either side fails
        #[expect(clippy::neg_cmp_op_on_partial_ord, reason = "NaN must fail")]
        if !(diff <= limit) {
            wrong += 1;
            let ratio = if diff.is_nan() { f64::INFINITY } else { diff / limit };
            if worst.is_none_or(|(_, r)| ratio > r) {
                worst = Some((i, ratio));
            }
        }
    }
    let Some((i, ratio)) = worst else { return Ok(()) };
    Err(format!(
        "{what}: {wrong} of {} values are off, worst at index {i}: got {}, want {} ({ratio:.1} times the tolerance {tolerance:.1e})",
        got.len(),
        got[i],
        want[i]
    ))
}
