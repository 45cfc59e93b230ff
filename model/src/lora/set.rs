//! The LoRAs of one feature, all in one flat buffer.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use strata_engine::{DType, Gpu, Tape, Tensor};

use super::weights::{LoraModule, LoraWeights, Part};
use crate::build::turned;
use crate::error::listing;
use crate::layers::{LayerInfo, LoraSlot};
use crate::selection::Match;
use crate::{Clip, Error, Result, Unet};

/// Parts of the buffer start at multiples of this many elements, so that both an f32 and an f16 part start at a
/// multiple of 256 bytes, as a binding must.
const ALIGN: usize = 128;

/// The LoRA of one layer within a [`LoraSet`].
#[derive(Debug, Clone, PartialEq)]
pub struct LoraEntry {
    /// Diffusers' name of the layer.
    pub path: String,
    /// r.
    pub rank: usize,
    /// What the LoRA's output is multiplied by is alpha / r.
    pub alpha: f32,
    /// Learning rate of its own, if it has one.
    pub lr: Option<f32>,
    /// Shape in files: [r, in], or [r, in, k, k] for a convolution.
    pub down_shape: Vec<usize>,
    /// Shape in files: [out, r], or [out, r, 1, 1] for a convolution.
    pub up_shape: Vec<usize>,
    /// Where `down` lies in the flat buffer, row-major [r, in], or [r, k, k, in] for a convolution.
    pub down: Range<usize>,
    /// Where `up` lies in the flat buffer, row-major [out, r].
    pub up: Range<usize>,
}

impl LoraEntry {
    fn new(layer: &LayerInfo, rank: usize, alpha: f32, lr: Option<f32>) -> Self {
        let (down_shape, up_shape) = layer.lora_shapes(rank);
        Self { path: layer.path.clone(), rank, alpha, lr, down_shape, up_shape, down: 0..0, up: 0..0 }
    }

    /// alpha / r.
    pub fn scale(&self) -> f32 {
        self.alpha / self.rank as f32
    }

    /// Channels the layer reads.
    pub fn inputs(&self) -> usize {
        self.down_shape[1]
    }

    /// Channels the layer writes.
    pub fn outputs(&self) -> usize {
        self.up_shape[0]
    }

    /// Channels the layer reads and writes, and height and width of its kernel.
    pub(crate) fn size(&self) -> [usize; 3] {
        [self.inputs(), self.outputs(), self.down_shape.get(2).copied().unwrap_or(1)]
    }

    /// Numbers in it.
    pub fn parameters(&self) -> usize {
        self.down.len() + self.up.len()
    }

    /// Values of `down` (or what lies as they do, such as gradients) as files have them, [r, in, k, k].
    pub fn down_to_file(&self, values: &[f32]) -> Vec<f32> {
        let [inputs, _, side] = self.size();
        turned(values, [side * side, inputs])
    }

    /// The inverse of [`down_to_file`](Self::down_to_file).
    fn down_from_file(&self, values: &[f32]) -> Vec<f32> {
        let [inputs, _, side] = self.size();
        turned(values, [inputs, side * side])
    }

    /// The shape of `down` as its layer reads it.
    fn down_view(&self) -> Vec<usize> {
        match self.size() {
            [inputs, _, 1] => vec![self.rank, inputs],
            [inputs, _, side] => vec![self.rank, side, side, inputs],
        }
    }

    /// Numbers in `down` and in `up`.
    fn lengths(&self) -> [usize; 2] {
        [&self.down_shape, &self.up_shape].map(|shape| shape.iter().product())
    }
}

/// The LoRAs of one feature: an f32 buffer with every `down` and `up`, which is what training changes, and in an f16
/// run an f16 shadow of it, which is what the layers read. Between the parts lie zeros that belong to no layer.
#[derive(Debug, Clone)]
pub struct LoraSet {
    entries: Vec<LoraEntry>,
    params: Tensor,
    shadow: Option<Tensor>,
    /// `down` and `up` of each entry as the layers read them.
    views: Vec<(Tensor, Tensor)>,
    lr_groups: Vec<(Option<f32>, Range<usize>)>,
}

impl LoraSet {
    /// New LoRAs for the selected layers: `fill` is given a layer's path, the number of inputs to one of its outputs
    /// and the values of `down` to fill; `up` is 0, so that training starts from the base model.
    ///
    /// # Errors
    /// No layer is selected, or the GPU is out of memory.
    pub fn init(
        gpu: &Gpu,
        dtype: DType,
        matches: &[Match],
        mut fill: impl FnMut(&str, usize, &mut [f32]),
    ) -> Result<Self> {
        let entries = matches.iter().map(|m| LoraEntry::new(&m.layer, m.rank, m.alpha, m.lr)).collect();
        Self::new(gpu, dtype, entries, |entry, values| {
            let fan_in = entry.down.len() / entry.rank;
            fill(&entry.path, fan_in, &mut values[entry.down.clone()]);
        })
    }

    /// A LoRA at the layers of this U-Net.
    ///
    /// # Errors
    /// [`Error::Lora`] names the modules that are not layers of the U-Net, or are of another size; else the GPU is out of
    /// memory.
    pub fn from_weights(gpu: &Gpu, dtype: DType, lora: &LoraWeights, unet: &Unet) -> Result<Self> {
        check_modules(lora, unet.layers())?;
        Self::at_layers(gpu, dtype, lora, Part::Unet, unet.layers(), |path| unet.matrix(path))
    }

    /// A LoRA at the layers of this text encoder; `None` if it has no modules of it.
    ///
    /// # Errors
    /// As [`from_weights`](Self::from_weights).
    pub(crate) fn for_text(lora: &LoraWeights, clip: &Clip) -> Result<Option<Self>> {
        let layers = clip.layers();
        let own = |path: &str| layers.iter().find(|layer| layer.path == path);
        let mut left = Vec::new();
        let mut any = false;
        for ((_, path), module) in lora.modules.iter().filter(|((part, _), _)| *part == Part::TextEncoder) {
            any = true;
            match own(path) {
                Some(layer) => check_shapes(path, module, layer)?,
                None => left.push(path.clone()),
            }
        }
        if !left.is_empty() {
            let names = listing(&left);
            return Err(Error::Lora(format!(
                "{} modules are no layer of this text encoder ({names})",
                left.len()
            )));
        }
        let (gpu, dtype) = (clip.gpu(), clip.dtype());
        any.then(|| Self::at_layers(gpu, dtype, lora, Part::TextEncoder, &layers, |path| clip.matrix(path)))
            .transpose()
    }

    /// The modules of a part at its layers, which they fit. `matrix` is asked for what a layer multiplies with.
    fn at_layers(
        gpu: &Gpu,
        dtype: DType,
        lora: &LoraWeights,
        part: Part,
        layers: &[LayerInfo],
        matrix: impl Fn(&str) -> Result<Vec<f32>>,
    ) -> Result<Self> {
        let mut modules: BTreeMap<&str, Cow<'_, LoraModule>> = BTreeMap::new();
        for layer in layers {
            if let Some(module) = lora.modules.get(&(part, layer.path.clone())) {
                let module = match &module.magnitude {
                    Some(_) => Cow::Owned(module.renormed(&matrix(&layer.path)?)),
                    None => Cow::Borrowed(module),
                };
                modules.insert(&layer.path, module);
            }
        }
        let entry = |layer: &LayerInfo| {
            let module = modules.get(layer.path.as_str())?;
            let entry = LoraEntry::new(layer, module.rank(), module.alpha, None);
            // a kernel that the file has as a matrix stays one; of a larger kernel that is told nowhere
            let shapes = if module.down_shape[1] == layer.inputs {
                (module.down_shape.clone(), module.up_shape.clone())
            } else {
                (entry.down_shape.clone(), entry.up_shape.clone())
            };
            Some(LoraEntry { down_shape: shapes.0, up_shape: shapes.1, ..entry })
        };
        Self::new(gpu, dtype, layers.iter().filter_map(entry).collect(), |entry, values| {
            if let Some(module) = modules.get(entry.path.as_str()) {
                values[entry.down.clone()].copy_from_slice(&entry.down_from_file(&module.down));
                values[entry.up.clone()].copy_from_slice(&module.up);
            }
        })
    }

    /// Lays the entries out, one learning rate after the other, and fills their part of the values.
    fn new(
        gpu: &Gpu,
        dtype: DType,
        entries: Vec<LoraEntry>,
        mut fill: impl FnMut(&LoraEntry, &mut [f32]),
    ) -> Result<Self> {
        if entries.is_empty() {
            return Err(Error::Lora("no layer has a LoRA; select at least one".into()));
        }
        if let Some(entry) = entries.iter().find(|entry| entry.rank == 0) {
            return Err(Error::Lora(format!("{} has rank 0; choose at least 1", entry.path)));
        }
        let (entries, lr_groups, length) = lay_out(entries);
        let mut values = vec![0.0; length];
        for entry in &entries {
            fill(entry, &mut values);
        }
        let params = Tensor::from_f32(gpu, &values, &[length], DType::F32)?;
        let shadow = match dtype {
            DType::F32 => None,
            _ => Some(Tensor::from_f32(gpu, &values, &[length], dtype)?),
        };
        let read = shadow.as_ref().unwrap_or(&params);
        let view = |entry: &LoraEntry| -> Result<(Tensor, Tensor)> {
            let down = read.view(entry.down.start, &entry.down_view())?;
            let up = read.view(entry.up.start, &[entry.outputs(), entry.rank])?;
            Ok((down, up))
        };
        let views = entries.iter().map(view).collect::<Result<_>>()?;
        Ok(Self { entries, params, shadow, views, lr_groups })
    }

    /// The LoRAs, in the order of the flat buffer.
    pub fn entries(&self) -> &[LoraEntry] {
        &self.entries
    }

    /// All values, f32 and flat.
    pub fn params(&self) -> &Tensor {
        &self.params
    }

    /// The f16 copy of all values that the layers read, in an f16 run. Whoever changes [`params`](Self::params) must
    /// change it too.
    pub fn shadow(&self) -> Option<&Tensor> {
        self.shadow.as_ref()
    }

    /// What the layers read.
    pub(crate) fn dtype(&self) -> DType {
        self.shadow.as_ref().unwrap_or(&self.params).dtype()
    }

    /// Where in the flat buffer the layers of each learning rate lie. Together the ranges cover all of it.
    pub fn lr_groups(&self) -> &[(Option<f32>, Range<usize>)] {
        &self.lr_groups
    }

    /// Asks the tape for the gradients of every value. They are added up in `grads`: f32, flat, laid out as
    /// [`params`](Self::params).
    ///
    /// # Errors
    /// `grads` is shorter than the parameters.
    pub fn track(&self, tape: &Tape, grads: &Tensor) -> Result<()> {
        for (entry, (down, up)) in self.entries.iter().zip(&self.views) {
            tape.track_into(down, &grads.view(entry.down.start, down.shape())?);
            tape.track_into(up, &grads.view(entry.up.start, up.shape())?);
        }
        Ok(())
    }

    /// The values as they are now, to be written in this type. Waits for the GPU.
    ///
    /// # Errors
    /// The GPU is lost.
    pub fn to_weights(&self, dtype: DType, metadata: BTreeMap<String, String>) -> Result<LoraWeights> {
        let values = self.params.to_f32()?;
        let module = |entry: &LoraEntry| {
            let module = LoraModule {
                down: entry.down_to_file(&values[entry.down.clone()]),
                down_shape: entry.down_shape.clone(),
                up: values[entry.up.clone()].to_vec(),
                up_shape: entry.up_shape.clone(),
                alpha: entry.alpha,
                magnitude: None,
            };
            ((Part::Unet, entry.path.clone()), module)
        };
        Ok(LoraWeights {
            modules: self.entries.iter().map(module).collect(),
            embeddings: BTreeMap::new(),
            dtype,
            metadata,
        })
    }

    /// Each entry with what its layer needs.
    pub(crate) fn slots(&self, feature: usize) -> impl Iterator<Item = (&LoraEntry, LoraSlot)> {
        self.entries.iter().zip(&self.views).map(move |(entry, (down, up))| {
            let slot = LoraSlot { feature, down: down.clone(), up: up.clone(), scale: entry.scale() };
            (entry, slot)
        })
    }
}

/// Groups entries by learning rate, in the order in which the rates first occur, and gives each its ranges. Returns
/// them with the groups and the length of the buffer.
#[expect(clippy::type_complexity, reason = "three results that are taken apart at once")]
fn lay_out(entries: Vec<LoraEntry>) -> (Vec<LoraEntry>, Vec<(Option<f32>, Range<usize>)>, usize) {
    let mut groups: Vec<(Option<f32>, Vec<LoraEntry>)> = Vec::new();
    for entry in entries {
        match groups.iter_mut().find(|(lr, _)| *lr == entry.lr) {
            Some((_, group)) => group.push(entry),
            None => groups.push((entry.lr, vec![entry])),
        }
    }
    let mut end = 0;
    let mut place = |length: usize| {
        let start = end;
        end = (start + length).next_multiple_of(ALIGN);
        start..start + length
    };
    let (mut placed, mut ranges) = (Vec::new(), Vec::new());
    for (lr, group) in groups {
        let start = place(0).start;
        for mut entry in group {
            let [down, up] = entry.lengths();
            (entry.down, entry.up) = (place(down), place(up));
            placed.push(entry);
        }
        ranges.push((lr, start..place(0).start));
    }
    (placed, ranges, end)
}

/// Every module must belong to a layer, and fit it.
fn check_modules(lora: &LoraWeights, layers: &[LayerInfo]) -> Result<()> {
    let layers: BTreeMap<&str, &LayerInfo> =
        layers.iter().map(|layer| (layer.path.as_str(), layer)).collect();
    let mut left: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for ((part, path), module) in &lora.modules {
        match layers.get(path.as_str()).filter(|_| *part == Part::Unet) {
            Some(layer) => check_shapes(path, module, layer)?,
            None if *part == Part::Unet => {
                left.entry("no layer of this U-Net".into()).or_default().push(path.clone());
            }
            None => left.entry(part.to_string()).or_default().push(path.clone()),
        }
    }
    if left.is_empty() {
        return Ok(());
    }
    let list = |(of, paths): (&String, &Vec<String>)| format!("{} of {of} ({})", paths.len(), listing(paths));
    Err(Error::Lora(format!(
        "Strata applies LoRA to the U-Net, but the file also has modules for others: {}",
        left.iter().map(list).collect::<Vec<_>>().join("; ")
    )))
}

pub(crate) fn check_shapes(path: &str, module: &LoraModule, layer: &LayerInfo) -> Result<()> {
    let (down, up, rank) = (&module.down_shape[..], &module.up_shape[..], module.rank());
    let side = layer.side();
    // 1×1 kernels may be there as matrices
    let kernel = |shape: &[usize], side| match &shape[2..] {
        [] => side == 1,
        sides => sides.iter().all(|s| *s == side),
    };
    // larger ones too, of kinds of LoRA whose files do not tell the kernel
    let flat = down.len() == 2 && side > 1 && down[1] == layer.fan_in();
    if (flat || down[1] == layer.inputs && kernel(down, side)) && up[0] == layer.outputs && kernel(up, 1) {
        return Ok(());
    }
    let wanted = LoraEntry::new(layer, rank, module.alpha, None);
    Err(Error::Lora(format!(
        "{path} has lora_down {down:?} and lora_up {up:?}, but this layer of the model needs {:?} and {:?}; the LoRA was \
         made for another model",
        wanted.down_shape, wanted.up_shape
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::LayerKind;

    #[test]
    fn one_learning_rate_lies_together() {
        let entry = |path: &str, lr| {
            let layer = LayerInfo { path: path.into(), kind: LayerKind::Linear, inputs: 10, outputs: 30 };
            LoraEntry::new(&layer, 5, 1.0, lr)
        };
        let entries = vec![entry("a", None), entry("b", Some(1.0)), entry("c", None)];
        let (entries, groups, length) = lay_out(entries);
        let paths: Vec<&str> = entries.iter().map(|entry| entry.path.as_str()).collect();
        assert_eq!(paths, ["a", "c", "b"]);
        assert_eq!((entries[1].down.clone(), entries[1].up.clone()), (384..434, 512..662));
        assert_eq!(groups, [(None, 0..768), (Some(1.0), 768..1152)]);
        assert_eq!(length, 1152);
    }
}
