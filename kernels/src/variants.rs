//! Every shader text this crate can produce, for checks that need no GPU.

use std::collections::HashSet;

use strata_engine::{DType, Def, Params, Result, Shader, render};

use crate::Bodies;

/// Axes along which most texts vary; a family's texts are a product of such, less what cannot occur.
pub(crate) const BODIES: [Bodies; 2] = [Bodies::Lane, Bodies::Tile];
pub(crate) const FLOATS: [DType; 2] = [DType::F32, DType::F16];
pub(crate) const BOTH: [bool; 2] = [false, true];

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
    /// Whether params are immediate data; otherwise a uniform in group 1.
    pub immediates: bool,
    shader: &'static Shader,
    defs: Defs,
    params: &'static str,
}

impl Variant {
    /// The WGSL, ready for a driver.
    ///
    /// # Errors
    /// A template that does not render.
    pub fn wgsl(&self) -> Result<String> {
        render(self.shader, &self.defs, self.params, self.immediates)
    }
}

/// Adds a text with its params as immediate data, and every eighth one also with params as a uniform.
pub(crate) fn variant<P: Params>(out: &mut Vec<Variant>, shader: &'static Shader, defs: Defs) {
    let uniform_too = out.len().is_multiple_of(8);
    for immediates in if uniform_too { &[true, false][..] } else { &[true][..] } {
        let name = format!("{} {defs:?}", shader.name);
        let (immediates, defs) = (*immediates, defs.clone());
        out.push(Variant { name, immediates, shader, defs, params: P::WGSL });
    }
}

/// Every shader text this crate can produce. Attention's are for some head dims, since any can occur.
pub fn variants() -> Vec<Variant> {
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
        family(&mut out);
    }
    // families list some texts under several circumstances
    let mut seen = HashSet::new();
    out.retain(|v| seen.insert((v.name.clone(), v.immediates)));
    out
}
