{#- What attention_coop.wgsl does with the tiles of a workgroup; names are explained there. #}
{%- macro put(at, value) %}
        {% if SV == 4 %}
        tiles[({{ at }}) / 4u] = {{ value }};
        {% else %}
        {% for i in range(4) %}
        tiles[{{ at }} + {{ i }}u] = {{ value }}[{{ i }}];
        {% endfor %}
        {% endif %}
{%- endmacro %}

{%- macro quad(at) %}{% if SV == 4 %}scores[({{ at }}) / 4u]{% else %}vec4<f32>({% for i in range(4) %}scores[{{ at }} + {{ i }}u]{{ ", " if not loop.last }}{% endfor %}){% endif %}{% endmacro %}

// what an invocation fetches of `count` tokens: some vectors of four, and whether they are within the tensor
{%- macro declare(to, count) %}
        {% for i in range((count * DP // 4 + WG - 1) // WG) %}
        var fetched{{ to }}_{{ i }} = {{ "vec2<u32>" if V == 4 else "vec4<f16>" }}();
        var there{{ to }}_{{ i }} = false;
        {% endfor %}
{%- endmacro %}

// Tokens from `first` on into registers. Loads are never skipped: a branch round each would have them wait for one another.
{%- macro fetch(name, to, count, first, tokens, start) %}
        {% for i in range((count * DP // 4 + WG - 1) // WG) %}
        {
            let x = lid + {{ i * WG }}u;
            let token = {{ first }} + x / {{ DP // 4 }}u;
            let c = x % {{ DP // 4 }}u * 4u;
            let at = {{ start }} + token * width + c;
            there{{ to }}_{{ i }} = token < {{ tokens }} && c < p.d;
            {% if V == 4 %}
            fetched{{ to }}_{{ i }} = {{ name }}[select(0u, at, there{{ to }}_{{ i }}) / 4u];
            {% else %}
            fetched{{ to }}_{{ i }} = vec4<f16>();
            for (var e = 0u; e < select(0u, min(p.d - min(c, p.d), 4u), there{{ to }}_{{ i }}); e++) {
                fetched{{ to }}_{{ i }}[e] = {{ name }}[at + e];
            }
            {% endif %}
        }
        {% endfor %}
{%- endmacro %}

// and from there into workgroup memory
{%- macro stage(to, from, count) %}
        {% for i in range((count * DP // 4 + WG - 1) // WG) %}
        {
            let x = lid + {{ i * WG }}u;
            {% if V == 4 %}
            let pairs = select(vec2<u32>(), fetched{{ from }}_{{ i }}, there{{ from }}_{{ i }});
            let values = vec4<f16>(vec4<f32>(unpack2x16float(pairs.x), unpack2x16float(pairs.y)));
            {% else %}
            let values = fetched{{ from }}_{{ i }};
            {% endif %}
            {% if (i + 1) * WG > count * DP // 4 %}
            if (x < {{ count * DP // 4 }}u)
            {% endif %}
            {
                {{ put(to ~ "u + x / " ~ DP // 4 ~ "u * " ~ LD ~ "u + x % " ~ DP // 4 ~ "u * 4u", "values") }}
            }
        }
        {% endfor %}
{%- endmacro %}

// scores[tile] = rows columns^T
{%- macro product(tile) %}
        {% for j in range(FC) %}
        {% for i in IS %}
        var s{{ tile }}_{{ i }}_{{ j }} = {{ MAT }}<f32, C>();
        {% endfor %}
        {% endfor %}
        {% for c in KS %}
        {% for j in range(FC) %}
        let column{{ tile }}_{{ c }}_{{ j }} = coopLoad<{{ MAT }}<f16, B>>(&tiles[({{ tile * BC * LD }}u + (column_of_scores + {{ j * SIDE }}u) * {{ LD }}u + {{ c * SIDE }}u) / {{ SV }}u], {{ LD // SV }}u);
        {% for i in IS %}
        s{{ tile }}_{{ i }}_{{ j }} = coopMultiplyAdd(row{{ tile }}_{{ i }}_{{ c }}, column{{ tile }}_{{ c }}_{{ j }}, s{{ tile }}_{{ i }}_{{ j }});
        {% endfor %}
        {% endfor %}
        {% endfor %}
        {% for j in range(FC) %}
        {% for i in IS %}
        coopStoreT(s{{ tile }}_{{ i }}_{{ j }}, &scores[({{ tile * BR * LS }}u + (row_of_tiles + {{ i * SIDE }}u) * {{ LS }}u + column_of_scores + {{ j * SIDE }}u) / {{ SV }}u], {{ LS // SV }}u);
        {% endfor %}
        {% endfor %}
{%- endmacro %}

// from an invocation's share of the scores to weights, or to what they add up to
{%- macro weigh() %}
        for (var c = part; c < part + {{ BC // PARTS }}u; c += 4u) {
            let column = j + c + vec4<u32>(0u, 1u, 2u, 3u);
            let there = (column < vec4<u32>(others)){% if CAUSAL %} & (column {{ ">=" if KEYS else "<=" }} vec4<u32>(own)){% endif %};
            let s = {{ quad("row * " ~ LS ~ "u + c") }} * p.scale;
            {% if LSE %}
            let seen = select(vec4<f32>(LOWEST), s, there);
            let most = max(max(max(seen.x, seen.y), max(seen.z, seen.w)), top);
            let weight = select(vec4<f32>(), exp(s - most), there);
            total = total * exp(top - most) + dot(weight, vec4<f32>(1.0));
            top = most;
            {% else %}
            {% if KEYS %}
            let own_lse = vec4<f32>(column_lse[c], column_lse[c + 1u], column_lse[c + 2u], column_lse[c + 3u]);
            let own_delta = vec4<f32>(column_delta[c], column_delta[c + 1u], column_delta[c + 2u], column_delta[c + 3u]);
            {% endif %}
            let weight = select(vec4<f32>(), exp(s - own_lse){% if SUMS %} * {{ LIFT }}.0{% endif %}, there);
            {% if BOTH %}
            let dp = {{ quad(BR * LS ~ "u + row * " ~ LS ~ "u + c") }};
            {% endif %}
            {% if DELTA %}
            weights += dot(weight, vec4<f32>(1.0));
            total += dot(weight, dp);
            {% else %}
            let to = {{ WEIGHTS }}u + row * {{ LP }}u + c;
            {% if QUERIES %}
            let exact = select(vec4<f32>(), weight * (dp - own_delta) + carry, there);
            // rounded to the bits of f16 by hand, about half up: compilers take a conversion there and back for nothing
            let ds = bitcast<vec4<f32>>(bitcast<vec4<u32>>(exact * 1.00037) & vec4<u32>(0xffffe000u));
            carry = exact - ds;
            {% endif %}
            let first_weight = vec4<f16>({{ {"forward": "weight", "queries": "ds", "keys": "weight * (dp - own_delta)"}[PASS] }});
            {{ put("to", "first_weight") }}
            {% if KEYS %}
            let second_weight = vec4<f16>(weight);
            {{ put("to + " ~ BR * LP ~ "u", "second_weight") }}
            {% endif %}
            {% endif %}
            {% endif %}
        }
{%- endmacro %}

// sum += weights columns
{%- macro add(sum, weights, tile) %}
        {% for c in range(0, BC, SIDE) %}
        {
            {% for i in IS %}
            let weight{{ i }} = coopLoadT<{{ MAT }}<f16, A>>(&tiles[({{ WEIGHTS + weights * BR * LP + c }}u + (row_of_tiles + {{ i * SIDE }}u) * {{ LP }}u) / {{ SV }}u], {{ LP // SV }}u);
            {% endfor %}
            {% for n in range(FO) %}
            let column{{ n }} = coopLoadT<{{ MAT }}<f16, B>>(&tiles[({{ tile * BC * LD + c * LD + n * SIDE }}u + column_of_sums) / {{ SV }}u], {{ LD // SV }}u);
            {% for i in IS %}
            {{ sum }}_{{ i }}_{{ n }} = coopMultiplyAdd(weight{{ i }}, column{{ n }}, {{ sum }}_{{ i }}_{{ n }});
            {% endfor %}
            {% endfor %}
        }
        {% endfor %}
{%- endmacro %}

// out = factor sum, FC columns of tiles of each subgroup at a time through the scores
{%- macro write(out, sum, factor) %}
    {% for n in range(0, FO, FC) %}
    {% set FEW = [FC, FO - n]|min %}
    {% for j in range(FEW) %}
    {% for i in IS %}
    coopStoreT({{ sum }}_{{ i }}_{{ n + j }}, &scores[((row_of_tiles + {{ i * SIDE }}u) * {{ LS }}u + column_of_scores + {{ j * SIDE }}u) / {{ SV }}u], {{ LS // SV }}u);
    {% endfor %}
    {% endfor %}
    workgroupBarrier();
    for (var x = lid; x < {{ BR * SN * FEW * SIDE // 4 }}u; x += {{ WG }}u) {
        let token = x / {{ SN * FEW * SIDE // 4 }}u;
        let owner = x / {{ FEW * SIDE // 4 }}u % {{ SN }}u;
        let within = x % {{ FEW * SIDE // 4 }}u * 4u;
        let c = owner * {{ FO * SIDE }}u + {{ n * SIDE }}u + within;
        if (first + token < tokens) {
            let values = vec4<f16>({{ quad("token * " ~ LS ~ "u + owner * " ~ FC * SIDE ~ "u + within") }} * {{ factor }});
            let at = start + (first + token) * width + c;
            {% if V == 4 %}
            if (c < p.d) {
                {{ out }}[at / 4u] = values;
            }
            {% else %}
            for (var i = 0u; i < min(p.d - min(c, p.d), 4u); i++) {
                {{ out }}[at + i] = values[i];
            }
            {% endif %}
        }
    }
    workgroupBarrier();
    {% endfor %}
{%- endmacro %}
