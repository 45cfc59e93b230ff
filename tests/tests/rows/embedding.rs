//! Embeddings of tokens and of timesteps.

use strata_engine::{DType, Tensor};
use strata_kernels::{embedding, timestep_embedding};
use strata_tests::{Row, Setup, compare, gpu, tolerance};

use super::hold;

#[test]
fn token_embeddings() {
    let row = |batch: usize, t: usize, c: usize| {
        let (vocab, positions) = (11, t + 2);
        let ids: Vec<u32> = (0..batch * t).map(|i| (i * 7 % vocab) as u32).collect();
        let again = ids.clone();
        Row::new(format!("embedding {batch}×{t}×{c}"), &[batch, t, c], 1)
            .frozen("tokens", &[vocab, c])
            .frozen("positions", &[positions, c])
            .run(move |_, v| embedding(&Tensor::from_u32(v[0].gpu(), &ids, &[batch, t])?, &v[0], &v[1]))
            .reference(move |v| {
                let at = |i: usize| v[0][again[i / c] as usize * c + i % c] + v[1][i / c % t * c + i % c];
                (0..batch * t * c).map(at).collect()
            })
    };
    hold([row(1, 1, 1), row(2, 7, 5), row(3, 77, 12)]);
}

/// A vocabulary larger than llvmpipe's 128 MiB for a binding, as Stable Diffusion's is in f32.
#[test]
fn a_vocabulary_in_parts() {
    let gpu = gpu(Setup::Lane);
    let (vocab, c) = (49_408, 768);
    let value = |i: usize| (i / c) as f32 + (i % c) as f32 / 1024.0;
    let values: Vec<f32> = (0..vocab * c).map(value).collect();
    let table = Tensor::from_f32(&gpu, &values, &[vocab, c], DType::F32).unwrap();
    let positions = Tensor::zeros(&gpu, &[5, c], DType::F32).unwrap();
    let ids = [49_407, 0, 43_519, 43_520, 25_000];
    let ids_there = Tensor::from_u32(&gpu, &ids, &[1, 5]).unwrap();
    let got = embedding(&ids_there, &table, &positions).unwrap().to_f32().unwrap();
    let want: Vec<f32> = ids.iter().flat_map(|id| &values[*id as usize * c..][..c]).copied().collect();
    assert!(got == want);
}

/// As diffusers' `get_timestep_embedding` takes it: frequencies and angles rounded to f32 at each step, which at
/// t = 999 moves the angle by up to 3e-5.
#[test]
fn timestep_embeddings() {
    let gpu = gpu(Setup::Lane);
    let timesteps = [0.0, 1.0, 7.0, 250.0, 500.5, 999.0];
    for (dim, flip, shift) in
        [(2, true, 0.0), (16, true, 0.0), (10, false, 1.0), (320, true, 0.0), (320, false, 0.0)]
    {
        let half = dim / 2;
        let mut want = Vec::new();
        for t in timesteps {
            let angle = |i: usize| {
                let exponent = -9.210_340_5_f32 * i as f32 / (half as f32 - shift);
                f64::from(t * f64::from(exponent).exp() as f32)
            };
            let (sin, cos) = ((0..half).map(|i| angle(i).sin()), (0..half).map(|i| angle(i).cos()));
            match flip {
                true => want.extend(cos.chain(sin)),
                false => want.extend(sin.chain(cos)),
            }
        }
        for dtype in [DType::F32, DType::F16] {
            let got = timestep_embedding(&gpu, &timesteps, dim, flip, shift, dtype).unwrap();
            assert_eq!(got.shape(), [timesteps.len(), dim]);
            let got: Vec<f64> = got.to_f32().unwrap().into_iter().map(f64::from).collect();
            compare(&format!("{dim} channels"), &got, &want, 1.0, tolerance(dtype, 1)).unwrap();
        }
    }
    assert!(timestep_embedding(&gpu, &[1.0], 3, true, 0.0, DType::F32).is_err());
}
