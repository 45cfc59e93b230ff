//! Strata's kernels in meganeura (blade-graphics on Vulkan or Metal).
//!
//!     strata bench --list --json > shapes.json
//!     cd benches/peers/meganeura
//!     cargo run --release -- ../../../shapes.json [--filter TEXT] [--dtype f16|f32] [--json]
//!     cargo run --release -- --check
//!
//! A time is the median of 5 batches of at least 0.2 s each, with a wait for the device round each batch,
//! after a warm-up; spread is (longest - shortest) / median. Its search for tiles is on and not counted.
//! It runs compiled graphs and waits between them; a graph here has the operation on eight inputs, one after
//! the other with barriers, so that this wait counts little, as in a network.
//! Its activations are f32. `--dtype f16` stores a linear layer's weights in f16, and lets convolutions and
//! attention round their inputs to f16 for matrix units, where the adapter has such; `--dtype f32` never
//! rounds.
//! MEGANEURA_DEVICE_ID chooses the adapter, by its PCI device.

use std::cell::RefCell;
use std::process::ExitCode;
use std::rc::Rc;

use anyhow::{Result, ensure};
use meganeura::compile::{Dispatch, ShaderEntry};
use meganeura::{CoopPolicy, Graph, NodeId, Session, SessionConfig, build};
use peers_common::{Case, DType, EPS, Op, Peer, heads_last, run, version};

/// Operations of a graph.
const COPIES: usize = 8;

fn main() -> ExitCode {
    run(|_| {
        let mut graph = Graph::new();
        let x = graph.input("x", &[4, 4]);
        let y = graph.relu(x);
        graph.set_outputs(vec![y]);
        let session = build(&graph, SessionConfig::inference_from_env()).0;
        let (info, gpu) = (session.device_information(), session.context());
        let tiles = &gpu.capabilities().cooperative_matrix;
        Ok(Meganeura {
            device: format!(
                "{}, matrix tiles f32 {} f16 {}",
                info.device_name, tiles.f32_tile, tiles.f16_tile
            ),
            f32_tiles: tiles.f32_tile > 0,
        })
    })
}

struct Meganeura {
    device: String,
    f32_tiles: bool,
}

impl Peer for Meganeura {
    fn version(&self) -> String {
        version(include_str!("../Cargo.lock"), "meganeura")
    }

    fn device(&self) -> String {
        self.device.clone()
    }

    fn prepare(&self, op: &Op, dtype: DType) -> Result<Case<'_>> {
        let (f16, linear) = (dtype == DType::F16, matches!(op, Op::Linear { .. }));
        let (mut inputs, mut graph) = (op.inputs(), Graph::new());
        if let Op::Attention { heads, dim, .. } = *op {
            for values in &mut inputs {
                *values = heads_last(values, heads, dim);
            }
        }
        let outputs = copies(&mut graph, op, f16)?;
        graph.set_outputs(outputs);
        let mut config = SessionConfig { tune: true, ..SessionConfig::inference_from_env() };
        config.runtime.serial_dispatch = true;
        config.runtime.coop = match f16 {
            true => CoopPolicy::AllowF16,
            false if self.f32_tiles => CoopPolicy::Auto,
            false => CoopPolicy::Disabled,
        };
        let mut session = build(&graph, config).0;
        let tiles = |d: &Dispatch| d.use_coop || d.shader == ShaderEntry::FlashAttentionCoop;
        let rounds = linear || session.plan().dispatches.iter().any(tiles);
        ensure!(!f16 || rounds, "its activations are f32, and it has no matrix units to round them for here");
        for (i, values) in inputs.iter().enumerate() {
            if session.has_parameter(&i.to_string()) {
                session.set_parameter(&i.to_string(), values);
            } else {
                (0..COPIES).for_each(|copy| session.set_input(&format!("{i}.{copy}"), values));
            }
        }
        let (op, session) = (op.clone(), Rc::new(RefCell::new(session)));
        let again = session.clone();
        Ok(Case {
            per_launch: COPIES,
            launch: Box::new(move |count| {
                let mut session = session.borrow_mut();
                for _ in 0..count {
                    session.step();
                }
                session.wait();
                Ok(())
            }),
            result: Box::new(move || result(&mut again.borrow_mut(), &op)),
        })
    }
}

/// Adds COPIES of an operation. They share parameters "1" and "2"; each has inputs of its own, "0.COPY" and
/// on, so that no copy is the same as another.
fn copies(g: &mut Graph, op: &Op, f16: bool) -> Result<Vec<NodeId>> {
    let each = |f: &mut dyn FnMut(usize) -> NodeId| (0..COPIES).map(f).collect();
    Ok(match *op {
        Op::Linear { m, n, k } => {
            let w = if f16 { g.parameter_f16("1", &[k, n]) } else { g.parameter("1", &[k, n]) };
            each(&mut |copy| {
                let x = g.input(&format!("0.{copy}"), &[m, k]);
                g.matmul(x, w)
            })
        }
        Op::Conv { batch, side, c, out } => {
            let w = g.parameter("1", &[out * c * 9]);
            let [n, s, i, o] = [batch, side, c, out].map(|size| size as u32);
            each(&mut |copy| {
                let x = g.input(&format!("0.{copy}"), &[batch * c * side * side]);
                g.conv2d(x, w, n, i, s, s, o, 3, 3, 1, 1)
            })
        }
        Op::Attention { batch, queries, keys, heads, dim } => {
            ensure!(batch == 1, "its attention is of one sequence, not {batch}");
            each(&mut |copy| {
                let q = g.input(&format!("0.{copy}"), &[queries, heads * dim]);
                let [k, v] = [1, 2].map(|i| g.input(&format!("{i}.{copy}"), &[keys, heads * dim]));
                g.cross_attention(q, k, v, heads as u32, heads as u32, dim as u32)
            })
        }
        Op::GroupNorm { batch, side, channels, groups } => {
            let [scale, shift] = ["1", "2"].map(|name| g.parameter(name, &[channels]));
            let [n, c, pixels, groups] = [batch, channels, side * side, groups].map(|size| size as u32);
            each(&mut |copy| {
                let x = g.input(&format!("0.{copy}"), &[op.outputs()]);
                let y = g.group_norm(x, scale, shift, n, c, pixels, groups, EPS as f32);
                g.silu(y)
            })
        }
        Op::LayerNorm { rows, channels } => {
            let [scale, shift] = ["1", "2"].map(|name| g.parameter(name, &[channels]));
            each(&mut |copy| {
                let x = g.input(&format!("0.{copy}"), &[rows, channels]);
                g.layer_norm(x, scale, shift, EPS as f32)
            })
        }
        Op::Geglu { rows, channels } => {
            let [n, c] = [rows, channels].map(|size| size as u32);
            each(&mut |copy| {
                let x = g.input(&format!("0.{copy}"), &[rows * 2 * channels]);
                let (value, gate) = (g.split_a(x, n, c, c, 1), g.split_b(x, n, c, c, 1));
                let gate = g.gelu(gate);
                g.mul(value, gate)
            })
        }
    })
}

/// What the last copy gives.
fn result(session: &mut Session, op: &Op) -> Result<Vec<f32>> {
    session.step();
    session.wait();
    ensure!(session.num_outputs() == COPIES, "a graph of {COPIES} has {} outputs", session.num_outputs());
    let mut values = vec![0.0; op.outputs()];
    session.read_output_by_index(COPIES - 1, &mut values);
    Ok(match *op {
        Op::Attention { queries, dim, .. } => heads_last(&values, queries, dim),
        _ => values,
    })
}
