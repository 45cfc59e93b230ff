// Attention, one invocation per {{ "key" if PASS == "keys" else "query" }}, head and part of the head; {{ PASS }}. No score matrix in memory.
//
//   s[i, j] = scale q[i] . k[j]       p = softmax over j (j <= i where CAUSAL)       o[i] = sum_j p[i, j] v[j]
//   forward: o, and lse[i] = log sum_j exp s[i, j], by the online softmax (arXiv 1805.02867, algorithm 3)
//   delta:   delta[i] = sum_j p[i, j] dp[i, j],    dp = do[i] . v[j],    p = exp(s - lse)
//   queries: dq[i] = scale sum_j ds[i, j] k[j],   ds = p (dp - delta[i])
//   keys:    dk[j] = scale sum_i ds[i, j] q[i],   dv[j] = sum_i p[i, j] do[i]
// q, o, do [b, tq, h d]; k, v [b, tk, h d]; lse, delta f32 [b, h, tq].
// Dispatch: one workgroup per {{ WG }} tokens of a head and part, tokens fastest, folded. A head has d / W vectors. An invocation keeps N of them in
// registers, by name, since compilers turn an indexed private array into a tree of branches. WHOLE: N is all of them.
// Otherwise each part of N vectors computes the scores anew from memory, U vectors per iteration (Mesa before 23 ends all
// loops of an invocation after 65,535 iterations in total).
// Numeric note: f32. delta equals do[i] . o[i], but o may have been rounded to f16; then sum_j ds[i, j] is not 0, and the
// error is multiplied with the mean of the keys.
{% from "vec" import vec %}
{% set X = vec(W, "f32") %}
{% set KEYS = PASS == "keys" %}
{% set FORWARD = PASS == "forward" %}
{% set DELTA = PASS == "delta" %}
@group(0) @binding(0) var<storage, read> q: array<{{ vec(W, T) }}>;
@group(0) @binding(1) var<storage, read> k: array<{{ vec(W, T) }}>;
@group(0) @binding(2) var<storage, read> v: array<{{ vec(W, T) }}>;
{% if FORWARD %}
@group(0) @binding(3) var<storage, read_write> lse: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<{{ vec(W, T) }}>;
{% else %}
@group(0) @binding(3) var<storage, read> lse: array<f32>;
@group(0) @binding(4) var<storage, read> grad: array<{{ vec(W, T) }}>;
{% if DELTA %}
@group(0) @binding(5) var<storage, read_write> delta: array<f32>;
{% else %}
@group(0) @binding(5) var<storage, read> delta: array<f32>;
@group(0) @binding(6) var<storage, read_write> out: array<{{ vec(W, T) }}>;
{% endif %}
{% if KEYS %}
@group(0) @binding(7) var<storage, read_write> out_v: array<{{ vec(W, T) }}>;
{% endif %}
{% endif %}

fn sum(x: {{ X }}) -> f32 {
    return {% if W == 4 %}(x.x + x.y) + (x.z + x.w){% else %}x{% endif %};
}
{%- macro dot(result, mine, at_mine, kept, other, at_other) %}
        var {{ result }} = {{ X }}(0.0);
        {% if WHOLE %}
        {% for c in range(N) %}
        {{ result }} = fma({{ kept }}{{ c }}, {{ X }}({{ other }}[{{ at_other }} + {{ c }}u]), {{ result }});
        {% endfor %}
        {% else %}
        for (var c = 0u; c < d; c += {{ U }}u) {
            {% for c in range(U) %}
            {{ result }} = fma({{ X }}({{ mine }}[{{ at_mine }} + c + {{ c }}u]), {{ X }}({{ other }}[{{ at_other }} + c + {{ c }}u]), {{ result }});
            {% endfor %}
        }
        {% endif %}
{%- endmacro %}
{%- macro part(c) %}{% if WHOLE %}{{ c }}u{% else %}min(first + {{ c }}u, d - 1u){% endif %}{% endmacro %}

@compute @workgroup_size({{ WG }})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    // what all invocations share is computed without lid, so that a driver can tell
    let id = wid.x + wid.y * groups.x;
    let tokens = {{ "p.tk" if KEYS else "p.tq" }};
    let blocks = (tokens + {{ WG - 1 }}u) / {{ WG }}u;
    let d = p.d / {{ W }}u;
    let parts = {% if DELTA %}1u{% else %}(d + {{ N - 1 }}u) / {{ N }}u{% endif %};
    let own = id % blocks * {{ WG }}u + lid;
    let first = id / blocks % parts * {{ N }}u;
    let head = id / blocks / parts % p.heads;
    let b = id / blocks / parts / p.heads;
    if (own >= tokens || b >= p.batch) {
        return;
    }
    let row = p.heads * d;
    let at_q = b * p.tq * row + head * d;
    let at_k = b * p.tk * row + head * d;
    let stats = (b * p.heads + head) * p.tq;
    let at_own = {{ "at_k" if KEYS else "at_q" }} + own * row;
    {% for c in range(N) %}
    {% if WHOLE %}
    let mine{{ c }} = {{ X }}({{ "k" if KEYS else "q" }}[at_own + {{ c }}u]);
    {% if not FORWARD %}
    let pair{{ c }} = {{ X }}({{ "v" if KEYS else "grad" }}[at_own + {{ c }}u]);
    {% endif %}
    {% endif %}
    {% if not DELTA %}
    var acc{{ c }} = {{ X }}(0.0);
    {% endif %}
    {% if KEYS %}
    var acc_v{{ c }} = {{ X }}(0.0);
    {% endif %}
    {% endfor %}
{% if KEYS %}
    for (var i = {{ "own" if CAUSAL else "0u" }}; i < p.tq; i++) {
        let at = at_q + i * row;
        {{ dot("s", "k", "at_own", "mine", "q", "at") }}
        {{ dot("dp", "v", "at_own", "pair", "grad", "at") }}
        let weight = exp(sum(s) * p.scale - lse[stats + i]);
        let ds = weight * (sum(dp) - delta[stats + i]) * p.scale;
        {% for c in range(N) %}
        acc{{ c }} = fma({{ X }}(ds), {{ X }}(q[at + {{ part(c) }}]), acc{{ c }});
        acc_v{{ c }} = fma({{ X }}(weight), {{ X }}(grad[at + {{ part(c) }}]), acc_v{{ c }});
        {% endfor %}
    }
{% else %}
    {% if FORWARD %}
    // finite stand-in for -infinity, which fast math may not know
    var top = -3.0e38;
    var total = 0.0;
    {% else %}
    let own_lse = lse[stats + own];
    {% if DELTA %}
    var total = 0.0;
    {% else %}
    let own_delta = delta[stats + own];
    {% endif %}
    {% endif %}
    for (var j = 0u; j < {{ "min(own + 1u, p.tk)" if CAUSAL else "p.tk" }}; j++) {
        let at = at_k + j * row;
        {{ dot("s4", "q", "at_own", "mine", "k", "at") }}
        let s = sum(s4) * p.scale;
        {% if FORWARD %}
        if (s > top) {
            let shrink = exp(top - s);
            total *= shrink;
            {% for c in range(N) %}
            acc{{ c }} *= shrink;
            {% endfor %}
            top = s;
        }
        let weight = exp(s - top);
        total += weight;
        {% for c in range(N) %}
        acc{{ c }} = fma({{ X }}(weight), {{ X }}(v[at + {{ part(c) }}]), acc{{ c }});
        {% endfor %}
        {% else %}
        {{ dot("dp", "grad", "at_own", "pair", "v", "at") }}
        {% if DELTA %}
        total = fma(exp(s - own_lse), sum(dp), total);
        {% else %}
        let ds = exp(s - own_lse) * (sum(dp) - own_delta) * p.scale;
        {% for c in range(N) %}
        acc{{ c }} = fma({{ X }}(ds), {{ X }}(k[at + {{ part(c) }}]), acc{{ c }});
        {% endfor %}
        {% endif %}
        {% endif %}
    }
    {% if FORWARD %}
    if (first == 0u) {
        lse[stats + own] = top + log(total);
    }
    {% elif DELTA %}
    delta[stats + own] = total;
    {% endif %}
{% endif %}
{% if not DELTA %}
    {% for c in range(N) %}
    {% if not WHOLE %}
    if (first + {{ c }}u < d) {
    {% endif %}
    out[at_own + first + {{ c }}u] = {{ vec(W, T) }}(acc{{ c }}{% if FORWARD %} / total{% endif %});
    {% if KEYS %}
    out_v[at_own + first + {{ c }}u] = {{ vec(W, T) }}(acc_v{{ c }});
    {% endif %}
    {% if not WHOLE %}
    }
    {% endif %}
    {% endfor %}
{% endif %}
}
