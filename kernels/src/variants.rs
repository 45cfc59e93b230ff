//! Every shader text this crate can produce, for checks that need no GPU.

use std::collections::HashSet;

use strata_engine::{Def, Params, Result, Shader, render};

pub(crate) type Defs = Vec<(&'static str, Def)>;

/// Snippets that shaders include.
pub(crate) const ACT: (&str, &str) = ("act", include_str!("include/act.wgsl"));
pub(crate) const CONV: (&str, &str) = ("conv", include_str!("include/conv.wgsl"));
pub(crate) const INDEX: (&str, &str) = ("index", include_str!("include/index.wgsl"));
pub(crate) const REDUCE: (&str, &str) = ("reduce", include_str!("include/reduce.wgsl"));
pub(crate) const ROW: (&str, &str) = ("row", include_str!("include/row.wgsl"));

/// One shader text.
#[derive(Debug, Clone)]
pub struct Variant {
    /// Shader and definitions.
    pub name: String,
    /// WGSL, ready for a driver.
    pub wgsl: String,
    /// Whether params are immediate data; otherwise a uniform in group 1.
    pub immediates: bool,
}

/// Adds a text with its params as immediate data, and every eighth one also with params as a uniform.
pub(crate) fn variant<P: Params>(out: &mut Vec<Variant>, shader: &'static Shader, defs: Defs) -> Result<()> {
    let uniform_too = out.len().is_multiple_of(8);
    for immediates in if uniform_too { &[true, false][..] } else { &[true][..] } {
        let wgsl = render(shader, &defs, P::WGSL, *immediates)?;
        let name = format!("{} {defs:?}", shader.name);
        out.push(Variant { name, wgsl, immediates: *immediates });
    }
    Ok(())
}

/// Every shader text this crate can produce. Attention's are for some head dims, since any can occur.
///
/// # Errors
/// A template that does not render.
pub fn variants() -> Result<Vec<Variant>> {
    let mut out = Vec::new();
    for family in [
        crate::gemm::variants,
        crate::tokens::variants,
        crate::elementwise::variants,
        crate::image::variants,
        crate::group_norm::variants,
        crate::layer_norm::variants,
        crate::attention::variants,
        crate::blend::variants,
        crate::embedding::variants,
        crate::mse::variants,
        crate::optimizer::variants,
        crate::project::variants,
        crate::winograd::variants,
    ] {
        family(&mut out)?;
    }
    // families list some texts under several circumstances
    let mut seen = HashSet::new();
    out.retain(|v| seen.insert((v.name.clone(), v.immediates)));
    Ok(out)
}
