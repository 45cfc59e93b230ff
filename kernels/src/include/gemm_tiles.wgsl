{#- How gemm_coop.wgsl moves eight neighbouring values, `width` at once: from memory to registers, to workgroup memory, into matrices. #}
// what is fetched: pairs of f16 as they lie in memory, which no compiler takes apart before they are there; or halves
{%- macro declare(name, width, type) %}
        {% if width == 8 and type == "f16" %}
        var {{ name }} = vec4<u32>();
        {% else %}
        var {{ name }}_low = vec4<{{ type }}>();
        var {{ name }}_high = vec4<{{ type }}>();
        {% endif %}
{%- endmacro %}

// `there`: whether it begins within the tensor; `left`: how many values of the line there are from its start on. Loads of
// eight are never skipped: a branch round each would have them wait for one another.
{%- macro fetch(name, from, at, there, left, width, type) %}
        {% if width == 8 and type == "f16" %}
        {{ name }} = {{ from }}[select(0u, {{ at }}, {{ there }}) / 8u];
        {% elif width == 8 %}
        {{ name }}_low = {{ from }}[select(0u, {{ at }}, {{ there }}) / 8u * 2u];
        {{ name }}_high = {{ from }}[select(0u, {{ at }}, {{ there }}) / 8u * 2u + 1u];
        {% else %}
        {{ name }}_low = vec4<{{ type }}>();
        {{ name }}_high = vec4<{{ type }}>();
        if ({{ there }}) {
            for (var i = 0u; i < min({{ left }}, 4u); i++) {
                {{ name }}_low[i] = {{ from }}[{{ at }} + i];
            }
            for (var i = 4u; i < min({{ left }}, 8u); i++) {
                {{ name }}_high[i - 4u] = {{ from }}[{{ at }} + i];
            }
        }
        {% endif %}
{%- endmacro %}

{%- macro store(at, name, there, width, type) %}
            {% if width == 8 and type == "f16" %}
            let pairs = select(vec4<u32>(), {{ name }}, {{ there }});
            let low = vec4<f16>(vec4<f32>(unpack2x16float(pairs.x), unpack2x16float(pairs.y)));
            let high = vec4<f16>(vec4<f32>(unpack2x16float(pairs.z), unpack2x16float(pairs.w)));
            {% else %}
            let low = vec4<f16>(select(vec4<{{ type }}>(), {{ name }}_low, {{ there }}));
            let high = vec4<f16>(select(vec4<{{ type }}>(), {{ name }}_high, {{ there }}));
            {% endif %}
            {% if SV == 4 %}
            tiles[({{ at }}) / 8u * 2u] = low;
            tiles[({{ at }}) / 8u * 2u + 1u] = high;
            {% else %}
            {% for i in range(4) %}
            tiles[{{ at }} + {{ i }}u] = low[{{ i }}];
            tiles[{{ at }} + {{ i + 4 }}u] = high[{{ i }}];
            {% endfor %}
            {% endif %}
{%- endmacro %}

// of rows `line` apart in workgroup memory
{%- macro matrix(role, at, line, transposed) -%}
    coopLoad{{ "" if transposed else "T" }}<{{ MAT }}<f16, {{ role }}>>(&tiles[({{ at }}) / {{ SV }}u], {{ line // SV }}u)
{%- endmacro %}
