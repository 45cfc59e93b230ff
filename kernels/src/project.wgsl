// Rows of a flat buffer, freed of the directions of a basis, in place.
//
//   for j in first..last:  a -= (a . u_j) u_j                        (modified Gram-Schmidt)
// Dispatch: one workgroup (LANE: invocation) per row, folded.
// Numeric note: f32. Each direction is taken from what the ones before it left, and every invocation reads back only
// what it wrote itself.
{% include "index" %}
{% include "reduce" %}
@group(0) @binding(0) var<storage, read> starts: array<u32>;               // [rows]: where in weights each begins
@group(0) @binding(1) var<storage, read> basis: array<f32>;                // [k, c], orthonormal
@group(0) @binding(2) var<storage, read_write> weights: array<f32>;
{% if SHADOW %}
@group(0) @binding(3) var<storage, read_write> shadow: array<{{ SHADOW }}>;         // as weights
{% endif %}

@compute @workgroup_size({{ WG }})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
{% include "row" %}
    let at = starts[row];
    for (var j = p.first; j < p.last; j++) {
        let u = j * p.c;
        var sum = 0.0;
        for (var c = START; c < p.c; c += STEP) {
            sum = fma(weights[at + c], basis[u + c], sum);
        }
        let along = workgroup_sum(vec2<f32>(sum, 0.0), lid).x;
        for (var c = START; c < p.c; c += STEP) {
            weights[at + c] = fma(-along, basis[u + c], weights[at + c]);
        }
    }
    {% if SHADOW %}
    for (var c = START; c < p.c; c += STEP) {
        shadow[at + c] = f16(weights[at + c]);
    }
    {% endif %}
}
