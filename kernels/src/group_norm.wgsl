// Group norm over channels-last images, SiLU fused; {{ PASS }}.
//
//   u = x + add[b, c]          x^ = (u - mean[b, g]) rstd[b, g]          n = gamma x^ + beta          y = n or silu(n)
//   stats:      mean and sum of squared deviations of u over a slice of the tokens and the channels of g, in one pass: with s the
//               mean of the first token and d = u - s, mean = s + sum d / n and sum (u - mean)^2 = sum d^2 - (sum d)^2 / n
//   grad_sums:  sum w and sum w x^ over a slice, w = gamma dn, dn = dy or dy silu'(n)
//   merge:      mean, rstd of (b, g) from its slices (Chan et al. 1983); of the sums, their sum, beside mean and rstd: a kernel may
//               have 8 bindings everywhere, and grad_apply would have 9
//   apply:      y
//   grad_apply: dx = rstd (w - (sum w + x^ sum w x^) / count) + before
// Dispatch: stats, grad_sums: one workgroup (LANE: invocation) per (b, g, slice); merge: one invocation per (b, g); others
// one invocation per V values; folded. Slices bound the iterations of an invocation: Mesa before 23 ends all of its loops
// after 65,535 in total.
// x, add, before and dx are TX, y and dy are T.
// Numeric note: f32; per-token sums are added up in blocks of 64 tokens.
{% include "index" %}
{% set GRAD = PASS in ["grad_sums", "grad_apply"] %}
{% set WHOLE = PASS in ["apply", "grad_apply"] %}
{% set TO = TX if GRAD else T %}
{% if PASS == "merge" %}
@group(0) @binding(0) var<storage, read> slices: array<vec2<f32>>;         // [b, groups, slices]
{% if STATS %}
@group(0) @binding(8) var<storage, read_write> out: array<vec2<f32>>;      // [b, groups]
{% else %}
@group(0) @binding(4) var<storage, read> stats: array<vec2<f32>>;          // [b, groups] of (mean, rstd)
@group(0) @binding(8) var<storage, read_write> out: array<vec4<f32>>;      // [b, groups] of (mean, rstd, sums)
{% endif %}

@compute @workgroup_size({{ WG }})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let bg = flat_index(wid, groups, lid);
    if (bg >= p.batch * p.groups) {
        return;
    }
    var sum = vec2<f32>();
    {% if STATS %}
    var count = 0.0;
    for (var i = 0u; i < p.slices; i++) {
        let slice = slices[bg * p.slices + i];
        let added = f32(p.c / p.groups) * f32(min(p.slice, p.tokens - i * p.slice));
        let delta = slice.x - sum.x;
        let total = count + added;
        sum += vec2<f32>(delta * added / total, slice.y + delta * delta * count * added / total);
        count = total;
    }
    out[bg] = vec2<f32>(sum.x, 1.0 / sqrt(sum.y / count + p.eps));
    {% else %}
    for (var i = 0u; i < p.slices; i++) {
        sum += slices[bg * p.slices + i];
    }
    out[bg] = vec4<f32>(stats[bg], sum);
    {% endif %}
}
{% else %}
{% include "act" %}
{% from "vec" import vec %}
@group(0) @binding(0) var<storage, read> x: array<{{ vec(V, TX) }}>;       // [b, tokens, c]
{% if ADD %}
@group(0) @binding(1) var<storage, read> extra: array<{{ TX }}>;           // [b, c]
{% endif %}
{% if PASS != "stats" %}
@group(0) @binding(2) var<storage, read> gamma: array<f32>;                // [c]
@group(0) @binding(3) var<storage, read> beta: array<f32>;                 // [c]
{% if PASS == "grad_apply" %}
@group(0) @binding(4) var<storage, read> stats: array<vec4<f32>>;          // [b, groups] of (mean, rstd, sums)
{% else %}
@group(0) @binding(4) var<storage, read> stats: array<vec2<f32>>;          // [b, groups] of (mean, rstd)
{% endif %}
{% endif %}
{% if GRAD %}
@group(0) @binding(5) var<storage, read> dy: array<{{ vec(V, T) }}>;       // [b, tokens, c]
{% endif %}
{% if BEFORE %}
@group(0) @binding(7) var<storage, read> before: array<{{ vec(V, TX) }}>;  // [b, tokens, c]
{% endif %}
@group(0) @binding(8) var<storage, read_write> out: array<{{ vec(V, TO) if WHOLE else "vec2<f32>" }}>;

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
    for (var first = begin + START; first < end; first += 64u * STEP) {
        var block = vec2<f32>();
        for (var token = first; token < min(first + 64u * STEP, end); token += STEP) {
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
    let id = flat_index(wid, groups, lid);
    let START = 0u;
    let STEP = 1u;
    {% else %}
    let id = wid.x + wid.y * groups.x;
    let START = lid;
    let STEP = {{ WG }}u;
    {% endif %}
    if (id >= p.batch * p.groups * p.slices) {
        return;
    }
    let bg = id / p.slices;
    let b = bg / p.groups;
    let g = bg % p.groups;
    let width = p.c / p.groups;
    let begin = id % p.slices * p.slice;
    let end = min(begin + p.slice, p.tokens);
    var sum = vec2<f32>();
    {% if PASS == "stats" %}
    // near the mean, or the difference of both sums would lose what it is made of
    var near = 0.0;
    for (var k = 0u; k < width; k++) {
        let c = g * width + k;
        near += load((b * p.tokens + begin) * p.c + c, b, c);
    }
    near /= f32(width);
    {% call each_value() %}
    let d = load(at, b, c) - near;
    block = fma(vec2<f32>(d), vec2<f32>(1.0, d), block);
    {% endcall %}
    let total = workgroup_sum(sum, lid);
    let offset = total.x / f32(width * (end - begin));
    let result = vec2<f32>(near + offset, max(fma(-offset, total.x, total.y), 0.0));
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
    out[id] = result;
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
    let hn{{ q }} = normal(f32(x[i]{{ part }}){% if ADD %} + f32(extra[b * p.c + c{{ q }}]){% endif %}, c{{ q }}, stats[bg{{ q }}].xy);
    {% if PASS == "apply" %}
    let y{{ q }} = {% if SILU %}silu(hn{{ q }}.y){% else %}hn{{ q }}.y{% endif %};
    {% else %}
    let w{{ q }} = weight(f32(dy[i]{{ part }}), hn{{ q }}.y, c{{ q }});
    let s{{ q }} = stats[bg{{ q }}].zw / f32(width * p.tokens);
    let y{{ q }} = stats[bg{{ q }}].y * (w{{ q }} - s{{ q }}.x - hn{{ q }}.x * s{{ q }}.y){% if BEFORE %} + f32(before[i]{{ part }}){% endif %};
    {% endif %}
    {% endfor %}
    {% if V == 4 %}
    out[i] = vec4<{{ TO }}>(vec4<f32>(y0, y1, y2, y3));
    {% else %}
    out[i] = {{ TO }}(y0);
    {% endif %}
}
{% endif %}
{% endif %}
