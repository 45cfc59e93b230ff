// Element by element; {{ OP }} with V values per invocation.
//
//   add:        out = x + y
//   act:        out = f(x)                        act_grad:   out = y f'(x)                    y = grad_out
//   geglu:      out[m, c] = x[m, c] gelu(x[m, C + c])
//   geglu_grad: out[m, c] = y[m, c] gelu(g), out[m, C + c] = y[m, c] x[m, c] gelu'(g), g = x[m, C + c]
//   cast:       out = x in another type
// x, out [count], or x [rows, 2 C] and y, out [rows, C] for geglu. Dispatch: count / V invocations (of y for geglu), folded.
// Numeric note: computed in f32.
{% include "index" %}
{% include "act" %}
{% from "vec" import vec %}
{% set X = vec(V, "f32") %}
@group(0) @binding(0) var<storage, read> x: array<{{ vec(V, T) }}>;
{% if OP in ["add", "act_grad", "geglu_grad"] %}
@group(0) @binding(1) var<storage, read> y: array<{{ vec(V, T) }}>;
{% endif %}
@group(0) @binding(2) var<storage, read_write> out: array<{{ vec(V, TO) }}>;
{%- macro each(f, x) %}{% if V == 4 %}vec4<f32>({{ f }}({{ x }}.x), {{ f }}({{ x }}.y), {{ f }}({{ x }}.z), {{ f }}({{ x }}.w)){% else %}{{ f }}({{ x }}){% endif %}{% endmacro %}

@compute @workgroup_size({{ WG }})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let i = flat_index(wid, groups, lid);
    if (i >= p.count) {
        return;
    }
{% if OP in ["geglu", "geglu_grad"] %}
    let at = i / p.c * 2u * p.c + i % p.c;
    let h = {{ X }}(x[at]);
    let g = {{ X }}(x[at + p.c]);
    {% if OP == "geglu" %}
    out[i] = {{ vec(V, TO) }}(h * {{ each("gelu", "g") }});
    {% else %}
    let dy = {{ X }}(y[i]);
    out[at] = {{ vec(V, TO) }}(dy * {{ each("gelu", "g") }});
    out[at + p.c] = {{ vec(V, TO) }}(dy * h * {{ each("gelu_slope", "g") }});
    {% endif %}
{% else %}
    let value = {{ X }}(x[i]);
    {% if OP == "add" %}
    out[i] = {{ vec(V, TO) }}(value + {{ X }}(y[i]));
    {% elif OP == "act" %}
    out[i] = {{ vec(V, TO) }}({{ each(ACT, "value") }});
    {% elif OP == "act_grad" %}
    out[i] = {{ vec(V, TO) }}({{ X }}(y[i]) * {{ each(ACT ~ "_slope", "value") }});
    {% else %}
    out[i] = {{ vec(V, TO) }}(value);
    {% endif %}
{% endif %}
}
