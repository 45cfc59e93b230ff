// Flat index of this invocation in a grid folded to 65,535 workgroups per axis.
fn flat_index(wid: vec3<u32>, groups: vec3<u32>, lid: u32) -> u32 {
    return (wid.x + wid.y * groups.x) * {{ WG }}u + lid;
}
