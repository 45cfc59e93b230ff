// Attention, one invocation per {{ "key" if PASS == "keys" else "query" }} and head; {{ PASS }}. No score matrix in memory.
//
//   s[i, j] = scale q[i] . k[j]       p = softmax over j (j <= i where CAUSAL)       o[i] = sum_j p[i, j] v[j]
//   forward: o, and lse[i] = log sum_j exp s[i, j], by the online softmax (arXiv 1805.02867, algorithm 3)
//   delta[i] = do[i] . o[i], by attention_delta.wgsl
//   queries: dq[i] = scale sum_j ds[i, j] k[j],   ds = p (do[i] . v[j] - delta[i]),   p = exp(s - lse)
//   keys:    dk[j] = scale sum_i ds[i, j] q[i],   dv[j] = sum_i p[i, j] do[i]
// q, o, do [b, tq, h d]; k, v [b, tk, h d]; lse, delta f32 [b, h, tq]. Dispatch: b h t invocations, t fastest, folded.
// Numeric note: f32; DV vectors of the head (W wide) live in private memory.
{% include "index" %}
{% from "vec" import vec %}
{% set X = vec(W, "f32") %}
{% set BACK = PASS in ["queries", "keys"] %}
@group(0) @binding(0) var<storage, read> q: array<{{ vec(W, T) }}>;
@group(0) @binding(1) var<storage, read> k: array<{{ vec(W, T) }}>;
@group(0) @binding(2) var<storage, read> v: array<{{ vec(W, T) }}>;
{% if PASS == "forward" %}
@group(0) @binding(3) var<storage, read_write> lse: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<{{ vec(W, T) }}>;
{% else %}
@group(0) @binding(3) var<storage, read> lse: array<f32>;
@group(0) @binding(4) var<storage, read> grad: array<{{ vec(W, T) }}>;
@group(0) @binding(5) var<storage, read> delta: array<f32>;
@group(0) @binding(6) var<storage, read_write> out: array<{{ vec(W, T) }}>;
{% if PASS == "keys" %}
@group(0) @binding(7) var<storage, read_write> out_v: array<{{ vec(W, T) }}>;
{% endif %}
{% endif %}

fn sum(x: {{ X }}) -> f32 {
    return {% if W == 4 %}(x.x + x.y) + (x.z + x.w){% else %}x{% endif %};
}

@compute @workgroup_size({{ WG }})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let id = flat_index(wid, groups, lid);
    let tokens = {{ "p.tk" if PASS == "keys" else "p.tq" }};
    if (id >= p.batch * p.heads * tokens) {
        return;
    }
    let own = id % tokens;
    let head = id / tokens % p.heads;
    let b = id / tokens / p.heads;
    let d = p.d / {{ W }}u;
    let row = p.heads * d;
    let at_q = b * p.tq * row + head * d;
    let at_k = b * p.tk * row + head * d;
{% if PASS == "keys" %}
    var mine: array<{{ X }}, {{ DV }}>;
    var value: array<{{ X }}, {{ DV }}>;
    var dk: array<{{ X }}, {{ DV }}>;
    var dv: array<{{ X }}, {{ DV }}>;
    for (var c = 0u; c < d; c++) {
        mine[c] = {{ X }}(k[at_k + own * row + c]);
        value[c] = {{ X }}(v[at_k + own * row + c]);
        dk[c] = {{ X }}(0.0);
        dv[c] = {{ X }}(0.0);
    }
    for (var i = {{ "own" if CAUSAL else "0u" }}; i < p.tq; i++) {
        var s = {{ X }}(0.0);
        var dp = {{ X }}(0.0);
        for (var c = 0u; c < d; c++) {
            s = fma({{ X }}(q[at_q + i * row + c]), mine[c], s);
            dp = fma({{ X }}(grad[at_q + i * row + c]), value[c], dp);
        }
        let stat = (b * p.heads + head) * p.tq + i;
        let weight = exp(sum(s) * p.scale - lse[stat]);
        let ds = weight * (sum(dp) - delta[stat]) * p.scale;
        for (var c = 0u; c < d; c++) {
            dk[c] = fma({{ X }}(ds), {{ X }}(q[at_q + i * row + c]), dk[c]);
            dv[c] = fma({{ X }}(weight), {{ X }}(grad[at_q + i * row + c]), dv[c]);
        }
    }
    for (var c = 0u; c < d; c++) {
        out[at_k + own * row + c] = {{ vec(W, T) }}(dk[c]);
        out_v[at_k + own * row + c] = {{ vec(W, T) }}(dv[c]);
    }
{% else %}
    var mine: array<{{ X }}, {{ DV }}>;
    var acc: array<{{ X }}, {{ DV }}>;
    {% if BACK %}
    var dout: array<{{ X }}, {{ DV }}>;
    {% endif %}
    for (var c = 0u; c < d; c++) {
        mine[c] = {{ X }}(q[at_q + own * row + c]) * p.scale;
        acc[c] = {{ X }}(0.0);
        {% if BACK %}
        dout[c] = {{ X }}(grad[at_q + own * row + c]);
        {% endif %}
    }
    {% if BACK %}
    let stat_lse = lse[id];
    let stat_delta = delta[id];
    {% else %}
    // finite stand-in for -infinity, which fast math may not know
    var top = -3.0e38;
    var total = 0.0;
    {% endif %}
    for (var j = 0u; j < {{ "min(own + 1u, p.tk)" if CAUSAL else "p.tk" }}; j++) {
        var s4 = {{ X }}(0.0);
        {% if BACK %}
        var dp4 = {{ X }}(0.0);
        {% endif %}
        for (var c = 0u; c < d; c++) {
            s4 = fma(mine[c], {{ X }}(k[at_k + j * row + c]), s4);
            {% if BACK %}
            dp4 = fma(dout[c], {{ X }}(v[at_k + j * row + c]), dp4);
            {% endif %}
        }
        let s = sum(s4);
        {% if BACK %}
        let ds = exp(s - stat_lse) * (sum(dp4) - stat_delta) * p.scale;
        for (var c = 0u; c < d; c++) {
            acc[c] = fma({{ X }}(ds), {{ X }}(k[at_k + j * row + c]), acc[c]);
        }
        {% else %}
        if (s > top) {
            let shrink = exp(top - s);
            total *= shrink;
            for (var c = 0u; c < d; c++) {
                acc[c] *= shrink;
            }
            top = s;
        }
        let weight = exp(s - top);
        total += weight;
        for (var c = 0u; c < d; c++) {
            acc[c] = fma({{ X }}(weight), {{ X }}(v[at_k + j * row + c]), acc[c]);
        }
        {% endif %}
    }
    {% if BACK %}
    for (var c = 0u; c < d; c++) {
        out[at_q + own * row + c] = {{ vec(W, T) }}(acc[c]);
    }
    {% else %}
    for (var c = 0u; c < d; c++) {
        out[at_q + own * row + c] = {{ vec(W, T) }}(acc[c] / total);
    }
    lse[id] = top + log(total);
    {% endif %}
{% endif %}
}
