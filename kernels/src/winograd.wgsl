// Winograd's F(2x2, 3x3): a 3x3 convolution, stride 1, zeros around, by 16 products per 2x2 tile of the output; {{ OP }}.
//
//   weights:  u[i, o, c] = (G w[o, :, :, c] Gt)[i]                 [O, 3, 3, C] to [16, O, C]
//   input:    v[i, t, c] = (Bt d Bt^t)[i], d the 4x4 pixels that tile t reads
//   output:   out[pixel, o] = (At m At^t)[pixel of tile t] + sum_r s[pixel, r] up[o, r] + bias[o] + residual[pixel, o]
//             with m[i, t, o] = sum_c v[i, t, c] u[i, o, c]
// TRANSPOSED: the input gradient, a convolution with the kernel turned by 180 degrees. G of a reversed row is G's rows in the
// order 3, 1, 2, 0, so the same u serves, and v and m are stored in that order.
// Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2015 (arXiv 1509.09308), section 4.1.
// Dispatch: one invocation per kernel or tile and 4 channels, folded. p.c counts vectors of 4 channels.
// Numeric note: f32; u is rounded to T.
{% include "index" %}
{% set SIDE = range(4) %}
{% set SLOT = [3, 1, 2, 0] if TRANSPOSED else [0, 1, 2, 3] %}
{% if OP == "weights" %}
@group(0) @binding(0) var<storage, read> w: array<vec4<{{ T }}>>;          // [o, 3, 3, c]
@group(0) @binding(1) var<storage, read_write> u: array<vec4<{{ T }}>>;    // [16, o, c]
{% elif OP == "input" %}
@group(0) @binding(0) var<storage, read> x: array<vec4<{{ T }}>>;          // [batch, h, w, c]
@group(0) @binding(1) var<storage, read_write> v: array<vec4<f32>>;        // [16, tiles, c]
{% else %}
@group(0) @binding(0) var<storage, read> m: array<vec4<f32>>;              // [16, tiles, c]
@group(0) @binding(1) var<storage, read_write> out: array<vec4<{{ T }}>>;  // [batch, h, w, c]
{% if BIAS %}
@group(0) @binding(2) var<storage, read> bias: array<vec4<f32>>;           // [c]
{% endif %}
{% if RESIDUAL %}
@group(0) @binding(3) var<storage, read> residual: array<vec4<{{ T }}>>;   // as out
{% endif %}
{% if EXT %}
@group(0) @binding(4) var<storage, read> s: array<{{ EXT }}>;               // [batch, h, w, r]
@group(0) @binding(5) var<storage, read> up: array<{{ EXT }}>;              // [4 c, r]
{% endif %}
{% endif %}
{% if OP != "weights" %}

// (first pixel of the sample, y, x) of the tile's first output
fn corner(tile: u32) -> vec3<u32> {
    let across = (p.w + 1u) / 2u;
    let down = (p.h + 1u) / 2u;
    return vec3<u32>(tile / (across * down) * p.h * p.w, tile / across % down * 2u, tile % across * 2u);
}
{% endif %}

@compute @workgroup_size({{ WG }})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let i = flat_index(wid, groups, lid);
    if (i >= p.count) {
        return;
    }
    let c = i % p.c;
    let t = i / p.c;
{% if OP == "weights" %}
    {% for x in range(3) %}
    {% for y in range(3) %}
    let w{{ y }}{{ x }} = vec4<f32>(w[(t * 9u + {{ 3 * y + x }}u) * p.c + c]);
    {% endfor %}
    let g0{{ x }} = w0{{ x }};
    let g1{{ x }} = 0.5 * (w0{{ x }} + w1{{ x }} + w2{{ x }});
    let g2{{ x }} = 0.5 * (w0{{ x }} - w1{{ x }} + w2{{ x }});
    let g3{{ x }} = w2{{ x }};
    {% endfor %}
    {% for y in SIDE %}
    u[{{ 4 * y }}u * p.count + i] = vec4<{{ T }}>(g{{ y }}0);
    u[{{ 4 * y + 1 }}u * p.count + i] = vec4<{{ T }}>(0.5 * (g{{ y }}0 + g{{ y }}1 + g{{ y }}2));
    u[{{ 4 * y + 2 }}u * p.count + i] = vec4<{{ T }}>(0.5 * (g{{ y }}0 - g{{ y }}1 + g{{ y }}2));
    u[{{ 4 * y + 3 }}u * p.count + i] = vec4<{{ T }}>(g{{ y }}2);
    {% endfor %}
{% elif OP == "input" %}
    let at = corner(p.first + t);
    {% for x in SIDE %}
    {% for y in SIDE %}
    // one row and column before the tile; below 0 wraps around, which is past the end too
    let y{{ y }}{{ x }} = at.y + {{ y }}u - 1u;
    let x{{ y }}{{ x }} = at.z + {{ x }}u - 1u;
    let in{{ y }}{{ x }} = y{{ y }}{{ x }} < p.h && x{{ y }}{{ x }} < p.w;
    let d{{ y }}{{ x }} = select(vec4<f32>(), vec4<f32>(x[select(0u, (at.x + y{{ y }}{{ x }} * p.w + x{{ y }}{{ x }}) * p.c + c, in{{ y }}{{ x }})]), in{{ y }}{{ x }});
    {% endfor %}
    let b0{{ x }} = d0{{ x }} - d2{{ x }};
    let b1{{ x }} = d1{{ x }} + d2{{ x }};
    let b2{{ x }} = d2{{ x }} - d1{{ x }};
    let b3{{ x }} = d1{{ x }} - d3{{ x }};
    {% endfor %}
    let to = t * p.c + c;
    let plane = p.tiles * p.c;
    {% for y in SIDE %}
    v[{{ 4 * SLOT[y] + SLOT[0] }}u * plane + to] = b{{ y }}0 - b{{ y }}2;
    v[{{ 4 * SLOT[y] + SLOT[1] }}u * plane + to] = b{{ y }}1 + b{{ y }}2;
    v[{{ 4 * SLOT[y] + SLOT[2] }}u * plane + to] = b{{ y }}2 - b{{ y }}1;
    v[{{ 4 * SLOT[y] + SLOT[3] }}u * plane + to] = b{{ y }}1 - b{{ y }}3;
    {% endfor %}
{% else %}
    let at = corner(p.first + t);
    let plane = p.tiles * p.c;
    {% for x in SIDE %}
    {% for y in SIDE %}
    let m{{ y }}{{ x }} = m[{{ 4 * SLOT[y] + SLOT[x] }}u * plane + t * p.c + c];
    {% endfor %}
    let a0{{ x }} = m0{{ x }} + m1{{ x }} + m2{{ x }};
    let a1{{ x }} = m1{{ x }} - m2{{ x }} - m3{{ x }};
    {% endfor %}
    {% for y in range(2) %}
    var sum{{ y }}0 = a{{ y }}0 + a{{ y }}1 + a{{ y }}2;
    var sum{{ y }}1 = a{{ y }}1 - a{{ y }}2 - a{{ y }}3;
    {% for x in range(2) %}
    let in{{ y }}{{ x }} = at.y + {{ y }}u < p.h && at.z + {{ x }}u < p.w;
    // pixels past the edge repeat one of the tile that is there
    let pixel{{ y }}{{ x }} = at.x + at.y * p.w + at.z + select(0u, {{ y }}u * p.w + {{ x }}u, in{{ y }}{{ x }});
    {% endfor %}
    {% endfor %}
    {% if EXT %}
    for (var r = 0u; r < p.r; r++) {
        let row = 4u * c * p.r + r;
        let column = vec4<f32>(f32(up[row]), f32(up[row + p.r]), f32(up[row + 2u * p.r]), f32(up[row + 3u * p.r]));
        {% for y in range(2) %}
        {% for x in range(2) %}
        sum{{ y }}{{ x }} = fma(vec4<f32>(f32(s[pixel{{ y }}{{ x }} * p.r + r])), column, sum{{ y }}{{ x }});
        {% endfor %}
        {% endfor %}
    }
    {% endif %}
    {% for y in range(2) %}
    {% for x in range(2) %}
    if (in{{ y }}{{ x }}) {
        finish(pixel{{ y }}{{ x }} * p.c + c, c, sum{{ y }}{{ x }});
    }
    {% endfor %}
    {% endfor %}
{% endif %}
}
{% if OP == "output" %}

fn finish(at: u32, c: u32, sum: vec4<f32>) {
    var y = sum;
    {% if BIAS %}
    y += bias[c];
    {% endif %}
    {% if RESIDUAL %}
    y += vec4<f32>(residual[at]);
    {% endif %}
    out[at] = vec4<{{ T }}>(y);
}
{% endif %}
