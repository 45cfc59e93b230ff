// Where a convolution reads: rows of its output are pixels, and each tap of the kernel shifts the image that they read.

// (first pixel of the sample, y, x) of output row m
fn pixel(m: u32) -> vec3<i32> {
    let xy = m % (p.dst_h * p.dst_w);
    return vec3<i32>(vec3<u32>(m / (p.dst_h * p.dst_w) * p.src_h * p.src_w, xy / p.dst_w, xy % p.dst_w));
}

// Pixel of the image that tap (ky, kx) reads for an output pixel, or -1 outside.
fn source(at: vec3<i32>, tap: u32) -> i32 {
    let k = vec2<i32>(vec2<u32>(tap / p.kw, tap % p.kw));
    let size = vec2<i32>(vec2<u32>(p.src_h, p.src_w));
    {% if TRANSPOSED %}
    // the input gradient: which output pixels y read this one with this tap
    let far = at.yz + i32(p.pad) - k;
    let y = far / i32(p.stride);
    let hit = all(far >= vec2<i32>(0)) && all(y * i32(p.stride) == far) && all(y < size);
    {% else %}
    let y = at.yz * i32(p.stride) + k - i32(p.pad);
    let hit = all(y >= vec2<i32>(0)) && all(y < size);
    {% endif %}
    return select(-1, at.x + y.x * size.y + y.y, hit);
}
