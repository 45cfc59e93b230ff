// Sums and maxima over the workgroup; with LANE every invocation stands alone and already has its own.
{% if LANE %}
fn workgroup_sum(x: vec2<f32>, lid: u32) -> vec2<f32> {
    return x;
}

fn workgroup_max(x: f32, lid: u32) -> f32 {
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

fn workgroup_max(x: f32, lid: u32) -> f32 {
    partial[lid].x = x;
    workgroupBarrier();
    for (var half = {{ WG }}u / 2u; half > 0u; half /= 2u) {
        if (lid < half) {
            partial[lid].x = max(partial[lid].x, partial[lid + half].x);
        }
        workgroupBarrier();
    }
    let most = partial[0].x;
    workgroupBarrier();
    return most;
}
{% endif %}
