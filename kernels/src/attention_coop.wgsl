// Attention on cooperative matrices, pass {{ PASS }}: formulas, shapes and the numeric note of attention.wgsl, f16 with f32 sums.
// A workgroup holds BR tokens of a head, its rows ({{ "keys" if PASS == "keys" else "queries" }}), against BC tokens at a time, its columns:
//   scores = rows columns^T, by matrices  ->  p and ds from them, by invocations  ->  sums += p or ds times columns, by matrices
// A head's channels are padded to DP with zeros; what is past the last token is zeros too, and columns there get the weight 0.
// SM x SN subgroups share rows of tiles and columns of tiles: each has FM rows of tiles, and of them FC columns of the scores
// and FO of the sums. Rows stay in matrices from the start; columns, scores and weights go through workgroup memory.
// `lse` is a pass of its own, so that no sum is ever rescaled: single elements of a matrix cannot be reached.
// Dispatch: one workgroup per BR rows of a head, tokens fastest, folded.
// Numeric note: p and ds are rounded to f16, LIFT times too large, since each of 4096 keys may have p = 0.0002 and f16 is
// coarse below 0.00006. |ds| is below the range of dp / 4: ds overflows where dp spans 4000, and with it dq and dk, which the
// loss scale's check for finite gradients sees. In dq, what rounding takes from a ds goes to the row's next one: their sum stays 0.
{% from "vec" import vec %}
{% set KEYS = PASS == "keys" %}
{% set LSE = PASS == "lse" %}
{% set FORWARD = PASS == "forward" %}
{% set DELTA = PASS == "delta" %}
{% set QUERIES = PASS == "queries" %}
{% set BOTH = not (LSE or FORWARD) %}
{% set SUMS = {"lse": [], "forward": ["sum"], "delta": [], "queries": ["sum"], "keys": ["sum", "sum_v"]}[PASS] %}
{% set ROWS = ["k", "v"] if KEYS else ["q", "grad"] %}
{% set COLUMNS = ["q", "grad"] if KEYS else ["k", "v"] %}
{% set BR = SM * FM * SIDE %}
{% set PARTS = WG // BR %}
{% set FC = BC // (SN * SIDE) %}
{% set FO = DP // (SN * SIDE) %}
// padded, so that rows start in different banks, 16 bytes aligned
{% set LD = DP + 8 %}
{% set LP = BC + 8 %}
{% set LS = BC + 4 %}
{% set WEIGHTS = 2 * BC * LD %}
{% set USED = BC * LD if LSE else WEIGHTS + SUMS|length * BR * LP %}
{% set MAT = "coop_mat" ~ SIDE ~ "x" ~ SIDE %}
{% set IS = range(FM) %}
{% set TILES = range(1 if LSE else 2) %}
{% set KS = range(DP // SIDE) %}
{% set LIFT = 64 %}
// pairs of f16 as they lie in memory, which no compiler takes apart before they are there
{% set IN = "vec2<u32>" if V == 4 else "f16" %}
{% from "attention_tiles" import declare, fetch, stage, product, weigh, add, write %}
@group(0) @binding(0) var<storage, read> q: array<{{ IN }}>;
@group(0) @binding(1) var<storage, read> k: array<{{ IN }}>;
@group(0) @binding(2) var<storage, read> v: array<{{ IN }}>;
@group(0) @binding(3) var<storage, {{ "read_write" if LSE else "read" }}> lse: array<f32>;
{% if FORWARD %}
@group(0) @binding(4) var<storage, read_write> out: array<{{ vec(V, "f16") }}>;
{% elif BOTH %}
@group(0) @binding(4) var<storage, read> grad: array<{{ IN }}>;
@group(0) @binding(5) var<storage, {{ "read_write" if DELTA else "read" }}> delta: array<f32>;
{% if not DELTA %}
@group(0) @binding(6) var<storage, read_write> out: array<{{ vec(V, "f16") }}>;
{% endif %}
{% if KEYS %}
@group(0) @binding(7) var<storage, read_write> out_v: array<{{ vec(V, "f16") }}>;
{% endif %}
{% endif %}

// rows at the start; then two tiles of columns, [BC, DP] each, and of weights, [BR, BC]
var<workgroup> tiles: array<{{ vec(SV, "f16") }}, {{ [BR * LD, USED]|max // SV }}>;
var<workgroup> scores: array<{{ vec(SV, "f32") }}, {{ (2 if BOTH else 1) * BR * LS // SV }}>;      // q k^T and do v^T, [BR, BC]
{% if KEYS %}
var<workgroup> column_lse: array<f32, {{ BC }}>;
var<workgroup> column_delta: array<f32, {{ BC }}>;
{% elif not SUMS %}
var<workgroup> shares: array<vec2<f32>, {{ WG }}>;       // of a row, what each invocation found
{% endif %}

// finite stand-in for -infinity, which fast math may not know
const LOWEST = -3.0e38;

@compute @workgroup_size({{ WG }})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32, @builtin(subgroup_id) subgroup: u32) {
    let id = wid.x + wid.y * groups.x;
    let tokens = {{ "p.tk" if KEYS else "p.tq" }};
    let others = {{ "p.tq" if KEYS else "p.tk" }};
    let blocks = (tokens + {{ BR - 1 }}u) / {{ BR }}u;
    let first = id % blocks * {{ BR }}u;
    let head = id / blocks % p.heads;
    let b = id / blocks / p.heads;
    if (b >= p.batch) {
        return;
    }
    let width = p.heads * p.d;
    let start = b * tokens * width + head * p.d;
    let start_others = b * others * width + head * p.d;
    let stats = (b * p.heads + head) * p.tq;
    let row_of_tiles = subgroup / {{ SN }}u % {{ SM }}u * {{ FM * SIDE }}u;
    let column_of_scores = subgroup % {{ SN }}u * {{ FC * SIDE }}u;
    let column_of_sums = subgroup % {{ SN }}u * {{ FO * SIDE }}u;
    // an invocation's share of the scores: a row, or one of PARTS parts of it
    let row = lid % {{ BR }}u;
    let part = lid / {{ BR }}u * {{ BC // PARTS }}u;
    let own = first + row;

    {% for tile in range(2 if BOTH else 1) %}
    {{ declare("rows" ~ tile, BR) }}
    {{ fetch(ROWS[tile], "rows" ~ tile, BR, "first", "tokens", "start") }}
    {% endfor %}
    {% for tile in range(2 if BOTH else 1) %}
    {{ stage(0, "rows" ~ tile, BR) }}
    workgroupBarrier();
    {% for i in IS %}
    {% for c in KS %}
    let row{{ tile }}_{{ i }}_{{ c }} = coopLoadT<{{ MAT }}<f16, A>>(&tiles[((row_of_tiles + {{ i * SIDE }}u) * {{ LD }}u + {{ c * SIDE }}u) / {{ SV }}u], {{ LD // SV }}u);
    {% endfor %}
    {% endfor %}
    workgroupBarrier();
    {% endfor %}
    {% for sum in SUMS %}
    {% for i in IS %}
    {% for n in range(FO) %}
    var {{ sum }}_{{ i }}_{{ n }} = {{ MAT }}<f32, C>();
    {% endfor %}
    {% endfor %}
    {% endfor %}
    {% if LSE %}
    var top = LOWEST;
    {% elif not KEYS %}
    let own_lse = lse[stats + min(own, tokens - 1u)];
    {% if QUERIES %}
    let own_delta = delta[stats + min(own, tokens - 1u)];
    var carry = vec4<f32>();
    {% endif %}
    {% endif %}
    {% if not SUMS %}
    var total = 0.0;
    {% endif %}
    {% if DELTA %}
    var weights = 0.0;
    {% endif %}

    // the tokens of the next turn are on their way while those of this one are worked on
    let first_column = {{ "first" if KEYS and CAUSAL else "0u" }};
    {% for tile in TILES %}
    {{ declare(tile, BC) }}
    {{ fetch(COLUMNS[tile], tile, BC, "first_column", "others", "start_others") }}
    {% endfor %}
    {% if KEYS %}
    var next_lse = lse[stats + min(first_column + lid % {{ BC }}u, others - 1u)];
    var next_delta = delta[stats + min(first_column + lid % {{ BC }}u, others - 1u)];
    {% endif %}
    for (var j = first_column; j < {{ "min(first + " ~ BR ~ "u, others)" if CAUSAL and not KEYS else "others" }}; j += {{ BC }}u) {
        {% for tile in TILES %}
        {{ stage(tile * BC * LD, tile, BC) }}
        {% endfor %}
        {% if KEYS %}
        if (lid < {{ BC }}u) {
            column_lse[lid] = next_lse;
            column_delta[lid] = next_delta;
        }
        {% endif %}
        workgroupBarrier();
        {% for tile in TILES %}
        {{ fetch(COLUMNS[tile], tile, BC, "j + " ~ BC ~ "u", "others", "start_others") }}
        {% endfor %}
        {% if KEYS %}
        next_lse = lse[stats + min(j + {{ BC }}u + lid % {{ BC }}u, others - 1u)];
        next_delta = delta[stats + min(j + {{ BC }}u + lid % {{ BC }}u, others - 1u)];
        {% endif %}
        {{ product(0) }}
        {% if BOTH %}
        {{ product(1) }}
        {% endif %}
        workgroupBarrier();
        {{ weigh() }}
        {% if SUMS %}
        workgroupBarrier();
        {{ add("sum", 0, 1 if FORWARD else 0) }}
        {% if KEYS %}
        {{ add("sum_v", 1, 1) }}
        {% endif %}
        workgroupBarrier();
        {% endif %}
    }
    {% if not SUMS %}
    shares[lid] = {{ "vec2<f32>(top, total)" if LSE else "vec2<f32>(weights, total)" }};
    workgroupBarrier();
    if (lid < {{ BR }}u && own < tokens) {
        for (var i = lid + {{ BR }}u; i < {{ WG }}u; i += {{ BR }}u) {
            let share = shares[i];
            {% if LSE %}
            let most = max(top, share.x);
            total = total * exp(top - most) + share.y * exp(share.x - most);
            top = most;
            {% else %}
            weights += share.x;
            total += share.y;
            {% endif %}
        }
        {{ "lse[stats + own] = top + log(total)" if LSE else "delta[stats + own] = total / weights" }};
    }
    {% endif %}
    {% if SUMS %}
    {{ write("out", "sum", "(1.0 / " ~ LIFT ~ ".0)" if FORWARD else "(p.scale / " ~ LIFT ~ ".0)") }}
    {% endif %}
    {% if KEYS %}
    {{ write("out_v", "sum_v", "(1.0 / " ~ LIFT ~ ".0)") }}
    {% endif %}
}
