//! From a configuration to a model: which tensors it needs, and how they come onto the GPU.
//!
//! A configuration builds its model out of whatever a [`Builder`] returns for each tensor it is asked for. With
//! nothing at all (`()`) that is a cheap sketch, which lists layers and tensors without a GPU or weights; with tensors
//! read from files it is the model. So names and shapes are written down once.

use std::io;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use strata_engine::{DType, Gpu};
use strata_kernels::{Storage, Weight};

use crate::random::random_weights;
use crate::weights::{Place, Weights};
use crate::{Error, Result};

/// Bytes handed to the queue between two waits. The queue keeps its own copy of them until then.
const UPLOAD_BYTES: usize = 64 << 20;

/// A configuration that knows its model.
pub(crate) trait Plan {
    /// The model, made of one `W` for each tensor.
    type Model<W>;

    fn build<W>(&self, builder: &mut Builder<'_, W>) -> Result<Self::Model<W>>;
}

/// A tensor of a model, as its file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightInfo {
    /// Its name; some had other names in older files, which come after.
    pub names: Vec<String>,
    /// Its shape; where older files differ, theirs come after.
    pub shapes: Vec<Vec<usize>>,
    /// What it is for.
    pub(crate) role: Role,
}

/// How a tensor is stored on the GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// A matrix or table, in the run's dtype. A 1×1 kernel is one too.
    Matrix,
    /// A kernel, [O, C, KH, KW] in files and [O, KH, KW, C] in the run's dtype here.
    Kernel,
    /// A bias, or the weight of a norm: f32 always.
    Vector,
}

impl WeightInfo {
    fn new(name: String, shape: &[usize], role: Role) -> Self {
        Self { names: vec![name], shapes: vec![shape.to_vec()], role }
    }

    /// Calls `f` with names and shapes as [`Weights`] asks for them.
    fn asked<T>(&self, f: impl FnOnce(&[&str], &[&[usize]]) -> T) -> T {
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        let shapes: Vec<&[usize]> = self.shapes.iter().map(Vec::as_slice).collect();
        f(&names, &shapes)
    }

    /// Holds the header of a file to it.
    ///
    /// # Errors
    /// The tensor is missing or of another shape.
    pub(crate) fn check(&self, weights: &Weights) -> Result<()> {
        self.asked(|names, shapes| weights.check(names, shapes))
    }

    /// Where its numbers lie.
    ///
    /// # Errors
    /// The tensor is missing or of another shape.
    pub(crate) fn place(&self, weights: &Weights) -> Result<Place> {
        self.asked(|names, shapes| weights.place(names, shapes))
    }

    /// The shape on the GPU.
    fn stored_shape(&self) -> Vec<usize> {
        let shape = &self.shapes[0];
        match (self.role, &shape[..]) {
            (Role::Kernel, &[o, c, h, w]) => vec![o, h, w, c],
            (Role::Matrix, &[o, c, ..]) => vec![o, c],
            _ => shape.clone(),
        }
    }
}

/// Hands out the tensors of a model one after the other, and tells its layers what they compute in.
pub(crate) struct Builder<'a, W> {
    compute: DType,
    make: &'a mut dyn FnMut(WeightInfo) -> Result<W>,
}

impl<'a, W> Builder<'a, W> {
    pub fn new(compute: DType, make: &'a mut dyn FnMut(WeightInfo) -> Result<W>) -> Self {
        Self { compute, make }
    }

    /// Type of activations, but for streams and norms that are f32 always. How weights are stored is another matter.
    pub fn compute(&self) -> DType {
        self.compute
    }

    /// A matrix [rows, columns].
    pub fn matrix(&mut self, name: String, shape: [usize; 2]) -> Result<W> {
        (self.make)(WeightInfo::new(name, &shape, Role::Matrix))
    }

    /// A matrix under the first of several names that is there, as [rows, columns] or [rows, columns, 1, 1].
    pub fn matrix_any(&mut self, names: Vec<String>, [rows, columns]: [usize; 2]) -> Result<W> {
        let shapes = vec![vec![rows, columns], vec![rows, columns, 1, 1]];
        (self.make)(WeightInfo { names, shapes, role: Role::Matrix })
    }

    /// The kernel of a convolution, side × side.
    pub fn kernel(&mut self, name: String, [outputs, inputs]: [usize; 2], side: usize) -> Result<W> {
        let role = if side == 1 { Role::Matrix } else { Role::Kernel };
        (self.make)(WeightInfo::new(name, &[outputs, inputs, side, side], role))
    }

    /// A bias or a norm's weight.
    pub fn vector(&mut self, name: String, length: usize) -> Result<W> {
        (self.make)(WeightInfo::new(name, &[length], Role::Vector))
    }

    /// A bias under the first of several names that is there.
    pub fn vector_any(&mut self, names: Vec<String>, length: usize) -> Result<W> {
        (self.make)(WeightInfo { names, shapes: vec![vec![length]], role: Role::Vector })
    }
}

/// The model without its tensors, and the tensors it asks for, in order.
pub(crate) fn sketch<P: Plan>(plan: &P) -> Result<(P::Model<()>, Vec<WeightInfo>)> {
    let mut tensors = Vec::new();
    let mut note = |info| {
        tensors.push(info);
        Ok(())
    };
    let model = plan.build(&mut Builder::new(DType::F32, &mut note))?;
    Ok((model, tensors))
}

/// Reads a model onto the GPU.
///
/// # Errors
/// A tensor is missing, misshapen or left over, or the GPU is out of memory.
pub(crate) fn load<P: Plan>(
    plan: &P,
    mut weights: Weights,
    gpu: &Gpu,
    dtype: DType,
) -> Result<P::Model<Weight>> {
    let model = assemble(plan, gpu, dtype, &mut |info| read(&mut weights, info))?;
    weights.finish()?;
    Ok(model)
}

/// Makes a model of random weights on the GPU, see [`random_weights`].
///
/// # Errors
/// The GPU is out of memory.
pub(crate) fn load_random<P: Plan>(plan: &P, gpu: &Gpu, dtype: DType, seed: u64) -> Result<P::Model<Weight>> {
    assemble(plan, gpu, dtype, &mut |info| Ok(turn(info, random_weights(info, seed))))
}

/// Builds a model of what `fetch` returns. A thread of its own fetches one tensor ahead of the upload, so that no more than
/// a few tensors are in host memory at a time.
fn assemble<P: Plan>(
    plan: &P,
    gpu: &Gpu,
    dtype: DType,
    fetch: &mut (dyn FnMut(&WeightInfo) -> Result<Vec<f32>> + Send),
) -> Result<P::Model<Weight>> {
    let (_, tensors) = sketch(plan)?;
    let storage = Storage::of(dtype)?;
    thread::scope(|scope| {
        let (send, receive) = sync_channel(1);
        scope.spawn(move || {
            for info in &tensors {
                let values = fetch(info);
                let failed = values.is_err();
                // the other side hangs up where it failed itself
                if send.send(values).is_err() || failed {
                    return;
                }
            }
        });
        let mut uploads = Uploads { gpu, storage, values: receive, bytes: 0 };
        let model = plan.build(&mut Builder::new(dtype, &mut |info| uploads.next(&info)))?;
        uploads.wait()?;
        Ok(model)
    })
}

fn read(weights: &mut Weights, info: &WeightInfo) -> Result<Vec<f32>> {
    Ok(turn(info, info.asked(|names, shapes| weights.take_any(names, shapes))?))
}

/// From the order of files to that of the GPU.
fn turn(info: &WeightInfo, values: Vec<f32>) -> Vec<f32> {
    match (info.role, &info.shapes[0][..]) {
        (Role::Kernel, &[_, inputs, height, width]) => turned(&values, [inputs, height * width]),
        _ => values,
    }
}

/// [n, rows, columns] to [n, columns, rows]: how kernels change between files (channel, place) and the GPU (place, channel).
pub(crate) fn turned(values: &[f32], [rows, columns]: [usize; 2]) -> Vec<f32> {
    let mut reordered = vec![0.0; values.len()];
    let pairs = reordered.chunks_exact_mut(rows * columns).zip(values.chunks_exact(rows * columns));
    for (to, from) in pairs {
        for (row, values) in from.chunks_exact(columns).enumerate() {
            for (column, value) in values.iter().enumerate() {
                to[column * rows + row] = *value;
            }
        }
    }
    reordered
}

struct Uploads<'a> {
    gpu: &'a Gpu,
    /// Of matrices and kernels.
    storage: Storage,
    values: Receiver<Result<Vec<f32>>>,
    bytes: usize,
}

impl Uploads<'_> {
    fn next(&mut self, info: &WeightInfo) -> Result<Weight> {
        let stopped = |_| Error::io("read", "weights")(io::Error::other("the reading thread stopped"));
        let values = self.values.recv().map_err(stopped)??;
        let storage = if info.role == Role::Vector { Storage::F32 } else { self.storage };
        let weight = Weight::from_f32(self.gpu, &values, &info.stored_shape(), storage)?;
        self.bytes += values.len() * storage.dtype().bytes() as usize;
        if self.bytes >= UPLOAD_BYTES {
            self.wait()?;
        }
        Ok(weight)
    }

    /// Lets the queue carry out what it was handed, so that copies of the weights do not pile up in front of it.
    fn wait(&mut self) -> Result<()> {
        self.gpu.wait()?;
        self.bytes = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_go_last() {
        // two outputs, two inputs, three places: value = 100 output + 10 input + place
        let values: Vec<f32> = (0..12).map(|i| (i / 6 * 100 + i / 3 % 2 * 10 + i % 3) as f32).collect();
        let expected = [0., 10., 1., 11., 2., 12., 100., 110., 101., 111., 102., 112.];
        assert_eq!(turned(&values, [2, 3]), expected);
        assert_eq!(turned(&expected, [3, 2]), values);
    }
}
