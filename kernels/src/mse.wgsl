// Mean squared error with a weight per sample; {{ PASS }}.
//
//   loss = 1 / B sum_b weight[b] / n sum_i (pred[b, i] - target[b, i])^2
//   samples: out[b, s] = weight[b] / (B n) sum_i (...)^2   one workgroup (LANE: invocation) per sample and slice of 16,384
//   total:   out[0] = sum parts                            one invocation
//   grad:    out[b, i] = grad[0] 2 weight[b] / (B n) (pred - target)      one invocation per value
// pred, target [b, n]; the rest f32. Numeric note: f32, in blocks of 64.
{% include "index" %}
{% if PASS == "total" %}
@group(0) @binding(0) var<storage, read> parts: array<f32>;
{% else %}
@group(0) @binding(0) var<storage, read> pred: array<{{ T }}>;
@group(0) @binding(1) var<storage, read> goal: array<{{ T }}>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
{% endif %}
{% if PASS == "grad" %}
@group(0) @binding(3) var<storage, read> grad: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<{{ T }}>;
{% else %}
@group(0) @binding(4) var<storage, read_write> out: array<f32>;
{% endif %}
{% if PASS == "samples" %}
{% include "reduce" %}
{% endif %}

@compute @workgroup_size({{ WG }})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
{% if PASS == "samples" %}
    {% if LANE %}
    let id = flat_index(wid, groups, lid);
    let START = 0u;
    let STEP = 1u;
    {% else %}
    let id = wid.x + wid.y * groups.x;
    let START = lid;
    let STEP = {{ WG }}u;
    {% endif %}
    if (id >= p.batch * p.slices) {
        return;
    }
    let b = id / p.slices;
    let begin = id % p.slices * 16384u;
    let end = min(begin + 16384u, p.n);
    var sum = 0.0;
    for (var first = begin + START; first < end; first += 64u * STEP) {
        var block = 0.0;
        for (var i = first; i < min(first + 64u * STEP, end); i += STEP) {
            let d = f32(pred[b * p.n + i]) - f32(goal[b * p.n + i]);
            block = fma(d, d, block);
        }
        sum += block;
    }
    let total = workgroup_sum(vec2<f32>(sum, 0.0), lid).x;
    if (START == 0u) {
        out[id] = weight[b] * total / (f32(p.batch) * f32(p.n));
    }
{% elif PASS == "total" %}
    if (flat_index(wid, groups, lid) != 0u) {
        return;
    }
    var sum = 0.0;
    for (var i = 0u; i < p.batch * p.slices; i++) {
        sum += parts[i];
    }
    out[0] = sum;
{% else %}
    let i = flat_index(wid, groups, lid);
    if (i >= p.batch * p.n) {
        return;
    }
    let factor = grad[0] * 2.0 * weight[i / p.n] / (f32(p.batch) * f32(p.n));
    out[i] = {{ T }}(factor * (f32(pred[i]) - f32(goal[i])));
{% endif %}
}
