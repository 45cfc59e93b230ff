// Norm of the gradients, and AdamW; {{ PASS }}.
//
//   squares: out[i] = sum g^2 over chunk i of 4096, infinity where an element is not finite
//   norm:    out[0] = sqrt(sum_i parts[i]), infinity where it is not finite
//   adamw:   g' = g grad_scale clip,  clip = min(1, max_norm / (norm grad_scale + 1e-6))
//            m = b1 m + (1 - b1) g'     v = b2 v + (1 - b2) g'^2
//            w = w (1 - lr decay) - step_size m / (sqrt(v) / root2 + eps)          (arXiv 1711.05101, as torch.optim.AdamW)
//            nothing is written where the norm is not finite
// All f32 [count]. Dispatch: one invocation per chunk, 1, or one per element, folded.
// Numeric note: finiteness is read off the exponent's bits, since fast math may drop NaN from comparisons.
{% include "index" %}
{% if PASS == "adamw" %}
@group(0) @binding(0) var<storage, read> grads: array<f32>;
@group(0) @binding(1) var<storage, read> norm: array<f32>;
@group(0) @binding(2) var<storage, read_write> weights: array<f32>;
@group(0) @binding(3) var<storage, read_write> exp_avg: array<f32>;
@group(0) @binding(4) var<storage, read_write> exp_avg_sq: array<f32>;
{% if SHADOW %}
@group(0) @binding(5) var<storage, read_write> shadow: array<{{ SHADOW }}>;
{% endif %}
{% else %}
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;
{% endif %}

fn finite(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7f800000u) != 0x7f800000u;
}

@compute @workgroup_size({{ WG }})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let i = flat_index(wid, groups, lid);
{% if PASS == "adamw" %}
    if (i >= p.count || !finite(norm[0])) {
        return;
    }
    var scale = p.grad_scale;
    if (p.max_norm > 0.0) {
        scale *= min(1.0, p.max_norm / (norm[0] * p.grad_scale + 1e-6));
    }
    let g = grads[i] * scale;
    let m = fma(1.0 - p.beta1, g - exp_avg[i], exp_avg[i]);
    let v = fma(p.beta2, exp_avg_sq[i], (1.0 - p.beta2) * g * g);
    let w = weights[i] * (1.0 - p.lr * p.weight_decay) - p.step_size * (m / (sqrt(v) / p.root2 + p.eps));
    exp_avg[i] = m;
    exp_avg_sq[i] = v;
    weights[i] = w;
    {% if SHADOW %}
    shadow[i] = f16(w);
    {% endif %}
{% else %}
    {% if PASS == "squares" %}
    let first = i * 4096u;
    if (first >= p.count) {
        return;
    }
    let last = min(first + 4096u, p.count);
    {% else %}
    if (i != 0u) {
        return;
    }
    let first = 0u;
    let last = p.count;
    {% endif %}
    var sum = 0.0;
    var bad = false;
    for (var start = first; start < last; start += 32u) {
        var block = 0.0;
        for (var j = start; j < min(start + 32u, last); j++) {
            let value = x[j];
            bad = bad || !finite(value);
            block += {{ "value * value" if PASS == "squares" else "value" }};
        }
        sum += block;
    }
    {% if PASS == "squares" %}
    out[i] = select(sum, p.infinity, bad);
    {% else %}
    out[0] = select(sqrt(sum), p.infinity, bad || !finite(sum));
    {% endif %}
{% endif %}
}
