// Group norm over channels-last images, SiLU fused; {{ PASS }}.
//
//   u = x + add[b, c]          x^ = (u - mean[b, g]) rstd[b, g]          n = gamma x^ + beta          y = n or silu(n)
//   stats:      mean, rstd of u over the tokens and channels of (b, g); two passes, so no cancellation
//   apply:      y
//   grad_sums:  sum w and sum w x^ over (b, g), w = gamma dn, dn = dy or dy silu'(n)
//   grad_apply: dx = rstd (w - (sum w + x^ sum w x^) / count) + before
// Dispatch: stats, grad_sums: one workgroup (LANE: invocation) per (b, g); others one invocation per V values; folded.
// Numeric note: f32; per-token sums are added up in blocks of 64 tokens.
{% include "index" %}
{% include "act" %}
{% from "vec" import vec %}
{% set GRAD = PASS in ["grad_sums", "grad_apply"] %}
{% set WHOLE = PASS in ["apply", "grad_apply"] %}
@group(0) @binding(0) var<storage, read> x: array<{{ vec(V, T) }}>;        // [b, tokens, c]
{% if ADD %}
@group(0) @binding(1) var<storage, read> extra: array<{{ T }}>;            // [b, c]
{% endif %}
{% if PASS != "stats" %}
@group(0) @binding(2) var<storage, read> gamma: array<f32>;                // [c]
@group(0) @binding(3) var<storage, read> beta: array<f32>;                 // [c]
@group(0) @binding(4) var<storage, read> stats: array<vec2<f32>>;          // [b, groups] of (mean, rstd)
{% endif %}
{% if GRAD %}
@group(0) @binding(5) var<storage, read> dy: array<{{ vec(V, T) }}>;       // [b, tokens, c]
{% endif %}
{% if PASS == "grad_apply" %}
@group(0) @binding(6) var<storage, read> sums: array<vec2<f32>>;           // [b, groups]
{% if BEFORE %}
@group(0) @binding(7) var<storage, read> before: array<{{ vec(V, T) }}>;   // [b, tokens, c]
{% endif %}
{% endif %}
@group(0) @binding(8) var<storage, read_write> out: array<{{ vec(V, T) if WHOLE else "vec2<f32>" }}>;

{% if PASS != "stats" %}
// (x^, n)
fn normal(u: f32, c: u32, stat: vec2<f32>) -> vec2<f32> {
    let hat = (u - stat.x) * stat.y;
    return vec2<f32>(hat, fma(gamma[c], hat, beta[c]));
}
{% endif %}
{% if GRAD %}

fn weight(dy: f32, n: f32, c: u32) -> f32 {
    return gamma[c] * dy {% if SILU %} * silu_slope(n){% endif %};
}
{% endif %}
{% if not WHOLE %}
{% include "reduce" %}

fn load(at: u32, b: u32, c: u32) -> f32 {
    {% if V == 4 %}
    var v = f32(x[at / 4u][at % 4u]);
    {% else %}
    var v = f32(x[at]);
    {% endif %}
    {% if ADD %}
    v += f32(extra[b * p.c + c]);
    {% endif %}
    return v;
}

{% macro each_value() %}
    for (var first = START; first < p.tokens; first += 64u * STEP) {
        var block = vec2<f32>();
        for (var token = first; token < min(first + 64u * STEP, p.tokens); token += STEP) {
            for (var k = 0u; k < width; k++) {
                let c = g * width + k;
                let at = (b * p.tokens + token) * p.c + c;
                {{ caller() }}
            }
        }
        sum += block;
    }
{% endmacro %}
@compute @workgroup_size({{ WG }})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    {% if LANE %}
    let bg = flat_index(wid, groups, lid);
    let START = 0u;
    let STEP = 1u;
    {% else %}
    let bg = wid.x + wid.y * groups.x;
    let START = lid;
    let STEP = {{ WG }}u;
    {% endif %}
    if (bg >= p.batch * p.groups) {
        return;
    }
    let b = bg / p.groups;
    let g = bg % p.groups;
    let width = p.c / p.groups;
    let count = f32(width * p.tokens);
    var sum = vec2<f32>();
    {% if PASS == "stats" %}
    {% call each_value() %}block.x += load(at, b, c);{% endcall %}
    let mean = workgroup_sum(sum, lid).x / count;
    sum = vec2<f32>();
    {% call each_value() %}let d = load(at, b, c) - mean; block.x = fma(d, d, block.x);{% endcall %}
    let variance = workgroup_sum(sum, lid).x / count;
    let result = vec2<f32>(mean, 1.0 / sqrt(variance + p.eps));
    {% else %}
    let stat = stats[bg];
    {% call each_value() %}
    let hn = normal(load(at, b, c), c, stat);
    let w = weight(f32({% if V == 4 %}dy[at / 4u][at % 4u]{% else %}dy[at]{% endif %}), hn.y, c);
    block += vec2<f32>(w, w * hn.x);
    {% endcall %}
    let result = workgroup_sum(sum, lid);
    {% endif %}
    {% if not LANE %}
    if (lid != 0u) {
        return;
    }
    {% endif %}
    out[bg] = result;
}
{% else %}

@compute @workgroup_size({{ WG }})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let i = flat_index(wid, groups, lid);
    if (i * {{ V }}u >= p.batch * p.tokens * p.c) {
        return;
    }
    let b = i * {{ V }}u / (p.tokens * p.c);
    let width = p.c / p.groups;
    {% for q in range(V) %}
    {% set part = "[" ~ q ~ "]" if V == 4 else "" %}
    let c{{ q }} = (i * {{ V }}u + {{ q }}u) % p.c;
    let bg{{ q }} = b * p.groups + c{{ q }} / width;
    let hn{{ q }} = normal(f32(x[i]{{ part }}){% if ADD %} + f32(extra[b * p.c + c{{ q }}]){% endif %}, c{{ q }}, stats[bg{{ q }}]);
    {% if PASS == "apply" %}
    let y{{ q }} = {% if SILU %}silu(hn{{ q }}.y){% else %}hn{{ q }}.y{% endif %};
    {% else %}
    let w{{ q }} = weight(f32(dy[i]{{ part }}), hn{{ q }}.y, c{{ q }});
    let s{{ q }} = sums[bg{{ q }}] / f32(width * p.tokens);
    let y{{ q }} = stats[bg{{ q }}].y * (w{{ q }} - s{{ q }}.x - hn{{ q }}.x * s{{ q }}.y){% if BEFORE %} + f32(before[i]{{ part }}){% endif %};
    {% endif %}
    {% endfor %}
    {% if V == 4 %}
    out[i] = vec4<{{ T }}>(vec4<f32>(y0, y1, y2, y3));
    {% else %}
    out[i] = {{ T }}(y0);
    {% endif %}
}
{% endif %}
