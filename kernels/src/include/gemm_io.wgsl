// What both bodies of the GEMM family share: bindings, where a row of A lies, and the epilogue.
//
//   out[m, n] = act(alpha gate[m / rows_per_gate] (sum_k A[m, k] B[k, n] + sum_r S[m, r] U[r, n]) + bias[n]) + residual[m, n]
//
// With several products A and out are p.rows_per_plane rows of each, and B the n columns of each (lane body only).
// k runs over (tap, c), c < p.c. A row of A is a pixel of an image that the tap shifts (CONV), or just row m.
// r runs over the ranks, and in the input gradient of a convolution over (tap, rank), where the tap shifts S as it does A.
//   NT: B is stored [n, tap, c], U [n, r]      (y = x Wt, weights as [out, in])
//   NN: B is stored [c, tap, n], U [r, tap, n] (dx = dy W, the same weights)
// A is TA, B, S and U are T, the output and the residual TO: f16 weights go with a residual stream in f32.
// V = 4 or 8 loads so many values of the last axis at once: c % V == 0, and for NN n % V == 0; VE likewise for r; VN: n % 4 == 0.
{% from "vec" import vec %}
// eight of f16 are bound as four pairs, eight of f32 as four and four
{% macro bound(width, type) %}{% if width == 8 and type == "f16" %}vec4<u32>{% else %}{{ vec(width, type) }}{% endif %}{% endmacro %}
@group(0) @binding(0) var<storage, read> a: array<{{ bound(V, TA) }}>;      // [m, c], or an image [batch, src_h, src_w, c]
@group(0) @binding(1) var<storage, read> b: array<{{ bound(V, T) }}>;
@group(0) @binding(2) var<storage, read_write> out: array<{{ vec(4 if VN else 1, TO) }}>;  // [m, n]
{% if BIAS %}
@group(0) @binding(3) var<storage, read> bias: array<{{ vec(4 if VN else 1, "f32") }}>;    // [n]
{% endif %}
{% if RESIDUAL %}
@group(0) @binding(4) var<storage, read> residual: array<{{ vec(4 if VN else 1, TO) }}>;   // [m, n]
{% endif %}
{% if EXT %}
@group(0) @binding(5) var<storage, read> s: array<{{ bound(VE, T) }}>;      // [m, r]
@group(0) @binding(6) var<storage, read> u: array<{{ bound(VE, T) }}>;
{% endif %}
{% if GATE %}
@group(0) @binding(7) var<storage, read> gate: array<f32>;                // [m / rows_per_gate]
{% endif %}
{% if CONV %}
{% include "conv" %}
{% endif %}
{% if ACT != "none" %}
{% include "act" %}
{% endif %}

// Epilogue of four neighbouring columns of row m, n % 4 == 0.
fn finish(m: u32, n: u32, sum: vec4<f32>) {
    if (m >= p.m || n >= p.n) {
        return;
    }
    var y = sum * p.alpha;
    {% if GATE %}
    y *= gate[m / p.rows_per_gate];
    {% endif %}
    {% if VN %}
    let at = (m * p.n + n) / 4u;
    {% if BIAS %}
    y += bias[n / 4u];
    {% endif %}
    {% if ACT != "none" %}
    y = vec4<f32>({{ ACT }}(y.x), {{ ACT }}(y.y), {{ ACT }}(y.z), {{ ACT }}(y.w));
    {% endif %}
    {% if RESIDUAL %}
    y += vec4<f32>(residual[at]);
    {% endif %}
    out[at] = vec4<{{ TO }}>(y);
    {% else %}
    {% for j in range(4) %}
    if (n + {{ j }}u < p.n) {
        let at = m * p.n + n + {{ j }}u;
        var v = y[{{ j }}];
        {% if BIAS %}
        v += bias[n + {{ j }}u];
        {% endif %}
        {% if ACT != "none" %}
        v = {{ ACT }}(v);
        {% endif %}
        {% if RESIDUAL %}
        v += f32(residual[at]);
        {% endif %}
        out[at] = {{ TO }}(v);
    }
    {% endfor %}
    {% endif %}
}
