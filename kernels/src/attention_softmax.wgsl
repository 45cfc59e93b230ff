// Softmax of rows.
//
//   out[row, j] = exp(x[row, j] - m) / sum_j exp(x[row, j] - m),  m = max_j x[row, j]
// Dispatch: one workgroup (LANE: invocation) per row, folded.
// Numeric note: f32.
{% include "index" %}
{% include "reduce" %}
@group(0) @binding(0) var<storage, read> x: array<f32>;                    // [rows, c]
@group(0) @binding(1) var<storage, read_write> out: array<{{ T }}>;        // [rows, c]

@compute @workgroup_size({{ WG }})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
{% include "row" %}
    let at = row * p.c;
    // an invocation without a value takes the first, which changes no maximum
    var m = x[at];
    for (var j = START; j < p.c; j += STEP) {
        m = max(m, x[at + j]);
    }
    m = workgroup_max(m, lid);
    var sum = 0.0;
    for (var j = START; j < p.c; j += STEP) {
        sum += exp(x[at + j] - m);
    }
    let share = 1.0 / workgroup_sum(vec2<f32>(sum, 0.0), lid).x;
    for (var j = START; j < p.c; j += STEP) {
        out[at + j] = {{ T }}(exp(x[at + j] - m) * share);
    }
}
