// Moves channels and pixels; {{ OP }}.
//
//   join:       out[m, c] = c < ca ? x[m, c] : y[m, c - ca]         [rows, ca], [rows, cb] to [rows, ca + cb]
//   part:       out[m, c] = x[m, first + c]                         [rows, ca] to [rows, cb]
//   upsample:   out[b, y, x, c] = in[b, y / 2, x / 2, c]            [b, h, w, c] to [b, oh, ow, c]
//   downsum:    out[b, y, x, c] = sum of in[b, 2 y + {0, 1}, 2 x + {0, 1}, c] that exist (the gradient of upsample)
// Dispatch: one invocation per V values of out, folded.
{% include "index" %}
{% from "vec" import vec %}
@group(0) @binding(0) var<storage, read> x: array<{{ vec(V, T) }}>;
{% if OP == "join" %}
@group(0) @binding(1) var<storage, read> y: array<{{ vec(V, T) }}>;
{% endif %}
@group(0) @binding(2) var<storage, read_write> out: array<{{ vec(V, T) }}>;

@compute @workgroup_size({{ WG }})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let i = flat_index(wid, groups, lid);
    if (i >= p.count) {
        return;
    }
{% if OP == "join" %}
    let c = i % (p.ca + p.cb);
    let m = i / (p.ca + p.cb);
    if (c < p.ca) {
        out[i] = x[m * p.ca + c];
    } else {
        out[i] = y[m * p.cb + c - p.ca];
    }
{% elif OP == "part" %}
    out[i] = x[i / p.cb * p.ca + p.first + i % p.cb];
{% else %}
    let c = i % p.ca;
    let at = vec3<u32>(i / p.ca % p.out_w, i / p.ca / p.out_w % p.out_h, i / p.ca / p.out_w / p.out_h);
    {% if OP == "upsample" %}
    out[i] = x[((at.z * p.in_h + at.y / 2u) * p.in_w + at.x / 2u) * p.ca + c];
    {% else %}
    var sum = {{ vec(V, "f32") }}(0.0);
    for (var dy = 0u; dy < 2u; dy++) {
        for (var dx = 0u; dx < 2u; dx++) {
            let from_y = 2u * at.y + dy;
            let from_x = 2u * at.x + dx;
            if (from_y < p.in_h && from_x < p.in_w) {
                sum += {{ vec(V, "f32") }}(x[((at.z * p.in_h + from_y) * p.in_w + from_x) * p.ca + c]);
            }
        }
    }
    out[i] = {{ vec(V, T) }}(sum);
    {% endif %}
{% endif %}
}
