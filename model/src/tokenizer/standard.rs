//! The vocabulary that Stable Diffusion 1.x and 2.x read texts with, CLIP ViT-L/14's.

use std::io::Read;
use std::path::Path;

use flate2::read::GzDecoder;
use serde_json::json;
use tokenizers::models::bpe::{Merges, Vocab};

use super::{BOS, ClipTokenizer, EOS, pair};
use crate::{Error, Result};

/// The merges, a line each; see README.md beside the file.
const MERGES: &[u8] = include_bytes!("clip-vit-l14/merges.txt.gz");

impl ClipTokenizer {
    /// What Stable Diffusion 1.x pads texts with.
    pub const SD1_PAD: &str = EOS;
    /// What Stable Diffusion 2.x pads texts with, id 0.
    pub const SD2_PAD: &str = "!";

    /// CLIP's own: 49,408 tokens, texts of 77.
    ///
    /// # Errors
    /// `pad` is no token of it.
    pub fn standard(pad: &str) -> Result<Self> {
        let place = Path::new("CLIP ViT-L/14");
        let mut lines = String::new();
        GzDecoder::new(MERGES).read_to_string(&mut lines).map_err(Error::io("read", place))?;
        let merges: Merges = lines.lines().map(|line| pair(place, line)).collect::<Result<_>>()?;
        let settings = json!({ "pad_token": pad, "model_max_length": 77 });
        let Some(settings) = settings.as_object() else { unreachable!("an object was written") };
        Self::new(place, vocabulary(&merges), merges, Vec::new(), settings)
    }
}

/// Every byte as a character, the same at the end of a word, what the merges make, and the two special tokens: ids in this
/// order.
fn vocabulary(merges: &Merges) -> Vocab {
    let bytes: Vec<String> = bytes().map(String::from).collect();
    let words = bytes.iter().map(|byte| format!("{byte}</w>"));
    let merged = merges.iter().map(|(left, right)| format!("{left}{right}"));
    let tokens = bytes.iter().cloned().chain(words).chain(merged).chain([BOS, EOS].map(String::from));
    tokens.zip(0..).collect()
}

/// The character that stands for each byte: printable ones for themselves, first; then, in order, those from U+0100 on for the
/// others.
fn bytes() -> impl Iterator<Item = char> {
    let printable = ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ');
    let count = printable.clone().count() as u32;
    printable.chain((0..256 - count).filter_map(|i| char::from_u32(256 + i)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_known_words() {
        let tokenizer = ClipTokenizer::standard(ClipTokenizer::SD1_PAD).unwrap();
        let [bos, eos] = [tokenizer.bos(), tokenizer.eos()];
        assert_eq!([bos, eos, tokenizer.pad()], [49406, 49407, 49407]);
        assert_eq!(tokenizer.ids("a photo of a cat").unwrap(), [320, 1125, 539, 320, 2368]);
        assert_eq!(tokenizer.token(49408), None);
        let second = ClipTokenizer::standard(ClipTokenizer::SD2_PAD).unwrap();
        assert_eq!(second.encode("cat").unwrap()[..4], [49406, 2368, 49407, 0]);
    }
}
