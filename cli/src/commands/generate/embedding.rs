//! `--embedding FILE[=WORD]`: word vectors to draw with.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use strata_model::progress::note;
use strata_model::{ClipTokenizer, Embedding, counted, find};

/// The argument, read; nothing was opened yet.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbeddingArg {
    pub path: PathBuf,
    word: Option<String>,
}

impl EmbeddingArg {
    /// What follows the last `=` is the word; a file may have one in its name if that ends with `.safetensors`.
    pub fn parse(arg: &str) -> Result<Self> {
        let (path, word) = match arg.rsplit_once('=') {
            Some((path, word)) if !arg.ends_with(".safetensors") => (path, Some(word.trim())),
            _ => (arg, None),
        };
        ensure!(!path.is_empty(), "name a file");
        ensure!(word != Some(""), "names no word behind its `=`; write FILE=WORD, or FILE alone");
        Ok(Self { path: path.into(), word: word.map(str::to_owned) })
    }

    /// Reads the file, and says what of it has no use.
    pub fn open(&self) -> Result<Embedding> {
        let embedding = Embedding::read(&self.path, self.word.as_deref())?;
        if let Some(second) = &embedding.second {
            note(&format!(
                "{}: {} for the second text encoder of Stable Diffusion XL, which this model lacks, {} not used",
                self.path.display(),
                counted(second.count(), "vector"),
                if second.count() == 1 { "is" } else { "are" }
            ));
        }
        Ok(embedding)
    }
}

/// Which of the words with vectors of their own the prompts have.
pub fn notes(tokenizer: &ClipTokenizer, prompt: &str, negative: &str) -> Result<Vec<String>> {
    let note = |word: &strata_model::Tag| {
        let has = |text: &str| Ok::<_, strata_model::Error>(!find(tokenizer, text, [word])?.is_empty());
        let place = match (has(prompt)?, has(negative)?) {
            (true, true) => "in the prompt and in the negative prompt",
            (true, false) => "in the prompt",
            (false, true) => "in the negative prompt",
            (false, false) => "in neither prompt, so it does nothing",
        };
        let count = word.key().map_or(0, |key| key.count());
        Ok(format!("embedding {}: {}, {place}", word.text(), counted(count, "vector")))
    };
    tokenizer.words().iter().map(note).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_after_an_equals_sign() {
        for (arg, path, word) in [
            ("a.safetensors", "a.safetensors", None),
            ("a.safetensors=<cat>", "a.safetensors", Some("<cat>")),
            ("a=b.safetensors", "a=b.safetensors", None),
            ("a=b.safetensors=c d", "a=b.safetensors", Some("c d")),
        ] {
            let word = word.map(str::to_owned);
            assert_eq!(EmbeddingArg::parse(arg).unwrap(), EmbeddingArg { path: path.into(), word });
        }
        for arg in ["", "=x", "a= "] {
            assert!(EmbeddingArg::parse(arg).is_err(), "{arg}");
        }
    }
}
