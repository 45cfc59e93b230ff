// GEMM on cooperative matrices: SIDE x SIDE x SIDE tiles of f16 with f32 sums, held by a subgroup together.
// A workgroup makes BM x BN of the output: SM x SN subgroups of FM x FN tiles each, BK values of k at a time through
// workgroup memory, where zeros stand for what is past an edge. The values of the next step are on their way from memory
// while those of this one are multiplied. Subgroups beyond SM SN, which there are where they come smaller than
// expected, do the same as others once more: naga does not let matrices depend on a subgroup's number.
// Dispatch: one workgroup per BM x BN, folded; in groups of GROUP rows of workgroups, rows fastest, so that those that run at
// the same time share what they read.
// Numeric note: A is rounded to f16 where it is f32; products are exact, sums f32 in an order that the device chooses.
// Tiles are unrolled by the template: naga gives drivers no hint to, and an array of tiles may spill.
{% include "gemm_io" %}
{% from "vec" import vec %}
{% set BM = SM * FM * SIDE %}
{% set BN = SN * FN * SIDE %}
// rows in workgroup memory are padded by 8, so that they start in different banks, 16 bytes aligned
{% set LA = BK + 8 %}
{% set LB = BN + 8 if NN else BK + 8 %}
{% set ROWS_B = BK if NN else BN %}
// eight neighbouring values are fetched at once: so many are a row, and so many each invocation's per step
{% set PER_ROW_A = BK // 8 %}
{% set PER_ROW_B = BN // 8 if NN else BK // 8 %}
{% set EIGHTS_A = range((BM * PER_ROW_A + WG - 1) // WG) %}
{% set EIGHTS_B = range((ROWS_B * PER_ROW_B + WG - 1) // WG) %}
{% set START_B = BM * LA %}
{% set GROUP = 8 %}
{% set MAT = "coop_mat" ~ SIDE ~ "x" ~ SIDE %}
{% set IS = range(FM) %}
{% set JS = range(FN) %}
{% set LEAVING = SIDE * FS * SIDE %}
{% from "gemm_tiles" import declare, fetch, store, matrix %}
var<workgroup> tiles: array<{{ vec(SV, "f16") }}, {{ (START_B + ROWS_B * LB) // SV }}>;   // A [BM, k], then B (NN: [k, BN], NT: [BN, k])
var<workgroup> slab: array<{{ vec(SV, "f32") }}, {{ SM * SN * LEAVING // SV }}>;          // FS tiles of sums of each subgroup, side by side

// where the rows of A begin for this tap, -1: they are zeros
{%- macro find_rows(count, shifted) %}
        {% for i in EIGHTS_A %}
        {% if shifted %}
        start_a{{ i }} = select(-1, source(pixel{{ i }}, tap) * i32({{ count }}) + i32(k_a), m{{ i }} < p.m && source(pixel{{ i }}, tap) >= 0);
        {% else %}
        start_a{{ i }} = select(-1, i32(m{{ i }} * {{ count }} + k_a), m{{ i }} < p.m);
        {% endif %}
        {% endfor %}
{%- endmacro %}

// `more`: whether there is this step at all
{%- macro fetch_step(a, b, width, type, count, taps, more) %}
        inside_a = {{ more }}k + k_a < {{ count }};
        {% for i in EIGHTS_A %}
        {{ fetch("a" ~ i, a, "u32(start_a" ~ i ~ ") + k", "inside_a && start_a" ~ i ~ " >= 0", count ~ " - k - k_a", width, type) }}
        {% endfor %}
        {% if NN %}
        {% for i in EIGHTS_B %}
        inside_b{{ i }} = {{ more }}k + row_b{{ i }} < {{ count }} && n_b < p.n;
        {{ fetch("b" ~ i, b, "((k + row_b" ~ i ~ ") * " ~ taps ~ " + tap) * p.n + n_b", "inside_b" ~ i, "p.n - n_b", width, T) }}
        {% endfor %}
        {% else %}
        {% for i in EIGHTS_B %}
        inside_b{{ i }} = {{ more }}k + k_b < {{ count }} && first_n + row_b{{ i }} < p.n;
        {{ fetch("b" ~ i, b, "start_b" ~ i ~ " + tap * " ~ count ~ " + k", "inside_b" ~ i, count ~ " - k - k_b", width, T) }}
        {% endfor %}
        {% endif %}
{%- endmacro %}

{%- macro put_step(width, type) %}
        {% for i in EIGHTS_A %}
        {% if (i + 1) * WG > BM * PER_ROW_A %}
        if (row_a{{ i }} < {{ BM }}u)
        {% endif %}
        {
            {{ store("row_a" ~ i ~ " * " ~ LA ~ "u + k_a", "a" ~ i, "inside_a && start_a" ~ i ~ " >= 0", width, type) }}
        }
        {% endfor %}
        {% for i in EIGHTS_B %}
        {% if (i + 1) * WG > ROWS_B * PER_ROW_B %}
        if (row_b{{ i }} < {{ ROWS_B }}u)
        {% endif %}
        {
            {{ store(START_B ~ "u + row_b" ~ i ~ " * " ~ LB ~ "u + column_b", "b" ~ i, "inside_b" ~ i, width, T) }}
        }
        {% endfor %}
{%- endmacro %}

{%- macro multiply() %}
        {% for kk in range(0, BK, SIDE) %}
        {
            {% for i in IS %}
            let a{{ i }} = {{ matrix("A", "(row_of_tiles + " ~ i * SIDE ~ "u) * " ~ LA ~ "u + " ~ kk ~ "u", LA, false) }};
            {% endfor %}
            {% for j in JS %}
            {% if NN %}
            let b{{ j }} = {{ matrix("B", (START_B + kk * LB + j * SIDE) ~ "u + column_of_tiles", LB, false) }};
            {% else %}
            let b{{ j }} = {{ matrix("B", (START_B + kk) ~ "u + (column_of_tiles + " ~ j * SIDE ~ "u) * " ~ LB ~ "u", LB, true) }};
            {% endif %}
            {% for i in IS %}
            sum{{ i }}_{{ j }} = coopMultiplyAdd(a{{ i }}, b{{ j }}, sum{{ i }}_{{ j }});
            {% endfor %}
            {% endfor %}
        }
        {% endfor %}
{%- endmacro %}

// sums += sum over taps of A[:, 0 .. count] B[0 .. count, :]
{%- macro accumulate(a, b, width, type, count, taps, shifted) %}
    {
        {% set MORE = "tap < " ~ taps ~ " && " if shifted else "" %}
        let k_a = lid % {{ PER_ROW_A }}u * 8u;
        {% for i in EIGHTS_A %}
        let row_a{{ i }} = lid / {{ PER_ROW_A }}u + {{ i * WG // PER_ROW_A }}u;
        let m{{ i }} = first_m + row_a{{ i }};
        var start_a{{ i }} = -1;
        {% if shifted %}
        let pixel{{ i }} = pixel(min(m{{ i }}, p.m - 1u));
        {% endif %}
        {{ declare("a" ~ i, width, type) }}
        {% endfor %}
        let column_b = lid % {{ PER_ROW_B }}u * 8u;
        let {{ "n_b = first_n + column_b" if NN else "k_b = column_b" }};
        {% for i in EIGHTS_B %}
        let row_b{{ i }} = lid / {{ PER_ROW_B }}u + {{ i * WG // PER_ROW_B }}u;
        {% if not NN %}
        let start_b{{ i }} = (first_n + row_b{{ i }}) * {{ taps }} * {{ count }} + k_b;
        {% endif %}
        var inside_b{{ i }} = false;
        {{ declare("b" ~ i, width, T) }}
        {% endfor %}
        var inside_a = false;
        var tap = 0u;
        var k = 0u;
        {{ find_rows(count, shifted) }}
        {{ fetch_step(a, b, width, type, count, taps, MORE) }}
        let steps = {{ taps }} * (({{ count }} + {{ BK - 1 }}u) / {{ BK }}u);
        for (var step = 0u; step < steps; step++) {
            {{ put_step(width, type) }}
            workgroupBarrier();
            k += {{ BK }}u;
            {% if shifted %}
            if (k >= {{ count }}) {
                k = 0u;
                tap++;
                {{ find_rows(count, shifted) }}
            }
            {% endif %}
            {{ fetch_step(a, b, width, type, count, taps, MORE) }}
            {{ multiply() }}
            workgroupBarrier();
        }
    }
{%- endmacro %}

@compute @workgroup_size({{ WG }})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32, @builtin(subgroup_id) subgroup: u32) {
    let down = (p.m + {{ BM - 1 }}u) / {{ BM }}u;
    let across = (p.n + {{ BN - 1 }}u) / {{ BN }}u;
    let block = wid.x + wid.y * groups.x;
    let group = block / ({{ GROUP }}u * across) * {{ GROUP }}u;
    if (group >= down) {
        return;
    }
    let rows = min(down - group, {{ GROUP }}u);
    let first_m = (group + (block - group * across) % rows) * {{ BM }}u;
    let first_n = (block - group * across) / rows * {{ BN }}u;
    if (first_n >= p.n) {
        return;
    }
    let part = subgroup % {{ SM * SN }}u;
    let row_of_tiles = part / {{ SN }}u * {{ FM * SIDE }}u;
    let column_of_tiles = part % {{ SN }}u * {{ FN * SIDE }}u;
    {% for i in IS %}
    {% for j in JS %}
    var sum{{ i }}_{{ j }} = {{ MAT }}<f32, C>();
    {% endfor %}
    {% endfor %}
    {{ accumulate("a", "b", V, TA, "p.c", "p.taps" if CONV else "1u", CONV) }}
    {% if EXT %}
    {{ accumulate("s", "u", VE, T, "p.r", "p.taps" if TRANSPOSED else "1u", TRANSPOSED) }}
    {% endif %}
    {% for i in IS %}
    {% for first in range(0, FN, FS) %}
    {% for j in range(FS) %}
    coopStoreT(sum{{ i }}_{{ first + j }}, &slab[(part * {{ LEAVING }}u + {{ j * SIDE }}u) / {{ SV }}u], {{ FS * SIDE // SV }}u);
    {% endfor %}
    workgroupBarrier();
    for (var q = lid; q < {{ SM * SN * LEAVING // 4 }}u; q += {{ WG }}u) {
        let owner = q / {{ LEAVING // 4 }}u;
        let row = q / {{ FS * SIDE // 4 }}u % {{ SIDE }}u;
        let column = q % {{ FS * SIDE // 4 }}u * 4u;
        let m = first_m + owner / {{ SN }}u * {{ FM * SIDE }}u + {{ i * SIDE }}u + row;
        let n = first_n + owner % {{ SN }}u * {{ FN * SIDE }}u + {{ first * SIDE }}u + column;
        {% if SV == 4 %}
        finish(m, n, slab[q]);
        {% else %}
        finish(m, n, vec4<f32>(slab[q * 4u], slab[q * 4u + 1u], slab[q * 4u + 2u], slab[q * 4u + 3u]));
        {% endif %}
    }
    workgroupBarrier();
    {% endfor %}
    {% endfor %}
}
