// Reductions over tokens (rows), deterministic: no atomics, one invocation per 4 x 4 results and split.
//
//   product:  out[split, i, j] (+)= sum_m u[m, i] v[m, j]     over the rows m of the split
//             CONV: j = (tap, c), and v is an image [batch, src_h, src_w, c], of which the tap picks a pixel for row m
//   sum:      out[i, j] = sum_m u[i, m, j]                    i = sample
//   gather:   out[i] += sum_split u[split, i]
// Dispatch: one invocation per result block (product: 4 x 4, others: 1), folded.
// Numeric note: f32, in blocks of 64 rows that are summed apart, so that error grows with the root of the blocks.
{% include "index" %}
{% set W = 4 if V else 1 %}
{% from "vec" import vec %}
@group(0) @binding(0) var<storage, read> u: array<{{ vec(W, T) }}>;
{% if OP == "product" %}
@group(0) @binding(1) var<storage, read> v: array<{{ vec(W, TV) }}>;
{% endif %}
@group(0) @binding(2) var<storage, read_write> out: array<{{ TO }}>;
{% if CONV %}
{% include "conv" %}

// The pixel of the next row.
fn next(at: vec3<i32>) -> vec3<i32> {
    if (at.z + 1 < i32(p.dst_w)) {
        return at + vec3<i32>(0, 0, 1);
    }
    if (at.y + 1 < i32(p.dst_h)) {
        return vec3<i32>(at.x, at.y + 1, 0);
    }
    return vec3<i32>(at.x + i32(p.src_h * p.src_w), 0, 0);
}
{% endif %}

@compute @workgroup_size({{ WG }})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let id = flat_index(wid, groups, lid);
{% if OP == "product" %}
    let across = (p.j + 3u) / 4u;
    let down = (p.i + 3u) / 4u;
    if (id >= across * down * p.splits) {
        return;
    }
    let j = id % across * 4u;
    let i = id / across % down * 4u;
    let split = id / across / down;
    let last = min((split + 1u) * p.rows_per_split, p.m);
    {% for q in range(4) %}
    var sum{{ q }} = vec4<f32>();
    let i{{ q }} = min(i + {{ q }}u, p.i - 1u);
    let j{{ q }} = min(j + {{ q }}u, p.j - 1u);
    {% endfor %}
    {% if CONV %}
    var at = pixel(split * p.rows_per_split);
    {% endif %}
    for (var first = split * p.rows_per_split; first < last; first += 64u) {
        {% for q in range(4) %}
        var block{{ q }} = vec4<f32>();
        {% endfor %}
        for (var m = first; m < min(first + 64u, last); m++) {
            {% if V %}
            let ui = vec4<f32>(u[(m * p.i + i) / 4u]);
            {% else %}
            let ui = vec4<f32>(f32(u[m * p.i + i0]), f32(u[m * p.i + i1]), f32(u[m * p.i + i2]), f32(u[m * p.i + i3]));
            {% endif %}
            {% if CONV %}
            {% for q in range(1 if V else 4) %}
            let from{{ q }} = source(at, j{{ q }} / p.c);
            let v{{ q }} = select({{ vec(W, "f32") }}(0.0), {{ vec(W, "f32") }}(v[(u32(max(from{{ q }}, 0)) * p.c + j{{ q }} % p.c) / {{ W }}u]), from{{ q }} >= 0);
            {% endfor %}
            let vj = vec4<f32>({{ "v0" if V else "v0, v1, v2, v3" }});
            at = next(at);
            {% elif V %}
            let vj = vec4<f32>(v[(m * p.j + j) / 4u]);
            {% else %}
            let vj = vec4<f32>(f32(v[m * p.j + j0]), f32(v[m * p.j + j1]), f32(v[m * p.j + j2]), f32(v[m * p.j + j3]));
            {% endif %}
            {% for q in range(4) %}
            block{{ q }} = fma(vec4<f32>(ui[{{ q }}]), vj, block{{ q }});
            {% endfor %}
        }
        {% for q in range(4) %}
        sum{{ q }} += block{{ q }};
        {% endfor %}
    }
    {% for q in range(4) %}
    if (i + {{ q }}u < p.i) {
        let at = (split * p.i + i + {{ q }}u) * p.j + j;
        {% for r in range(4) %}
        if (j + {{ r }}u < p.j) {
            out[at + {{ r }}u] {{ "+" if ADD else "" }}= sum{{ q }}[{{ r }}];
        }
        {% endfor %}
    }
    {% endfor %}
{% elif OP == "sum" %}
    if (id >= p.i * p.j) {
        return;
    }
    var sum = 0.0;
    for (var first = 0u; first < p.m; first += 64u) {
        var block = 0.0;
        for (var m = first; m < min(first + 64u, p.m); m++) {
            block += f32(u[(id / p.j * p.m + m) * p.j + id % p.j]);
        }
        sum += block;
    }
    out[id] = {{ TO }}(sum);
{% else %}
    if (id >= p.i * p.j) {
        return;
    }
    var sum = 0.0;
    for (var split = 0u; split < p.splits; split++) {
        sum += u[split * p.i * p.j + id];
    }
    out[id] += sum;
{% endif %}
}
