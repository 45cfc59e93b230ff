//! Every shader text, without a GPU: it parses, validates, and translates for Vulkan, Metal and DirectX 12.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::Path;

use naga::back::{hlsl, msl, spv};
use naga::proc::BoundsCheckPolicies;
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{Module, ShaderStage};
use strata_kernels::{Variant, variants};

fn validated(text: &str) -> Result<(Module, ModuleInfo), String> {
    let module = naga::front::wgsl::parse_str(text).map_err(|e| e.emit_to_string(text))?;
    let capabilities = Capabilities::SHADER_FLOAT16
        | Capabilities::SHADER_FLOAT16_IN_FLOAT32
        | Capabilities::IMMEDIATES
        | Capabilities::COOPERATIVE_MATRIX
        | Capabilities::SUBGROUP;
    let info = Validator::new(ValidationFlags::all(), capabilities)
        .validate(&module)
        .map_err(|e| e.emit_to_string(text))?;
    Ok((module, info))
}

fn to_spirv(module: &Module, info: &ModuleInfo) -> Result<(), String> {
    let options = spv::Options { lang_version: (1, 3), ..spv::Options::default() };
    let words = spv::write_vec(module, info, &options, None).map_err(|e| format!("SPIR-V: {e}"))?;
    if words.first() == Some(&0x0723_0203) { Ok(()) } else { Err("SPIR-V: no magic word".into()) }
}

fn to_msl(module: &Module, info: &ModuleInfo) -> Result<(), String> {
    let options = msl::Options {
        lang_version: (2, 4),
        fake_missing_bindings: true,
        bounds_check_policies: BoundsCheckPolicies::default(),
        ..msl::Options::default()
    };
    let written = msl::write_string(module, info, &options, &msl::PipelineOptions::default());
    written.map(|_| ()).map_err(|e| format!("MSL: {e}"))
}

fn to_hlsl(module: &Module, info: &ModuleInfo) -> Result<(), String> {
    let options = hlsl::Options {
        shader_model: hlsl::ShaderModel::V6_2,
        fake_missing_bindings: true,
        immediates_target: Some(hlsl::BindTarget::default()),
        ..hlsl::Options::default()
    };
    let mut text = String::new();
    let pipeline = hlsl::PipelineOptions::default();
    let written = hlsl::Writer::new(&mut text, &options, &pipeline).write(module, info, None);
    written.map(|_| ()).map_err(|e| format!("HLSL: {e}"))
}

fn check(name: &str, wgsl: &str) -> Result<(), String> {
    let (module, info) = validated(wgsl)?;
    match &module.entry_points[..] {
        [main] if main.name == "main" && main.stage == ShaderStage::Compute => {}
        others => return Err(format!("{} entry points instead of one, `main`", others.len())),
    }
    to_spirv(&module, &info)?;
    to_msl(&module, &info)?;
    // DirectX has no cooperative matrices, so no adapter there offers them
    let coop = ["gemm_coop", "attention_coop"].iter().any(|shader| name.starts_with(shader));
    if coop { Ok(()) } else { to_hlsl(&module, &info) }
}

/// GEMMs have thousands of texts, each body with each set of switches; here are some of every body, others of the next.
#[test]
fn shaders_translate_for_every_api() {
    const GEMMS: usize = 8;
    let (gemms, mut others): (Vec<_>, Vec<_>) =
        variants().into_iter().partition(|v| v.name.starts_with("gemm_"));
    others.extend(gemms.into_iter().step_by(GEMMS));
    translate(&others);
}

#[test]
#[ignore = "takes minutes; part of the long checks"]
fn all_shaders_translate_for_every_api() {
    translate(&variants());
}

fn translate(variants: &[Variant]) {
    let mut seen = HashSet::new();
    let mut wrong = Vec::new();
    for variant in variants {
        let wgsl = variant.wgsl().unwrap();
        if seen.insert(wgsl.clone())
            && let Err(e) = check(&variant.name, &wgsl)
        {
            wrong.push(format!("{}: {e}", variant.name));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), variants.len(), wrong.join("\n"));
    for immediates in [true, false] {
        assert!(
            variants.iter().any(|v| v.immediates == immediates),
            "no variant with immediates {immediates}"
        );
    }
}

/// Every `.wgsl` file is a shader of its own with texts among these, but for the snippets that others include.
#[test]
fn no_shader_is_left_out() {
    let names = variants().into_iter().map(|v| v.name.split(' ').next().unwrap().to_string());
    let listed: BTreeSet<String> = names.collect();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels/src");
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = paths.filter(|path| path.extension().is_some_and(|e| e == "wgsl"));
    let there: BTreeSet<String> =
        files.map(|path| path.file_stem().unwrap().to_str().unwrap().to_string()).collect();
    assert!(there.len() > 10, "{there:?}");
    assert_eq!(listed, there);
}

/// The check itself: a text that is wrong is found.
#[test]
fn a_wrong_shader_is_found() {
    let good = "@group(0) @binding(0) var<storage, read_write> y: array<f32>;
        @compute @workgroup_size(8) fn main(@builtin(global_invocation_id) id: vec3<u32>) { y[id.x] = 1.0; }";
    assert_eq!(check("planted", good), Ok(()));
    for (from, to) in
        [("1.0;", "1u;"), ("fn main", "fn other"), ("read_write", "read"), ("y[id.x]", "z[id.x]")]
    {
        assert!(check("planted", &good.replace(from, to)).is_err(), "{to}");
    }
}
