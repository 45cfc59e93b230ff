// GEMM on cooperative matrices: SIDE x SIDE x SIDE tiles of f16 with f32 sums, held by a subgroup together.
// A workgroup makes BM x BN of the output: SM x SN subgroups of FM x FN tiles each, BK values of k at a time through
// workgroup memory, where zeros stand for what is past an edge. Subgroups beyond SM SN, which there are where they come
// smaller than expected, do the same as others once more: naga does not let matrices depend on a subgroup's number.
// Dispatch: one workgroup per BM x BN, columns fastest, folded.
// Numeric note: A is rounded to f16 where it is f32; products are exact, sums f32 in an order that the device chooses.
// Tiles are unrolled by the template: naga gives drivers no hint to, and an array of tiles may spill.
{% include "gemm_io" %}
{% from "vec" import vec %}
{% set BM = SM * FM * SIDE %}
{% set BN = SN * FN * SIDE %}
{% set QK = BK // 4 %}
// rows in workgroup memory are padded by 8, so that they start in different banks, 16 bytes aligned
{% set LA = BK + 8 %}
{% set LB = BN + 8 if NN else BK + 8 %}
{% set ROWS_B = BK if NN else BN %}
{% set QUADS_B = BN // 4 if NN else QK %}
{% set MAT = "coop_mat" ~ SIDE ~ "x" ~ SIDE %}
{% set IS = range(FM) %}
{% set JS = range(FN) %}
var<workgroup> tile_a: array<{{ vec(SV, "f16") }}, {{ BM * LA // SV }}>;          // [BM, k]
var<workgroup> tile_b: array<{{ vec(SV, "f16") }}, {{ ROWS_B * LB // SV }}>;      // NN: [k, BN], NT: [BN, k]
var<workgroup> slab: array<f32, {{ SM * SN * SIDE * FN * SIDE }}>;       // one row of tiles of each subgroup
var<workgroup> row_start: array<i32, {{ BM }}>;                               // where a row of A begins, -1: it is zeros

{%- macro put(tile, at, value) %}
        {% if SV == 4 %}
        {{ tile }}[({{ at }}) / 4u] = {{ value }};
        {% else %}
        {% for i in range(4) %}
        {{ tile }}[{{ at }} + {{ i }}u] = {{ value }}[{{ i }}];
        {% endfor %}
        {% endif %}
{%- endmacro %}

// four values from index `at` on, of which `there` exist; name[] holds vec(width)
{%- macro four(name, at, there, width) %}
        {% if width == 4 %}
        if ({{ there }} > 0u) {
            v = vec4<f16>({{ name }}[({{ at }}) / 4u]);
        }
        {% else %}
        for (var i = 0u; i < min({{ there }}, 4u); i++) {
            v[i] = f16({{ name }}[{{ at }} + i]);
        }
        {% endif %}
{%- endmacro %}

// where the rows of A with so many values each begin, for this tap if it shifts them
{%- macro find_rows(count, shifted) %}
        for (var row = lid; row < {{ BM }}u; row += {{ WG }}u) {
            let m = first_m + row;
            {% if shifted %}
            row_start[row] = select(-1, source(pixel(min(m, p.m - 1u)), tap) * i32({{ count }}), m < p.m);
            {% else %}
            row_start[row] = select(-1, i32(m * {{ count }}), m < p.m);
            {% endif %}
        }
        workgroupBarrier();
{%- endmacro %}

// sums += A[:, 0 .. count] B[0 .. count, :]
{%- macro accumulate(a, b, width, count, row_b, step) %}
    for (var k = 0u; k < {{ count }}; k += {{ BK }}u) {
        for (var q = lid; q < {{ BM * QK }}u; q += {{ WG }}u) {
            let row = q / {{ QK }}u;
            let kk = k + q % {{ QK }}u * 4u;
            let start = row_start[row];
            var v = vec4<f16>();
            let there = select(0u, {{ count }} - min(kk, {{ count }}), start >= 0);
            {{ four(a, "u32(start) + kk", "there", width) }}
            {{ put("tile_a", "row * " ~ LA ~ "u + q % " ~ QK ~ "u * 4u", "v") }}
        }
        for (var q = lid; q < {{ ROWS_B * QUADS_B }}u; q += {{ WG }}u) {
            let row = q / {{ QUADS_B }}u;
            let quad = q % {{ QUADS_B }}u * 4u;
            var v = vec4<f16>();
            {% if NN %}
            let n = first_n + quad;
            let there = select(0u, p.n - min(n, p.n), k + row < {{ count }});
            {{ four(b, "(k + row) * " ~ step ~ " + " ~ row_b ~ " + n", "there", width) }}
            {% else %}
            let kk = k + quad;
            let there = select(0u, {{ count }} - min(kk, {{ count }}), first_n + row < p.n);
            {{ four(b, "(first_n + row) * " ~ step ~ " + " ~ row_b ~ " + kk", "there", width) }}
            {% endif %}
            {{ put("tile_b", "row * " ~ LB ~ "u + quad", "v") }}
        }
        workgroupBarrier();
        {% for kk in range(0, BK, SIDE) %}
        {
            {% for i in IS %}
            let a{{ i }} = coopLoadT<{{ MAT }}<f16, A>>(&tile_a[((row_of_tiles + {{ i * SIDE }}u) * {{ LA }}u + {{ kk }}u) / {{ SV }}u], {{ LA // SV }}u);
            {% endfor %}
            {% for j in JS %}
            {% if NN %}
            let b{{ j }} = coopLoadT<{{ MAT }}<f16, B>>(&tile_b[({{ kk * LB }}u + column_of_tiles + {{ j * SIDE }}u) / {{ SV }}u], {{ LB // SV }}u);
            {% else %}
            let b{{ j }} = coopLoad<{{ MAT }}<f16, B>>(&tile_b[((column_of_tiles + {{ j * SIDE }}u) * {{ LB }}u + {{ kk }}u) / {{ SV }}u], {{ LB // SV }}u);
            {% endif %}
            {% for i in IS %}
            sum{{ i }}_{{ j }} = coopMultiplyAdd(a{{ i }}, b{{ j }}, sum{{ i }}_{{ j }});
            {% endfor %}
            {% endfor %}
        }
        {% endfor %}
        workgroupBarrier();
    }
{%- endmacro %}

@compute @workgroup_size({{ WG }})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32, @builtin(subgroup_id) subgroup: u32) {
    let across = (p.n + {{ BN - 1 }}u) / {{ BN }}u;
    let block = wid.x + wid.y * groups.x;
    let first_m = block / across * {{ BM }}u;
    let first_n = block % across * {{ BN }}u;
    if (first_m >= p.m) {
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
    for (var tap = 0u; tap < p.taps; tap++) {
        {{ find_rows("p.c", CONV) }}
        {{ accumulate("a", "b", V, "p.c", "tap * " ~ ("p.n" if NN else "p.c"), "p.taps * " ~ ("p.n" if NN else "p.c")) }}
    }
    {% if EXT and TRANSPOSED %}
    for (var tap = 0u; tap < p.taps; tap++) {
        {{ find_rows("p.r", true) }}
        {{ accumulate("s", "u", VE, "p.r", "tap * p.n", "p.taps * p.n") }}
    }
    {% elif EXT %}
    {{ find_rows("p.r", false) }}
    {{ accumulate("s", "u", VE, "p.r", "0u", "p.n" if NN else "p.r") }}
    {% endif %}
    {% for i in IS %}
    {% for j in JS %}
    coopStoreT(sum{{ i }}_{{ j }}, &slab[part * {{ SIDE * FN * SIDE }}u + {{ j * SIDE }}u], {{ FN * SIDE }}u);
    {% endfor %}
    workgroupBarrier();
    for (var q = lid; q < {{ SM * SN * SIDE * FN * SIDE // 4 }}u; q += {{ WG }}u) {
        let owner = q / {{ SIDE * FN * SIDE // 4 }}u;
        let row = q / {{ FN * SIDE // 4 }}u % {{ SIDE }}u;
        let quad = q % {{ FN * SIDE // 4 }}u * 4u;
        let m = first_m + owner / {{ SN }}u * {{ FM * SIDE }}u + {{ i * SIDE }}u + row;
        let n = first_n + owner % {{ SN }}u * {{ FN * SIDE }}u + quad;
        finish(m, n, vec4<f32>(slab[q * 4u], slab[q * 4u + 1u], slab[q * 4u + 2u], slab[q * 4u + 3u]));
    }
    workgroupBarrier();
    {% endfor %}
}
