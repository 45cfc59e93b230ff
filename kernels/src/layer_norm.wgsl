// Layer norm over the last axis; {{ "gradient" if GRAD else "forward" }}.
//
//   x^ = (x - mean) rstd       y = gamma x^ + beta
//   dx = rstd (w - (sum w + x^ sum w x^) / c) + before,  w = gamma dy
// Dispatch: one workgroup (LANE: invocation) per row, folded.
// x, before and dx are TX, y and dy are T.
// Numeric note: f32, mean and variance in two passes.
{% include "index" %}
{% include "reduce" %}
@group(0) @binding(0) var<storage, read> x: array<{{ TX }}>;               // [rows, c]
@group(0) @binding(1) var<storage, read> gamma: array<f32>;                // [c]
{% if GRAD %}
@group(0) @binding(3) var<storage, read> stats: array<vec2<f32>>;          // [rows] of (mean, rstd)
@group(0) @binding(4) var<storage, read> dy: array<{{ T }}>;               // [rows, c]
{% if BEFORE %}
@group(0) @binding(5) var<storage, read> before: array<{{ TX }}>;          // [rows, c]
{% endif %}
{% else %}
@group(0) @binding(2) var<storage, read> beta: array<f32>;                 // [c]
@group(0) @binding(3) var<storage, read_write> stats: array<vec2<f32>>;
{% endif %}
@group(0) @binding(6) var<storage, read_write> out: array<{{ TX if GRAD else T }}>;        // [rows, c]

@compute @workgroup_size({{ WG }})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
{% include "row" %}
    let at = row * p.c;
    {% if GRAD %}
    let stat = stats[row];
    var sums = vec2<f32>();
    for (var c = START; c < p.c; c += STEP) {
        let w = gamma[c] * f32(dy[at + c]);
        sums += vec2<f32>(w, w * (f32(x[at + c]) - stat.x) * stat.y);
    }
    let mean = workgroup_sum(sums, lid) / f32(p.c);
    for (var c = START; c < p.c; c += STEP) {
        let hat = (f32(x[at + c]) - stat.x) * stat.y;
        var dx = stat.y * (gamma[c] * f32(dy[at + c]) - mean.x - hat * mean.y);
        {% if BEFORE %}
        dx += f32(before[at + c]);
        {% endif %}
        out[at + c] = {{ TX }}(dx);
    }
    {% else %}
    var sum = 0.0;
    for (var c = START; c < p.c; c += STEP) {
        sum += f32(x[at + c]);
    }
    let mean = workgroup_sum(vec2<f32>(sum, 0.0), lid).x / f32(p.c);
    sum = 0.0;
    for (var c = START; c < p.c; c += STEP) {
        let d = f32(x[at + c]) - mean;
        sum = fma(d, d, sum);
    }
    let rstd = 1.0 / sqrt(workgroup_sum(vec2<f32>(sum, 0.0), lid).x / f32(p.c) + p.eps);
    for (var c = START; c < p.c; c += STEP) {
        out[at + c] = {{ T }}(fma((f32(x[at + c]) - mean) * rstd, gamma[c], beta[c]));
    }
    if (START == 0u) {
        stats[row] = vec2<f32>(mean, rstd);
    }
    {% endif %}
}
