// delta[b, h, i] = do[b, i, h] . o[b, i, h]: what softmax's gradient subtracts.
// o, do [b, tq, h d]; delta f32 [b, h, tq]. Dispatch: b h tq invocations, tq fastest, folded.
{% include "index" %}
@group(0) @binding(0) var<storage, read> o: array<{{ T }}>;
@group(0) @binding(1) var<storage, read> grad: array<{{ T }}>;
@group(0) @binding(2) var<storage, read_write> delta: array<f32>;

@compute @workgroup_size({{ WG }})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let id = flat_index(wid, groups, lid);
    if (id >= p.batch * p.heads * p.tq) {
        return;
    }
    let at = ((id / p.tq / p.heads * p.tq + id % p.tq) * p.heads + id / p.tq % p.heads) * p.d;
    var sum = 0.0;
    for (var c = 0u; c < p.d; c++) {
        sum = fma(f32(o[at + c]), f32(grad[at + c]), sum);
    }
    delta[id] = sum;
}
