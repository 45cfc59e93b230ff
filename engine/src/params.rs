//! The small struct of numbers a kernel is launched with.

/// A kernel's params: plain `u32` and `f32` fields, whose WGSL twin is generated so that the two cannot differ.
/// Implement it with [`params!`](crate::params).
pub trait Params: bytemuck::Pod {
    /// `struct Params { … }` in WGSL, same fields in the same order.
    const WGSL: &'static str;
}

/// Declares a params struct of `u32` and `f32` fields together with its WGSL text.
///
/// ```
/// strata_engine::params! { struct Scale { count: u32, factor: f32 } }
/// assert_eq!(<Scale as strata_engine::Params>::WGSL, "struct Params { count: u32, factor: f32, }\n");
/// ```
#[macro_export]
macro_rules! params {
    ($(#[$meta:meta])* struct $name:ident { $($field:ident: $ty:ident),+ $(,)? }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, $crate::bytemuck::Pod, $crate::bytemuck::Zeroable)]
        #[bytemuck(crate = "strata_engine::bytemuck")]
        struct $name { $($field: $ty),+ }
        impl $crate::Params for $name {
            const WGSL: &'static str = concat!("struct Params { ", $(stringify!($field), ": ", stringify!($ty), ", ",)+ "}\n");
        }
    };
}
