//! Embeddings: word vectors that somebody made for a word (textual inversion), in files of their own and bundled with LoRAs.

use std::collections::BTreeMap;
use std::path::Path;

use crate::tensor_file::TensorFile;
use crate::{Error, Key, Result, sniff};

/// What files call the vectors for the text encoder, the first of two: A1111, kohya, and what was converted from pickles.
const FIRST: [&str; 3] = ["emb_params", "clip_l", "string_to_param.*"];
/// What they call those for the second.
const SECOND: &str = "clip_g";

/// What the names of bundled ones begin with in LoRA files, before the word and a dot.
pub(crate) const BUNDLED: &str = "bundle_emb.";

/// A word, and the vectors that stand for it in prompts and captions.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// As it is written.
    pub word: String,
    /// Its vectors.
    pub key: Key,
    /// Those for the second of two text encoders, which Stable Diffusion 1.x and 2.x lack.
    pub second: Option<Key>,
}

impl Embedding {
    /// Reads a file: A1111's, kohya's of two encoders, or diffusers', whose one tensor is named as the word. Without `word` it is
    /// that, else the file's name.
    ///
    /// # Errors
    /// It is no embedding, or damaged.
    pub fn read(path: &Path, word: Option<&str>) -> Result<Self> {
        let mut file = TensorFile::open(path)?;
        let names: Vec<String> = file.tensors().keys().cloned().collect();
        let known = |name: &String| name == SECOND || FIRST.contains(&name.as_str());
        let stem = || path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let (own, parts) = match &names[..] {
            [name] if !known(name) && is_embedding(&file) => {
                (name.clone(), vec![(FIRST[0].to_owned(), name.clone())])
            }
            names if is_embedding(&file) && names.iter().all(known) => {
                (stem(), names.iter().map(|name| (name.clone(), name.clone())).collect())
            }
            _ => {
                let message = format!("is no embedding; it seems to be {}", sniff::by_tensors(&file));
                return Err(Error::file(path, message));
            }
        };
        Self::of(&mut file, word.map_or(own, str::to_owned), &parts)
    }

    /// Those that a LoRA file has beside its modules, by word.
    ///
    /// # Errors
    /// One is damaged, or has no vectors for the first text encoder.
    pub(crate) fn bundled(file: &mut TensorFile) -> Result<BTreeMap<String, Self>> {
        let mut words: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
        for name in file.tensors().keys() {
            let Some(rest) = name.strip_prefix(BUNDLED) else { continue };
            let (word, part) = rest.split_once('.').unwrap_or((rest, ""));
            words.entry(word.to_owned()).or_default().push((part.to_owned(), name.clone()));
        }
        words.into_iter().map(|(word, parts)| Ok((word.clone(), Self::of(file, word, &parts)?))).collect()
    }

    /// Of the tensors of a file: what each is to the embedding, and its name.
    fn of(file: &mut TensorFile, word: String, parts: &[(String, String)]) -> Result<Self> {
        let (mut first, mut second) = (None, None);
        for (part, name) in parts {
            let to = match part.as_str() {
                SECOND => &mut second,
                part if FIRST.contains(&part) && first.is_none() => &mut first,
                _ => {
                    let message = format!(
                        "the embedding {word:?} has a tensor `{name}`, which is nothing known; vectors are called {} or {SECOND}",
                        FIRST.join(", ")
                    );
                    return Err(Error::file(file.path(), message));
                }
            };
            *to = Some(key(file, name)?);
        }
        let message = format!(
            "the embedding {word:?} has vectors for the second of two text encoders alone ({SECOND})"
        );
        let key = first.ok_or_else(|| Error::file(file.path(), message))?;
        Ok(Self { word, key, second })
    }

    /// Its tensors in a LoRA file: names, shapes and values.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = (String, Vec<usize>, &[f32])> {
        let first = if self.second.is_some() { FIRST[1] } else { FIRST[2] };
        let keys = [(first, Some(&self.key)), (SECOND, self.second.as_ref())];
        keys.into_iter().filter_map(|(part, key)| {
            let key = key?;
            let name = format!("{BUNDLED}{}.{part}", self.word);
            Some((name, vec![key.count(), key.channels()], key.vectors()))
        })
    }
}

/// Vectors [n, C], or one [C].
fn key(file: &mut TensorFile, name: &str) -> Result<Key> {
    let channels = match file.tensors()[name].shape[..] {
        [channels] | [_, channels] if channels > 0 => channels,
        ref shape => {
            let message = format!("tensor `{name}` has shape {shape:?}; vectors of a word are [n, C]");
            return Err(Error::file(file.path(), message));
        }
    };
    let vectors = file.read(name)?;
    if vectors.is_empty() {
        return Err(Error::file(file.path(), format!("tensor `{name}` has no vectors")));
    }
    Key::new(vectors, channels)
}

/// Whether the tensors of a file are an embedding: known names, or one matrix of a few rows as wide as word vectors are.
pub(crate) fn is_embedding(file: &TensorFile) -> bool {
    /// No chunk of a prompt has room for more.
    const MOST: usize = 75;
    /// No text encoder has word vectors of fewer channels.
    const NARROWEST: usize = 8;
    let tensors = file.tensors();
    if FIRST.iter().chain([&SECOND]).any(|name| tensors.contains_key(*name)) {
        return true;
    }
    // what layers have is called otherwise
    let of_layer = |name: &str| {
        [".weight", ".bias"].iter().any(|end| name.ends_with(end))
            || ["lora_", BUNDLED].iter().any(|start| name.starts_with(start))
    };
    let mut all = tensors.iter();
    match (all.next(), all.next()) {
        (Some((name, info)), None) if !of_layer(name) => match info.shape[..] {
            [channels] | [1..=MOST, channels] => channels >= NARROWEST,
            _ => false,
        },
        _ => false,
    }
}
