// What both bodies of the GEMM family share: bindings, where a row of A lies, and the epilogue.
//
//   out[m, n] = act(alpha gate[m / rows_per_gate] (sum_k A[m, k] B[k, n] + sum_r S[m, r] U[r, n]) + bias[n]) + residual[m, n]
//
// k runs over (tap, c), c < p.c. A row of A is a pixel of an image that the tap shifts (CONV), or just row m.
//   NT: B is stored [n, tap, c], U [n, r]      (y = x Wt, weights as [out, in])
//   NN: B is stored [c, tap, n], U [r, n]      (dx = dy W, the same weights)
// A is TA, B, S and U are T, the output and the residual TO: f16 weights go with a residual stream in f32.
// V = 4 loads four values of the last axis at once: c % 4 == 0, and for NN n % 4 == 0; VE likewise for r; VN: n % 4 == 0.
{% from "vec" import vec %}
@group(0) @binding(0) var<storage, read> a: array<{{ vec(V, TA) }}>;      // [m, c], or an image [batch, src_h, src_w, c]
@group(0) @binding(1) var<storage, read> b: array<{{ vec(V, T) }}>;
@group(0) @binding(2) var<storage, read_write> out: array<{{ vec(4 if VN else 1, TO) }}>;  // [m, n]
{% if BIAS %}
@group(0) @binding(3) var<storage, read> bias: array<{{ vec(4 if VN else 1, "f32") }}>;    // [n]
{% endif %}
{% if RESIDUAL %}
@group(0) @binding(4) var<storage, read> residual: array<{{ vec(4 if VN else 1, TO) }}>;   // [m, n]
{% endif %}
{% if EXT %}
@group(0) @binding(5) var<storage, read> s: array<{{ vec(VE, T) }}>;      // [m, r]
@group(0) @binding(6) var<storage, read> u: array<{{ vec(VE, T) }}>;
{% endif %}
{% if GATE %}
@group(0) @binding(7) var<storage, read> gate: array<f32>;                // [m / rows_per_gate]
{% endif %}
{% if CONV %}

// (first pixel of the sample, y, x) of output row m
fn pixel(m: u32) -> vec3<i32> {
    let xy = m % (p.dst_h * p.dst_w);
    return vec3<i32>(vec3<u32>(m / (p.dst_h * p.dst_w) * p.src_h * p.src_w, xy / p.dst_w, xy % p.dst_w));
}

// Pixel of the image that tap (ky, kx) reads for an output pixel, or -1 outside.
fn source(at: vec3<i32>, tap: u32) -> i32 {
    let k = vec2<i32>(vec2<u32>(tap / p.kw, tap % p.kw));
    let size = vec2<i32>(vec2<u32>(p.src_h, p.src_w));
    {% if TRANSPOSED %}
    // the input gradient: which output pixels y read this one with this tap
    let far = at.yz + i32(p.pad) - k;
    let y = far / i32(p.stride);
    let hit = all(far >= vec2<i32>(0)) && all(y * i32(p.stride) == far) && all(y < size);
    {% else %}
    let y = at.yz * i32(p.stride) + k - i32(p.pad);
    let hit = all(y >= vec2<i32>(0)) && all(y < size);
    {% endif %}
    return select(-1, at.x + y.x * size.y + y.y, hit);
}
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
