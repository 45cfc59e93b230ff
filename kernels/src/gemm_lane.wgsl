// GEMM for CPU adapters: RR rows x CC columns per invocation in registers, no workgroup memory, no barrier.
// The 8 invocations of a workgroup lie over rows: each reads rows of A of its own, and all share every value of B, which
// a driver that sees so loads once as a scalar. A vector of A serves CC columns, a scalar of B 8 RR rows.
// Dispatch: one workgroup of 8 invocations per 8 RR rows x CC columns, columns fastest, folded.
// Numeric note: f32 accumulation in order of k, fused multiply-add.
{% include "gemm_io" %}
{% from "vec" import vec %}
{% set ROWS = range(RR) %}
{% set QUADS = range(CC // 4) %}

// acc += A[:, k .. k + width] B[k .. k + width, :] for k < count, in steps of width
{%- macro accumulate(a, b, width, count, step, guarded) %}
    for (var k = 0u; k < {{ count }} / {{ width }}u; k++) {
        {% for i in ROWS %}
        {% if guarded %}
        let {{ a }}{{ i }} = select({{ vec(width, "f32") }}(0.0), {{ vec(width, "f32") }}({{ a }}[max(from{{ i }}, 0) + i32(k)]), from{{ i }} >= 0);
        {% else %}
        let {{ a }}{{ i }} = {{ vec(width, "f32") }}({{ a }}[from{{ i }} + k]);
        {% endif %}
        {% endfor %}
        {% if NN %}
        {% for q in range(width) %}
        {% for h in QUADS %}
        {% if width == 4 %}
        let {{ b }}{{ h }}_{{ q }} = vec4<f32>({{ b }}[((k * 4u + {{ q }}u) * {{ step }} + row_b + col{{ h }}) / 4u]);
        {% else %}
        let at{{ h }} = k * {{ step }} + row_b;
        let {{ b }}{{ h }}_0 = vec4<f32>(f32({{ b }}[at{{ h }} + col{{ h }}_0]), f32({{ b }}[at{{ h }} + col{{ h }}_1]), f32({{ b }}[at{{ h }} + col{{ h }}_2]), f32({{ b }}[at{{ h }} + col{{ h }}_3]));
        {% endif %}
        {% for i in ROWS %}
        acc{{ i }}_{{ h }} = fma(vec4<f32>({{ a }}{{ i }}{% if width == 4 %}[{{ q }}]{% endif %}), {{ b }}{{ h }}_{{ q }}, acc{{ i }}_{{ h }});
        {% endfor %}
        {% endfor %}
        {% endfor %}
        {% else %}
        {% for h in QUADS %}
        {% for j in range(4) %}
        let {{ b }}{{ h }}_{{ j }} = {{ vec(width, "f32") }}({{ b }}[at_b{{ h }}_{{ j }} + k]);
        {% endfor %}
        {% for q in range(width) %}
        {% set part = "[" ~ q ~ "]" if width == 4 else "" %}
        let q{{ h }}_{{ q }} = vec4<f32>({{ b }}{{ h }}_0{{ part }}, {{ b }}{{ h }}_1{{ part }}, {{ b }}{{ h }}_2{{ part }}, {{ b }}{{ h }}_3{{ part }});
        {% for i in ROWS %}
        acc{{ i }}_{{ h }} = fma(vec4<f32>({{ a }}{{ i }}{{ part }}), q{{ h }}_{{ q }}, acc{{ i }}_{{ h }});
        {% endfor %}
        {% endfor %}
        {% endfor %}
        {% endif %}
    }
{%- endmacro %}

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let across = (p.n + {{ CC }}u - 1u) / {{ CC }}u;
    let block = wid.x + wid.y * groups.x;
    // what all invocations share is computed without lid, so that a driver can tell
    let first_row = (block / across * 8u + lid) * {{ RR }}u;
    let first_col = block % across * {{ CC }}u;
    if (first_row >= p.m || first_col >= p.n) {
        return;
    }
    let plane = block / across * {{ 8 * RR }}u / p.rows_per_plane * p.n;
    // rows and columns past the end repeat the last one; the epilogue drops them
    {% for i in ROWS %}
    let row{{ i }} = min(first_row + {{ i }}u, p.m - 1u);
    {% for h in QUADS %}
    var acc{{ i }}_{{ h }} = vec4<f32>();
    {% endfor %}
    {% if CONV %}
    let pixel{{ i }} = pixel(row{{ i }});
    {% endif %}
    {% endfor %}
    {% for h in QUADS %}
    {% if NN and (V == 4 or VE == 4) %}
    let col{{ h }} = min(first_col + {{ 4 * h }}u, p.n - 4u);
    {% endif %}
    {% for j in range(4) %}
    let col{{ h }}_{{ j }} = min(first_col + {{ 4 * h + j }}u, p.n - 1u);
    {% endfor %}
    {% endfor %}
    for (var tap = 0u; tap < p.taps; tap++) {
        {% for i in ROWS %}
        {% if CONV %}
        let from{{ i }} = source(pixel{{ i }}, tap) * i32(p.c / {{ V }}u);
        {% else %}
        let from{{ i }} = row{{ i }} * (p.c / {{ V }}u);
        {% endif %}
        {% endfor %}
        {% if NN %}
        let row_b = tap * p.n + plane * p.c;
        {% else %}
        {% for h in QUADS %}
        {% for j in range(4) %}
        let at_b{{ h }}_{{ j }} = ((plane + col{{ h }}_{{ j }}) * p.taps + tap) * (p.c / {{ V }}u);
        {% endfor %}
        {% endfor %}
        {% endif %}
        {{ accumulate("a", "b", V, "p.c", "p.taps * p.n", CONV) }}
    }
    {% if EXT and TRANSPOSED %}
    for (var tap = 0u; tap < p.taps; tap++) {
        {% for i in ROWS %}
        let from{{ i }} = source(pixel{{ i }}, tap) * i32(p.r / {{ VE }}u);
        {% endfor %}
        let row_b = tap * p.n;
        {{ accumulate("s", "u", VE, "p.r", "p.taps * p.n", true) }}
    }
    {% elif EXT %}
    {
        {% for i in ROWS %}
        let from{{ i }} = row{{ i }} * (p.r / {{ VE }}u);
        {% endfor %}
        {% if NN %}
        let row_b = 0u;
        {% else %}
        {% for h in QUADS %}
        {% for j in range(4) %}
        let at_b{{ h }}_{{ j }} = col{{ h }}_{{ j }} * (p.r / {{ VE }}u);
        {% endfor %}
        {% endfor %}
        {% endif %}
        {{ accumulate("s", "u", VE, "p.r", "p.n", false) }}
    }
    {% endif %}
    {% for i in ROWS %}
    {% for h in QUADS %}
    finish(first_row + {{ i }}u, first_col + {{ 4 * h }}u, acc{{ i }}_{{ h }});
    {% endfor %}
    {% endfor %}
}
