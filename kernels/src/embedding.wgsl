// Token and position embeddings: out[b, t, c] = tokens[ids[b, t], c] + positions[t, c].
// ids u32 [b, t]; tokens [vocab, c]; positions [>= t, c]; out [b, t, c]. Dispatch: one invocation per value, folded.
// The vocabulary is bound in parts where it is too large for one binding: this is rows first .. first + rows.
// An id past the vocabulary reads its last row: ids are checked where prompts are tokenised.
{% include "index" %}
@group(0) @binding(0) var<storage, read> ids: array<u32>;
@group(0) @binding(1) var<storage, read> tokens: array<{{ T }}>;      // [rows, c]
@group(0) @binding(2) var<storage, read> positions: array<{{ T }}>;
@group(0) @binding(3) var<storage, read_write> out: array<{{ T }}>;

@compute @workgroup_size({{ WG }})
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let i = flat_index(wid, groups, lid);
    if (i >= p.count * p.c) {
        return;
    }
    let id = min(ids[i / p.c], p.vocab - 1u);
    if (id < p.first || id - p.first >= p.rows) {
        return;
    }
    let t = i / p.c % p.tokens;
    out[i] = {{ T }}(f32(tokens[(id - p.first) * p.c + i % p.c]) + f32(positions[t * p.c + i % p.c]));
}
