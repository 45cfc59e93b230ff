// Sums over the workgroup; with LANE every invocation stands alone and already has its sum.
{% if LANE %}
fn workgroup_sum(x: vec2<f32>, lid: u32) -> vec2<f32> {
    return x;
}
{% else %}
var<workgroup> partial: array<vec2<f32>, {{ WG }}>;

fn workgroup_sum(x: vec2<f32>, lid: u32) -> vec2<f32> {
    partial[lid] = x;
    workgroupBarrier();
    for (var half = {{ WG }}u / 2u; half > 0u; half /= 2u) {
        if (lid < half) {
            partial[lid] += partial[lid + half];
        }
        workgroupBarrier();
    }
    let sum = partial[0];
    workgroupBarrier();
    return sum;
}
{% endif %}
