// Rows of two tensors, each row with weights of its own: out[m, n] = wx[m] x[m, n] + wy[m] y[m, n].
//
// x, y, out [M, N]; wx, wy [M]. Without PAIR there is no y: out[m, n] = wx[m] x[m, n], the gradient of either.
// Dispatch: M N / V invocations of V values, folded. p.n is N / V.
// Numeric note: f32; with weights 1 and 0 the row is one input's, bit for bit (but for the sign of 0).
{% include "index" %}
{% from "vec" import vec %}
{% set X = vec(V, "f32") %}
@group(0) @binding(0) var<storage, read> x: array<{{ vec(V, T) }}>;
@group(0) @binding(1) var<storage, read> wx: array<f32>;
{% if PAIR %}
@group(0) @binding(2) var<storage, read> y: array<{{ vec(V, T) }}>;
@group(0) @binding(3) var<storage, read> wy: array<f32>;
{% endif %}
@group(0) @binding(4) var<storage, read_write> out: array<{{ vec(V, T) }}>;

@compute @workgroup_size({{ WG }})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let i = flat_index(wid, groups, lid);
    if (i >= p.count) {
        return;
    }
    let m = i / p.n;
    var sum = wx[m] * {{ X }}(x[i]);
{% if PAIR %}
    sum += wy[m] * {{ X }}(y[i]);
{% endif %}
    out[i] = {{ vec(V, T) }}(sum);
}
