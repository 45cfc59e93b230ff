// Attention without a score matrix in memory, pass {{ PASS }}.
//
//   s[i, j] = scale q[i] . k[j]       p = softmax over j (j <= i where CAUSAL)       o[i] = sum_j p[i, j] v[j]
//   forward: o, and lse[i] = log sum_j exp s[i, j], by the online softmax (arXiv 1805.02867, algorithm 3)
//   delta:   delta[i] = sum_j p[i, j] dp[i, j] / sum_j p[i, j],    dp = do[i] . v[j],    p = exp(s - lse)
//   queries: dq[i] = scale sum_j ds[i, j] k[j],   ds = p (dp - delta[i])
//   keys:    dk[j] = scale sum_i ds[i, j] q[i],   dv[j] = sum_i p[i, j] do[i]
// q, o, do [b, tq, h d]; k, v [b, tk, h d]; lse, delta f32 [b, h, tq].
// Dispatch: one workgroup per {{ WG * Q }} {{ "keys" if PASS == "keys" else "queries" }} of a head and part of it, tokens fastest, folded. An invocation
// works on Q of these tokens, which share what it loads; the tokens of a workgroup share sample and head.
// A head has d / W vectors. An invocation keeps N of them per token in registers, by name, since compilers turn an
// indexed private array into a tree of branches. WHOLE: N is all of them. Otherwise each part of N vectors computes the
// scores anew from memory, U vectors per iteration (Mesa before 23 ends all loops of an invocation after 65,535
// iterations in total).
// Numeric note: f32. sum_j ds[i, j] is 0; what it misses is multiplied with the mean of the keys, which may be far larger than
// what tells keys apart. So delta is not do[i] . o[i], since o may have been rounded to f16, and it is divided by the sum of
// the very p it was made with, which is not 1 because lse is rounded.
{% from "vec" import vec %}
{% set X = vec(W, "f32") %}
{% set KEYS = PASS == "keys" %}
{% set FORWARD = PASS == "forward" %}
{% set DELTA = PASS == "delta" %}
{% set TOKENS = range(Q) %}
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

// finite stand-in for -infinity, which fast math may not know
const LOWEST = -3.0e38;

fn sum(x: {{ X }}) -> f32 {
    return {% if W == 4 %}(x.x + x.y) + (x.z + x.w){% else %}x{% endif %};
}
{%- macro part(c) %}{% if WHOLE %}{{ c }}u{% else %}min(first + {{ c }}u, d - 1u){% endif %}{% endmacro %}

// result[t] = kept[t] . other[at]; with WHOLE the vectors of other stay known by name
{%- macro dot(result, mine, kept, other) %}
        {% for t in TOKENS %}
        var {{ result }}{{ t }} = {{ X }}(0.0);
        {% endfor %}
        {% if WHOLE %}
        {% for c in range(N) %}
        let {{ other }}{{ c }} = {{ X }}({{ other }}[at + {{ c }}u]);
        {% for t in TOKENS %}
        {{ result }}{{ t }} = fma({{ kept }}{{ t }}_{{ c }}, {{ other }}{{ c }}, {{ result }}{{ t }});
        {% endfor %}
        {% endfor %}
        {% else %}
        for (var c = 0u; c < d; c += {{ U }}u) {
            {% for c in range(U) %}
            let {{ other }}{{ c }} = {{ X }}({{ other }}[at + c + {{ c }}u]);
            {% for t in TOKENS %}
            {{ result }}{{ t }} = fma({{ X }}({{ mine }}[at_own{{ t }} + c + {{ c }}u]), {{ other }}{{ c }}, {{ result }}{{ t }});
            {% endfor %}
            {% endfor %}
        }
        {% endif %}
{%- endmacro %}

// the score of token t, where it counts
{%- macro score(product, counts) %}{% if CAUSAL %}select(LOWEST, sum({{ product }}) * p.scale, {{ counts }}){% else %}sum({{ product }}) * p.scale{% endif %}{% endmacro %}

// acc[t] += weight[t] other[at]
{%- macro add(acc, weight, other, known) %}
        {% for c in range(N) %}
        {% if not (WHOLE and known) %}
        let {{ other }}{{ c }} = {{ X }}({{ other }}[at + {{ part(c) }}]);
        {% endif %}
        {% for t in TOKENS %}
        {{ acc }}{{ t }}_{{ c }} = fma({{ X }}({{ weight }}{{ t }}), {{ other }}{{ c }}, {{ acc }}{{ t }}_{{ c }});
        {% endfor %}
        {% endfor %}
{%- endmacro %}

@compute @workgroup_size({{ WG }})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    // what all invocations share is computed without lid, so that a driver can tell
    let id = wid.x + wid.y * groups.x;
    let tokens = {{ "p.tk" if KEYS else "p.tq" }};
    let blocks = (tokens + {{ WG * Q - 1 }}u) / {{ WG * Q }}u;
    let d = p.d / {{ W }}u;
    let parts = {% if DELTA %}1u{% else %}(d + {{ N - 1 }}u) / {{ N }}u{% endif %};
    let block = id % blocks * {{ WG * Q }}u;
    let first = id / blocks % parts * {{ N }}u;
    let head = id / blocks / parts % p.heads;
    let b = id / blocks / parts / p.heads;
    if (b >= p.batch) {
        return;
    }
    let row = p.heads * d;
    let at_q = b * p.tq * row + head * d;
    let at_k = b * p.tk * row + head * d;
    let stats = (b * p.heads + head) * p.tq;
    {% for t in TOKENS %}
    // tokens past the end repeat the last one and are not written
    let own{{ t }} = min(block + {{ t * WG }}u + lid, tokens - 1u);
    let at_own{{ t }} = {{ "at_k" if KEYS else "at_q" }} + own{{ t }} * row;
    {% for c in range(N) %}
    {% if WHOLE %}
    let mine{{ t }}_{{ c }} = {{ X }}({{ "k" if KEYS else "q" }}[at_own{{ t }} + {{ c }}u]);
    {% if not FORWARD %}
    let pair{{ t }}_{{ c }} = {{ X }}({{ "v" if KEYS else "grad" }}[at_own{{ t }} + {{ c }}u]);
    {% endif %}
    {% endif %}
    {% if not DELTA %}
    var acc{{ t }}_{{ c }} = {{ X }}(0.0);
    {% endif %}
    {% if KEYS %}
    var acc_v{{ t }}_{{ c }} = {{ X }}(0.0);
    {% endif %}
    {% endfor %}
    {% if FORWARD %}
    var top{{ t }} = LOWEST;
    {% elif not KEYS %}
    let lse{{ t }} = lse[stats + own{{ t }}];
    {% if not DELTA %}
    let delta{{ t }} = delta[stats + own{{ t }}];
    {% endif %}
    {% endif %}
    {% if FORWARD or DELTA %}
    var total{{ t }} = 0.0;
    {% endif %}
    {% if DELTA %}
    var weights{{ t }} = 0.0;
    {% endif %}
    {% endfor %}
{% if KEYS %}
    for (var i = {{ "block" if CAUSAL else "0u" }}; i < p.tq; i++) {
        let at = at_q + i * row;
        let lse_i = lse[stats + i];
        let delta_i = delta[stats + i];
        {{ dot("s", "k", "mine", "q") }}
        {{ dot("dp", "v", "pair", "grad") }}
        {% for t in TOKENS %}
        let weight{{ t }} = exp({{ score("s" ~ t, "own" ~ t ~ " <= i") }} - lse_i);
        let ds{{ t }} = weight{{ t }} * (sum(dp{{ t }}) - delta_i) * p.scale;
        {% endfor %}
        {{ add("acc", "ds", "q", true) }}
        {{ add("acc_v", "weight", "grad", true) }}
    }
{% else %}
    for (var j = 0u; j < {% if CAUSAL %}min(block + {{ WG * Q }}u, p.tk){% else %}p.tk{% endif %}; j++) {
        let at = at_k + j * row;
        {{ dot("product", "q", "mine", "k") }}
        {% if not FORWARD %}
        {{ dot("dp", "grad", "pair", "v") }}
        {% endif %}
        {% for t in TOKENS %}
        let s{{ t }} = {{ score("product" ~ t, "j <= own" ~ t) }};
        {% if FORWARD %}
        if (s{{ t }} > top{{ t }}) {
            let shrink = exp(top{{ t }} - s{{ t }});
            total{{ t }} *= shrink;
            {% for c in range(N) %}
            acc{{ t }}_{{ c }} *= shrink;
            {% endfor %}
            top{{ t }} = s{{ t }};
        }
        let weight{{ t }} = exp(s{{ t }} - top{{ t }});
        total{{ t }} += weight{{ t }};
        {% elif DELTA %}
        let weight{{ t }} = exp(s{{ t }} - lse{{ t }});
        weights{{ t }} += weight{{ t }};
        total{{ t }} = fma(weight{{ t }}, sum(dp{{ t }}), total{{ t }});
        {% else %}
        let ds{{ t }} = exp(s{{ t }} - lse{{ t }}) * (sum(dp{{ t }}) - delta{{ t }}) * p.scale;
        {% endif %}
        {% endfor %}
        {% if FORWARD %}
        {{ add("acc", "weight", "v", false) }}
        {% elif not DELTA %}
        {{ add("acc", "ds", "k", true) }}
        {% endif %}
    }
{% endif %}
    {% for t in TOKENS %}
    if (block + {{ t * WG }}u + lid < tokens) {
        {% if FORWARD %}
        if (first == 0u) {
            lse[stats + own{{ t }}] = top{{ t }} + log(total{{ t }});
        }
        {% elif DELTA %}
        delta[stats + own{{ t }}] = total{{ t }} / weights{{ t }};
        {% endif %}
        {% if not DELTA %}
        {% for c in range(N) %}
        {% if not WHOLE %}
        if (first + {{ c }}u < d) {
        {% endif %}
        out[at_own{{ t }} + first + {{ c }}u] = {{ vec(W, T) }}(acc{{ t }}_{{ c }}{% if FORWARD %} / total{{ t }}{% endif %});
        {% if KEYS %}
        out_v[at_own{{ t }} + first + {{ c }}u] = {{ vec(W, T) }}(acc_v{{ t }}_{{ c }});
        {% endif %}
        {% if not WHOLE %}
        }
        {% endif %}
        {% endfor %}
        {% endif %}
    }
    {% endfor %}
}
