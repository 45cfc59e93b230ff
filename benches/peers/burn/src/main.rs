//! Strata's kernels in burn: its wgpu backend (SPIR-V on Vulkan), fusion and autotune on, as users run it.
//!
//!     strata bench --list --json > shapes.json
//!     cd benches/peers/burn
//!     cargo run --release -- ../../../shapes.json [--filter TEXT] [--dtype f16|f32] [--json]
//!     cargo run --release -- --check
//!
//! A time is the median of 5 batches of at least 0.2 s each, with a wait for the device round each batch,
//! after a warm-up that includes burn's tuning; spread is (longest - shortest) / median.
//! burn is lazy: results are held until their operations are handed to the device, so that none is left out.
//! Operations that it could fuse with the next are handed over one by one, the others eight at once.
//! CUBECL_WGPU_DEFAULT_DEVICE chooses the adapter, "DiscreteGpu(1)" or "Cpu".

use std::process::ExitCode;

use anyhow::{Result, ensure};
use burn::nn::GroupNormConfig;
use burn::tensor::activation::{gelu, silu};
use burn::tensor::module::{attention, conv2d, layer_norm, linear};
use burn::tensor::ops::{AttentionModuleOptions, ConvOptions};
use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use peers_common::{Case, DType, EPS, Op, Peer, run, version};

fn main() -> ExitCode {
    run(|dtype| {
        let mut device = Device::wgpu(Default::default());
        let float = if dtype == DType::F16 { FloatDType::F16 } else { FloatDType::F32 };
        ensure!(device.supports_dtype(float), "burn does not compute in {} on this adapter", dtype.name());
        device.configure(float)?;
        Ok(Burn(device))
    })
}

struct Burn(Device);

impl Peer for Burn {
    fn version(&self) -> String {
        version(include_str!("../Cargo.lock"), "burn")
    }

    fn device(&self) -> String {
        let identity = self.0.identity().expect("a wgpu device has a name");
        format!("{}, {}", identity.name, identity.fingerprint)
    }

    fn prepare(&self, op: &Op, _: DType) -> Result<Case<'_>> {
        let inputs = op.inputs();
        Ok(match *op {
            Op::Linear { m, n, k } => {
                let (x, w) = (self.upload(&inputs[0], [m, k]), self.upload(&inputs[1], [k, n]));
                self.case(8, move || linear(x.clone(), w.clone(), None))
            }
            Op::Conv { batch, side, c, out } => {
                let x = self.upload(&inputs[0], [batch, c, side, side]);
                let w = self.upload(&inputs[1], [out, c, 3, 3]);
                let options = ConvOptions::new([1, 1], [1, 1], [1, 1], 1);
                self.case(8, move || conv2d(x.clone(), w.clone(), None, options.clone()))
            }
            Op::Attention { batch, queries, keys, heads, dim } => {
                let q = self.upload(&inputs[0], [batch, heads, queries, dim]);
                let k = self.upload(&inputs[1], [batch, heads, keys, dim]);
                let v = self.upload(&inputs[2], [batch, heads, keys, dim]);
                self.case(8, move || {
                    attention(q.clone(), k.clone(), v.clone(), None, None, AttentionModuleOptions::default())
                })
            }
            Op::GroupNorm { batch, side, channels, groups } => {
                let x = self.upload(&inputs[0], [batch, channels, side, side]);
                let mut norm = GroupNormConfig::new(groups, channels).with_epsilon(EPS).init(&self.0);
                norm.gamma = Some(burn::module::Param::from_tensor(self.upload(&inputs[1], [channels])));
                norm.beta = Some(burn::module::Param::from_tensor(self.upload(&inputs[2], [channels])));
                self.case(1, move || silu(norm.forward(x.clone())))
            }
            Op::LayerNorm { rows, channels } => {
                let x = self.upload(&inputs[0], [rows, channels]);
                let (scale, shift) =
                    (self.upload(&inputs[1], [channels]), self.upload(&inputs[2], [channels]));
                self.case(1, move || layer_norm(x.clone(), scale.clone(), Some(shift.clone()), EPS))
            }
            Op::Geglu { rows, channels } => {
                let x = self.upload(&inputs[0], [rows, 2 * channels]);
                self.case(1, move || {
                    x.clone().slice([0..rows, 0..channels])
                        * gelu(x.clone().slice([0..rows, channels..2 * channels]))
                })
            }
        })
    }
}

impl Burn {
    fn upload<const D: usize>(&self, values: &[f32], shape: [usize; D]) -> Tensor<D> {
        Tensor::from_data(TensorData::new(values.to_vec(), shape), &self.0)
    }

    /// An operation, to be handed over `held` at once.
    fn case<'a, const D: usize>(&'a self, held: usize, op: impl Fn() -> Tensor<D> + Clone + 'a) -> Case<'a> {
        let again = op.clone();
        Case {
            per_launch: held,
            launch: Box::new(move |count| {
                for _ in 0..count {
                    let results: Vec<_> = (0..held).map(|_| op()).collect();
                    self.0.flush()?;
                    drop(results);
                }
                Ok(self.0.sync()?)
            }),
            result: Box::new(move || Ok(again().into_data().convert::<f32>().try_to_vec()?)),
        }
    }
}
