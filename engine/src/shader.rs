//! From a `.wgsl` template and its definitions to the text a driver compiles.

use std::collections::BTreeMap;

use crate::{DType, Error, Result};

/// A WGSL template: its name (for labels and errors), its text, and the snippets it may `{% include %}`.
#[derive(Debug)]
pub struct Shader {
    /// File name without `.wgsl`.
    pub name: &'static str,
    /// The template.
    pub source: &'static str,
    /// Snippets by name.
    pub includes: &'static [(&'static str, &'static str)],
    /// What its text needs beyond what every adapter has. f16 needs no mention where it comes as a type in a definition.
    pub extensions: &'static [Extension],
}

/// What not every adapter can do, and a text must enable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// The type f16.
    F16,
    /// Matrices that a subgroup holds together.
    CooperativeMatrices,
}

impl Extension {
    fn wgsl(self) -> &'static str {
        match self {
            Extension::F16 => "enable f16;\n",
            Extension::CooperativeMatrices => "enable wgpu_cooperative_matrix;\n",
        }
    }
}

/// The value of one template definition.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Def {
    /// A switch, for `{% if X %}`.
    Flag(bool),
    /// A constant, for `{{ X }}` and unrolled loops.
    Int(u32),
    /// The name of an operation or a pass, for `{{ X }}` and comparisons.
    Word(&'static str),
    /// A type of numbers, for `{{ X }}`.
    Type(DType),
}

impl From<bool> for Def {
    fn from(v: bool) -> Def {
        Def::Flag(v)
    }
}

impl From<u32> for Def {
    fn from(v: u32) -> Def {
        Def::Int(v)
    }
}

impl From<&'static str> for Def {
    fn from(v: &'static str) -> Def {
        Def::Word(v)
    }
}

impl From<DType> for Def {
    fn from(v: DType) -> Def {
        Def::Type(v)
    }
}

/// A type, or a switch that is off: what belongs to it is there at all where it has a type.
impl From<Option<DType>> for Def {
    fn from(v: Option<DType>) -> Def {
        v.map_or(Def::Flag(false), Def::Type)
    }
}

/// Renders a shader: what it enables, the params struct, then the template. `immediates` chooses where params live: immediate data, or a uniform binding in group 1.
pub fn render(
    shader: &Shader,
    defs: &[(&'static str, Def)],
    params_wgsl: &str,
    immediates: bool,
) -> Result<String> {
    let fail = |e: minijinja::Error| {
        let causes = std::iter::successors(Some(&e as &dyn std::error::Error), |e| e.source());
        let message = causes.map(|e| e.to_string()).collect::<Vec<_>>().join(": ");
        Error::Shader { shader: shader.name.into(), message }
    };
    let mut env = minijinja::Environment::new();
    env.set_undefined_behavior(minijinja::UndefinedBehavior::Strict);
    for (name, text) in shader.includes {
        env.add_template(name, text).map_err(fail)?;
    }
    env.add_template(shader.name, shader.source).map_err(fail)?;
    // not a `Value` collected from pairs, which would be a list
    let context: BTreeMap<&str, minijinja::Value> = defs
        .iter()
        .map(|(k, v)| {
            let v = match v {
                Def::Flag(b) => minijinja::Value::from(*b),
                Def::Int(i) => minijinja::Value::from(*i),
                Def::Word(w) => minijinja::Value::from(*w),
                Def::Type(t) => minijinja::Value::from(t.wgsl()),
            };
            (*k, v)
        })
        .collect();
    let body = env.get_template(shader.name).and_then(|t| t.render(context)).map_err(fail)?;
    let mut text = String::with_capacity(body.len() + params_wgsl.len() + 80);
    let f16 = defs.iter().any(|(_, v)| *v == Def::Type(DType::F16));
    for extension in [Extension::F16, Extension::CooperativeMatrices] {
        if shader.extensions.contains(&extension) || (f16 && extension == Extension::F16) {
            text.push_str(extension.wgsl());
        }
    }
    if !params_wgsl.is_empty() {
        text.push_str(params_wgsl);
        text.push_str(if immediates {
            "var<immediate> p: Params;\n"
        } else {
            "@group(1) @binding(0) var<uniform> p: Params;\n"
        });
    }
    text.push_str(&body);
    Ok(text)
}
