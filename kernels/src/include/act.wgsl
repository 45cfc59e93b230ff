// Activations and their derivatives, in f32.

// erf(x), |error| <= 1.5e-7: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
fn erf(x: f32) -> f32 {
    let a = abs(x);
    let t = 1.0 / fma(0.3275911, a, 1.0);
    let poly = t * fma(t, fma(t, fma(t, fma(t, 1.061405429, -1.453152027), 1.421413741), -0.284496736), 0.254829592);
    let y = 1.0 - poly * exp(-min(a * a, 80.0));
    return select(y, -y, x < 0.0);
}

fn sigmoid(x: f32) -> f32 {
    return 1.0 / (1.0 + exp(min(-x, 80.0)));
}

fn silu(x: f32) -> f32 {
    return x * sigmoid(x);
}

fn silu_slope(x: f32) -> f32 {
    let s = sigmoid(x);
    return s * fma(x, 1.0 - s, 1.0);
}

// x Phi(x) with the exact Phi
fn gelu(x: f32) -> f32 {
    return 0.5 * x * (1.0 + erf(x * 0.7071067811865476));
}

// Phi(x) + x phi(x)
fn gelu_slope(x: f32) -> f32 {
    return fma(x * 0.3989422804014327, exp(-min(0.5 * x * x, 80.0)), 0.5 * (1.0 + erf(x * 0.7071067811865476)));
}

fn quick_gelu(x: f32) -> f32 {
    return x * sigmoid(1.702 * x);
}

fn quick_gelu_slope(x: f32) -> f32 {
    let s = sigmoid(1.702 * x);
    return s * fma(1.702 * x, 1.0 - s, 1.0);
}
