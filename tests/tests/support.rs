//! What several tests need: the goldens, small files, and errors as text.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};

use strata_engine::{DType, Gpu, Tensor};
use strata_model::{
    Checkpoint, ClipTokenizer, Conditioning, Cx, Pipeline, Result as ModelResult, TensorFile, Unet, UnetInput,
};

/// The two tiny pipelines under `tests/goldens`.
pub const MODELS: [&str; 2] = ["sd15-tiny", "sd2-tiny"];

/// A file or folder of a tiny pipeline.
pub fn golden(model: &str, path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens").join(model).join(path)
}

/// A tiny pipeline on disk.
pub fn checkpoint(model: &str) -> Checkpoint {
    Checkpoint::open(&golden(model, "")).unwrap()
}

/// All of a tiny pipeline, in one number format.
pub fn pipeline(gpu: &Gpu, model: &str, dtype: DType) -> Pipeline {
    Pipeline::open(gpu, &checkpoint(model), dtype, dtype).unwrap()
}

/// The U-Net of a tiny pipeline.
pub fn unet(gpu: &Gpu, model: &str, dtype: DType) -> Unet {
    checkpoint(model).unet(gpu, dtype).unwrap()
}

/// The tokenizer of a tiny pipeline.
pub fn tokenizer(model: &str) -> ClipTokenizer {
    checkpoint(model).tokenizer().unwrap()
}

/// What a U-Net says, given text states.
pub fn predict(
    unet: &Unet,
    cx: &Cx<'_>,
    sample: &Tensor,
    timesteps: &[f32],
    states: &Tensor,
) -> ModelResult<Tensor> {
    let conditioning = Conditioning { states: states.clone() };
    unet.forward(cx, &UnetInput { sample, timesteps, conditioning: &conditioning })
}

/// All tensors of a file of a tiny pipeline that hold numbers, with their shapes.
pub fn golden_tensors(model: &str, path: &str) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let mut file = TensorFile::open(&golden(model, path)).unwrap();
    let shapes: Vec<_> =
        file.tensors().iter().map(|(name, info)| (name.clone(), info.shape.clone())).collect();
    let read = |(name, shape): (String, Vec<usize>)| Some((name.clone(), (shape, file.read(&name).ok()?)));
    shapes.into_iter().filter_map(read).collect()
}

/// From N C H W.
pub fn nhwc(gpu: &Gpu, (shape, values): &(Vec<usize>, Vec<f32>)) -> Tensor {
    let &[n, c, h, w] = &shape[..] else { panic!("{shape:?}") };
    let turned: Vec<f32> = (0..n * h * w * c)
        .map(|i| values[((i / (h * w * c)) * c + i % c) * h * w + i / c % (h * w)])
        .collect();
    Tensor::from_f32(gpu, &turned, &[n, h, w, c], DType::F32).unwrap()
}

/// A JSON file of a tiny pipeline.
pub fn golden_json(model: &str, path: &str) -> serde_json::Value {
    serde_json::from_slice(&fs::read(golden(model, path)).unwrap()).unwrap()
}

/// The text of an error, which holds every one of `parts`.
///
/// # Panics
/// Where there is no error, or a part is missing from it.
pub fn refused<T, E: Display>(result: Result<T, E>, parts: &[&str]) -> String {
    let message = match result {
        Ok(_) => panic!("should be refused with {parts:?}"),
        Err(e) => e.to_string(),
    };
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
    message
}

/// Panics unless every tag of an HTML page is one that its template writes, and closed in order. `paired` are those that
/// are closed.
pub fn well_formed(page: &str, paired: &[&str]) {
    const ALONE: [&str; 3] = ["!DOCTYPE", "meta", "img"];
    let mut open = Vec::new();
    for tag in page.split('<').skip(1) {
        let (tag, _) = tag.split_once('>').unwrap_or_else(|| panic!("`<{tag}` has no end"));
        let name = tag.split([' ', '/']).find(|part| !part.is_empty()).unwrap();
        if ALONE.contains(&name) {
            continue;
        }
        assert!(paired.contains(&name), "<{tag}> is not the template's");
        assert_eq!(tag.matches('"').count() % 2, 0, "<{tag}>");
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "</{name}> closes nothing");
        } else {
            open.push(name);
        }
    }
    assert_eq!(open, [""; 0]);
}

/// A tensor to be written: name, dtype as safetensors spells it, shape, bytes.
pub type Entry<'a> = (&'a str, &'a str, &'a [usize], Vec<u8>);

/// The bytes of a safetensors file, put together by hand.
pub fn safetensors(tensors: &[Entry<'_>]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        header.insert(
            (*name).into(),
            serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets }),
        );
        data.extend_from_slice(bytes);
    }
    with_header(&serde_json::Value::Object(header).to_string(), &data)
}

/// A safetensors file with this text for its header.
pub fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// An F32 tensor.
pub fn f32s<'a>(name: &'a str, shape: &'a [usize], values: &[f32]) -> Entry<'a> {
    (name, "F32", shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

/// Writes a file into a folder and returns its path.
pub fn put(folder: &Path, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, content).unwrap();
    path
}

/// Copies a folder with all that is in it.
pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_folder(&path, &target);
        } else {
            fs::copy(&path, &target).map(|_| ()).unwrap();
        }
    }
}
