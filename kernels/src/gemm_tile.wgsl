// GEMM through workgroup memory: 64 x 64 tile, 16 values of k at a time, 4 x 4 per invocation.
// Dispatch: one workgroup of 256 invocations per tile, columns fastest, folded.
// Numeric note: f32 accumulation in order of k, fused multiply-add.
{% include "gemm_io" %}

// one row of 16 k per column of the tile, padded so that neighbours fall into different banks
var<workgroup> tile_a: array<f32, {{ 16 * 68 }}>;
var<workgroup> tile_b: array<f32, {{ 16 * 68 }}>;

// acc += A[:, 0 .. count] B[0 .. count, :], 16 at a time, zeros past the end
{%- macro accumulate(a, b, width, count, row_b, step) %}
    for (var k = 0u; k < {{ count }}; k += 16u) {
        {% if width == 4 %}
        {
            let kk = k + lid % 4u * 4u;
            var va = vec4<f32>();
            if (row_a >= 0 && kk < {{ count }}) {
                va = vec4<f32>({{ a }}[(u32(row_a) + kk) / 4u]);
            }
            {% for q in range(4) %}
            tile_a[(lid % 4u * 4u + {{ q }}u) * 68u + lid / 4u] = va[{{ q }}];
            {% endfor %}
            var vb = vec4<f32>();
            {% if NN %}
            let kb = k + lid / 16u;
            let n = first_n + lid % 16u * 4u;
            if (kb < {{ count }} && n < p.n) {
                vb = vec4<f32>({{ b }}[(kb * {{ step }} + {{ row_b }} + n) / 4u]);
            }
            {% for q in range(4) %}
            tile_b[lid / 16u * 68u + lid % 16u * 4u + {{ q }}u] = vb[{{ q }}];
            {% endfor %}
            {% else %}
            let n = first_n + lid / 4u;
            if (n < p.n && kk < {{ count }}) {
                vb = vec4<f32>({{ b }}[(n * {{ step }} + {{ row_b }} + kk) / 4u]);
            }
            {% for q in range(4) %}
            tile_b[(lid % 4u * 4u + {{ q }}u) * 68u + lid / 4u] = vb[{{ q }}];
            {% endfor %}
            {% endif %}
        }
        {% else %}
        for (var q = 0u; q < 4u; q++) {
            let kk = k + lid % 4u * 4u + q;
            var va = 0.0;
            if (row_a >= 0 && kk < {{ count }}) {
                va = f32({{ a }}[u32(row_a) + kk]);
            }
            tile_a[(lid % 4u * 4u + q) * 68u + lid / 4u] = va;
            var vb = 0.0;
            {% if NN %}
            let kb = k + lid / 16u;
            let n = first_n + lid % 16u * 4u + q;
            if (kb < {{ count }} && n < p.n) {
                vb = f32({{ b }}[kb * {{ step }} + {{ row_b }} + n]);
            }
            tile_b[lid / 16u * 68u + lid % 16u * 4u + q] = vb;
            {% else %}
            let n = first_n + lid / 4u;
            if (n < p.n && kk < {{ count }}) {
                vb = f32({{ b }}[n * {{ step }} + {{ row_b }} + kk]);
            }
            tile_b[(lid % 4u * 4u + q) * 68u + lid / 4u] = vb;
            {% endif %}
        }
        {% endif %}
        workgroupBarrier();
        for (var q = 0u; q < 16u; q++) {
            let at_a = q * 68u + lid / 16u * 4u;
            let at_b = q * 68u + lid % 16u * 4u;
            let vb = vec4<f32>(tile_b[at_b], tile_b[at_b + 1u], tile_b[at_b + 2u], tile_b[at_b + 3u]);
            {% for i in range(4) %}
            acc{{ i }} = fma(vec4<f32>(tile_a[at_a + {{ i }}u]), vb, acc{{ i }});
            {% endfor %}
        }
        workgroupBarrier();
    }
{%- endmacro %}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let across = (p.n + 63u) / 64u;
    let block = wid.x + wid.y * groups.x;
    let first_m = block / across * 64u;
    let first_n = block % across * 64u;
    if (first_m >= p.m) {
        return;
    }
    {% for i in range(4) %}
    var acc{{ i }} = vec4<f32>();
    {% endfor %}
    // the row of A that this invocation loads
    let load_m = first_m + lid / 4u;
    {% if CONV %}
    let at = pixel(min(load_m, p.m - 1u));
    {% endif %}
    for (var tap = 0u; tap < p.taps; tap++) {
        {% if CONV %}
        let row_a = select(-1, source(at, tap) * i32(p.c), load_m < p.m);
        {% else %}
        let row_a = select(-1, i32(load_m * p.c), load_m < p.m);
        {% endif %}
        {{ accumulate("a", "b", V, "p.c", "tap * " ~ ("p.n" if NN else "p.c"), "p.taps * " ~ ("p.n" if NN else "p.c")) }}
    }
    {% if EXT and TRANSPOSED %}
    for (var tap = 0u; tap < p.taps; tap++) {
        let row_a = select(-1, source(at, tap) * i32(p.r), load_m < p.m);
        {{ accumulate("s", "u", VE, "p.r", "tap * p.n", "p.taps * p.n") }}
    }
    {% elif EXT %}
    {
        let row_a = select(-1, i32(load_m * p.r), load_m < p.m);
        {{ accumulate("s", "u", VE, "p.r", "0u", "p.n" if NN else "p.r") }}
    }
    {% endif %}
    {% for i in range(4) %}
    finish(first_m + lid / 16u * 4u + {{ i }}u, first_n + lid % 16u * 4u, acc{{ i }});
    {% endfor %}
}
