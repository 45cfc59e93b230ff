//! `strata devices`

use std::io::Write;

use anyhow::Result;
use serde_json::json;
use strata_engine::{AdapterSummary, Gpu, GpuOptions};
use strata_kernels::Bodies;

/// List the GPU adapters, best first
///
/// The GEMM variant is how matrix products will run: on cooperative matrices of 16×16 or 8×8 (coop16, coop8; for f16, and if
/// they give the right results at the first use), through workgroup memory (tile), or in registers alone (lane, on CPUs).
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  strata devices
  strata train run.toml --adapter 1
  strata devices --json | jq '.[].name'
  STRATA_COOP=0 strata train run.toml                    without cooperative matrices
  STRATA_GEMM=tile strata parity stable-diffusion-v1-5   another variant")]
pub struct Devices {
    /// Print JSON: a list, which is empty where there is no GPU adapter; without --json that is an error
    #[arg(long)]
    json: bool,
}

impl Devices {
    pub fn run(&self, out: &mut impl Write) -> Result<()> {
        let adapters = Gpu::list();
        if self.json {
            let list: Vec<_> = adapters.iter().map(to_json).collect::<Result<_>>()?;
            writeln!(out, "{}", serde_json::to_string_pretty(&list)?)?;
            return Ok(());
        }
        if adapters.is_empty() {
            // says what to install
            Gpu::open(&GpuOptions::default())?;
        }
        for AdapterSummary { index, caps, kind } in &adapters {
            writeln!(out, "{index}: {} ({kind})", caps.name)?;
            writeln!(out, "   backend {}, driver {}", caps.backend, caps.driver)?;
            let f16 = if caps.f16 { "yes" } else { "no: everything runs in f32" };
            writeln!(out, "   f16 {f16}, GEMM variant {}", Bodies::of(caps)?.name())?;
            writeln!(out, "   largest tensor {} MiB", caps.max_binding >> 20)?;
        }
        Ok(())
    }
}

fn to_json(AdapterSummary { index, caps, kind }: &AdapterSummary) -> Result<serde_json::Value> {
    Ok(json!({
        "index": index,
        "name": caps.name,
        "kind": kind,
        "backend": caps.backend,
        "driver": caps.driver,
        "f16": caps.f16,
        "immediates": caps.immediates,
        "gemm": Bodies::of(caps)?.name(),
        "max_tensor_bytes": caps.max_binding,
    }))
}
