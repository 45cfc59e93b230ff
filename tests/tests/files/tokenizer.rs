//! CLIP's tokenizer, against transformers' ids.

use std::fs;

use strata_model::ClipTokenizer;
use tempfile::tempdir;

use crate::support::{MODELS, copy_folder, golden, golden_json, put, refused, tokenizer};

#[test]
fn ids_are_those_of_transformers() {
    for model in MODELS {
        let tokenizer = tokenizer(model);
        let tokens = golden_json(model, "tokens.json");
        let ids = |value: &serde_json::Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap() };
        assert_eq!(
            [tokenizer.bos(), tokenizer.eos(), tokenizer.pad()].map(u64::from),
            ["bos", "eos", "pad"].map(|k| tokens[k].as_u64().unwrap())
        );
        let prompts = tokens["prompts"].as_array().unwrap();
        assert!(prompts.len() >= 20);
        for prompt in prompts {
            let text = prompt["text"].as_str().unwrap();
            assert_eq!(tokenizer.ids(text).unwrap(), ids(&prompt["ids_no_special"]), "{model}: {text:?}");
            let padded = tokenizer.encode(text).unwrap();
            assert_eq!(padded, ids(&prompt["ids"]), "{model}: {text:?}");
            assert_eq!(padded.len(), tokenizer.max_length());
        }
        assert_eq!(tokenizer.token(tokenizer.bos()).unwrap(), "<|startoftext|>");
        assert_eq!(tokenizer.token(u32::MAX), None);
    }
}

/// Newer folders have one `tokenizer.json` instead of vocabulary and merges.
#[test]
fn the_single_file_form_gives_the_same_ids() {
    let folder = tempdir().unwrap();
    let from = golden("sd15-tiny", "tokenizer");
    copy_folder(&from, folder.path());
    let vocab: serde_json::Value =
        serde_json::from_slice(&fs::read(from.join("vocab.json")).unwrap()).unwrap();
    let text = fs::read_to_string(from.join("merges.txt")).unwrap();
    let merges: Vec<&str> = text.lines().filter(|l| !l.is_empty() && !l.starts_with("#version")).collect();
    fs::remove_file(folder.path().join("vocab.json")).unwrap();
    let whole =
        serde_json::json!({ "model": { "vocab": vocab, "merges": merges, "end_of_word_suffix": "</w>" } });
    put(folder.path(), "tokenizer.json", whole.to_string());
    let (one, two) = (ClipTokenizer::open(folder.path()).unwrap(), ClipTokenizer::open(&from).unwrap());
    for text in ["a photo of a cat", "it's 42!", "日本語 cafe\u{301}"] {
        assert_eq!(one.encode(text).unwrap(), two.encode(text).unwrap());
    }
    let other = serde_json::json!({ "model": { "vocab": vocab, "merges": [] } });
    put(folder.path(), "tokenizer.json", other.to_string());
    refused(ClipTokenizer::open(folder.path()), &["not a CLIP tokenizer"]);
}

#[test]
fn broken_folders_are_refused() {
    let folder = tempdir().unwrap();
    refused(ClipTokenizer::open(folder.path()), &["vocab.json", "tokenizer.json"]);
    let fresh = || copy_folder(&golden("sd15-tiny", "tokenizer"), folder.path());
    fresh();
    put(folder.path(), "merges.txt", "#version: 0.2\na b c\n");
    refused(ClipTokenizer::open(folder.path()), &["merges.txt", "a b c"]);
    put(folder.path(), "merges.txt", "#version: 0.2\nzzz qqq</w>\n");
    refused(ClipTokenizer::open(folder.path()), &[folder.path().to_str().unwrap()]);
    fresh();
    put(folder.path(), "vocab.json", "[]");
    refused(ClipTokenizer::open(folder.path()), &["vocab.json"]);
}
