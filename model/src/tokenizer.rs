//! CLIP's tokenizer, id for id the one of transformers: NFC, runs of white space to one space, lower case, a split
//! into words, byte-level BPE with `</w>` closing each word, then BOS … EOS padded to the context length.

mod standard;

use crate::{Error, Result, Tag};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers, replace::ReplacePattern};
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::pre_tokenizers::{
    PreTokenizerWrapper, byte_level::ByteLevel, sequence::Sequence as PreTokenizers,
};
use tokenizers::{
    AddedToken, NormalizedString, Normalizer, NormalizerWrapper, SplitDelimiterBehavior, Tokenizer,
};

const BOS: &str = "<|startoftext|>";
const EOS: &str = "<|endoftext|>";

/// What one word is. An apostrophe suffix is a word of its own, and so is each digit.
const WORDS: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// A tokenizer, read from its folder.
pub struct ClipTokenizer {
    folder: PathBuf,
    tokenizer: Tokenizer,
    bos: u32,
    eos: u32,
    pad: u32,
    max_length: usize,
    words: Vec<Tag>,
}

impl ClipTokenizer {
    /// Reads a tokenizer folder: `vocab.json` and `merges.txt`, or `tokenizer.json` in their place;
    /// `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json` where they exist.
    ///
    /// # Errors
    /// A file is missing or damaged, merges and vocabulary do not fit, or a special token has no id.
    pub fn open(folder: &Path) -> Result<Self> {
        let (vocab, merges, stored) = vocabulary(folder)?;
        let settings = settings(folder)?;
        let added = stored.into_iter().chain(added_tokens(folder, &settings)?).collect();
        Self::new(folder, vocab, merges, added, &settings)
    }

    /// Of tokens and ids, merges in order, added tokens, and what a `tokenizer_config.json` says. `folder` names it in errors.
    fn new(
        folder: &Path,
        vocab: Vocab,
        merges: Merges,
        added: Vec<(u32, AddedToken)>,
        settings: &Map<String, Value>,
    ) -> Result<Self> {
        let error = |message: String| Error::Tokenizer { path: folder.into(), message };
        let specials = Specials::new(settings);

        let mut tokenizer =
            backend(vocab, merges, &specials.unk.content).map_err(|e| error(e.to_string()))?;
        // An added token may bring an id of its own; it must get just that one.
        for (id, token) in added {
            let content = token.content.clone();
            tokenizer.add_tokens([token]).map_err(|e| error(e.to_string()))?;
            match tokenizer.token_to_id(&content) {
                Some(found) if found == id => (),
                found => {
                    return Err(error(format!(
                        "added token `{content}` should have id {id}, but gets {found:?}"
                    )));
                }
            }
        }
        let known = tokenizer.get_added_tokens_decoder();
        let mut id_of = |token: &AddedToken| {
            // Tokens the files already describe in full keep their own flags.
            if !known.values().any(|k| k.content == token.content) {
                tokenizer.add_special_tokens([token.clone()]).map_err(|e| error(e.to_string()))?;
            }
            tokenizer
                .token_to_id(&token.content)
                .ok_or_else(|| error(format!("special token `{}` has no id", token.content)))
        };
        // In this order: a token that is two things at once ends with the flags of the later one, as in transformers.
        let (bos, eos) = (id_of(&specials.bos)?, id_of(&specials.eos)?);
        id_of(&specials.unk)?;
        let pad = id_of(&specials.pad)?;

        // Very old files leave the length out or write 1e30 for "no limit".
        let max_length =
            settings.get("model_max_length").and_then(Value::as_u64).filter(|&n| n <= 1 << 16).unwrap_or(77)
                as usize;
        if max_length < 2 {
            return Err(error(format!(
                "model_max_length is {max_length}, which does not even hold BOS and EOS"
            )));
        }
        let words = Vec::new();
        Ok(Self { folder: folder.into(), tokenizer, bos, eos, pad, max_length, words })
    }

    /// Adds words that have vectors of their own, which stand for them in every prompt and caption that is read.
    pub(crate) fn add_words(&mut self, words: impl IntoIterator<Item = Tag>) {
        self.words.extend(words);
    }

    /// The words that have vectors of their own.
    pub fn words(&self) -> &[Tag] {
        &self.words
    }

    /// The text's own ids: no BOS or EOS, not cut, not padded.
    ///
    /// # Errors
    /// Only if the vocabulary lacks a byte and an unknown token to stand in for it.
    pub fn ids(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(|e| self.cannot_encode(text, &e))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The ids of a text, each with the bytes that it stands for. Several tokens may stand for one character of many bytes.
    /// The parts between `cuts`, bytes of the text in order, are read one by one; without cuts these are the ids of
    /// [`ids`](Self::ids).
    ///
    /// # Errors
    /// As [`ids`](Self::ids).
    pub(crate) fn ids_with_places(&self, text: &str, cuts: &[usize]) -> Result<Vec<(u32, Range<usize>)>> {
        let mut tokens = Vec::new();
        let mut from = 0;
        for to in cuts.iter().copied().chain([text.len()]) {
            let part = &text[from..to];
            let encoding = self.tokenizer.encode(part, false).map_err(|e| self.cannot_encode(part, &*e))?;
            let places = encoding.get_offsets().iter().map(|&(start, end)| from + start..from + end);
            tokens.extend(encoding.get_ids().iter().copied().zip(places));
            from = to;
        }
        Ok(tokens)
    }

    /// The text as it is before it is split into words, and which of its bytes came from where.
    ///
    /// # Errors
    /// As [`ids`](Self::ids).
    pub(crate) fn fold(&self, text: &str) -> Result<NormalizedString> {
        let mut folded = NormalizedString::from(text);
        if let Some(normalizer) = self.tokenizer.get_normalizer() {
            normalizer.normalize(&mut folded).map_err(|e| self.cannot_encode(text, &*e))?;
        }
        Ok(folded)
    }

    fn cannot_encode(&self, text: &str, reason: &dyn std::fmt::Display) -> Error {
        let message = format!("cannot encode {text:?}: {reason}");
        Error::Tokenizer { path: self.folder.clone(), message }
    }

    /// BOS, the text's ids cut to fit, EOS, and padding: always `max_length` ids.
    ///
    /// # Errors
    /// The text cannot be encoded.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.wrap(&self.ids(text)?))
    }

    /// BOS, `ids` cut to fit, EOS, and padding: always `max_length` ids.
    pub fn wrap(&self, ids: &[u32]) -> Vec<u32> {
        let mut wrapped = vec![self.bos];
        wrapped.extend(ids.iter().take(self.max_length - 2));
        wrapped.push(self.eos);
        wrapped.resize(self.max_length, self.pad);
        wrapped
    }

    /// The id that begins every text.
    pub fn bos(&self) -> u32 {
        self.bos
    }

    /// The id that ends every text.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// SD1 pads with EOS, SD2 with `!`.
    pub fn pad(&self) -> u32 {
        self.pad
    }

    /// Length of what [`encode`](Self::encode) gives, BOS and EOS included: 77.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// Whether a word ends with this token: it closes with `</w>`, or is an added token, which is whole by itself.
    pub fn ends_word(&self, id: u32) -> bool {
        let added = self.tokenizer.get_added_vocabulary().simple_id_to_token(id).is_some();
        added || self.token(id).is_some_and(|token| token.ends_with("</w>"))
    }

    /// The token that an id stands for, as the vocabulary spells it (`cat</w>`).
    pub fn token(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }
}

fn backend(vocab: Vocab, merges: Merges, unk: &str) -> tokenizers::Result<Tokenizer> {
    let model = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .continuing_subword_prefix(String::new())
        .end_of_word_suffix("</w>".into())
        .unk_token(unk.into())
        .build()?;
    let mut tokenizer = Tokenizer::new(model);
    let spaces = Replace::new(ReplacePattern::Regex(r"\s+".into()), " ")?;
    let normalizers: Vec<NormalizerWrapper> = vec![NFC.into(), spaces.into(), Lowercase.into()];
    tokenizer.with_normalizer(Some(Normalizers::new(normalizers)))?;
    let words = Split::new(SplitPattern::Regex(WORDS.into()), SplitDelimiterBehavior::Removed, true)?;
    let steps: Vec<PreTokenizerWrapper> =
        vec![words.into(), ByteLevel::default().add_prefix_space(false).into()];
    tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(steps)));
    Ok(tokenizer)
}

/// Tokens and ids, merges in order, and the added tokens a `tokenizer.json` describes.
fn vocabulary(folder: &Path) -> Result<(Vocab, Merges, BTreeMap<u32, AddedToken>)> {
    let (vocab, merges, whole) =
        (folder.join("vocab.json"), folder.join("merges.txt"), folder.join("tokenizer.json"));
    if vocab.is_file() && merges.is_file() {
        let text = fs::read_to_string(&merges).map_err(Error::io("read", &merges))?;
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with("#version"));
        let pairs = lines.map(|line| pair(&merges, line)).collect::<Result<_>>()?;
        return Ok((json(&vocab)?, pairs, BTreeMap::new()));
    }
    if !whole.is_file() {
        let message = "expected vocab.json and merges.txt, or tokenizer.json: the model was not fetched whole; fetch these \
                       from where it came from"
            .into();
        return Err(Error::Tokenizer { path: folder.into(), message });
    }

    /// Only what differs between CLIP tokenizers; normalizer and splitting are always CLIP's.
    #[derive(serde::Deserialize)]
    struct Whole {
        model: Model,
        #[serde(default)]
        added_tokens: Vec<Added>,
    }
    #[derive(serde::Deserialize)]
    struct Model {
        vocab: Vocab,
        merges: Vec<Merge>,
        end_of_word_suffix: Option<String>,
    }
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Merge {
        Line(String),
        Pair(String, String),
    }
    #[derive(serde::Deserialize)]
    struct Added {
        id: u32,
        #[serde(flatten)]
        token: AddedToken,
    }
    let Whole { model, added_tokens } = json(&whole)?;
    if model.end_of_word_suffix.as_deref() != Some("</w>") {
        return Err(Error::file(&whole, "not a CLIP tokenizer: its words do not end in `</w>`"));
    }
    let merges = model.merges.into_iter().map(|merge| match merge {
        Merge::Line(line) => pair(&whole, &line),
        Merge::Pair(left, right) => Ok((left, right)),
    });
    let added = added_tokens.into_iter().map(|added| (added.id, added.token)).collect();
    Ok((model.vocab, merges.collect::<Result<_>>()?, added))
}

fn pair(path: &Path, line: &str) -> Result<(String, String)> {
    match line.split_once(' ') {
        Some((left, right)) if !right.contains(' ') => Ok((left.into(), right.into())),
        _ => Err(Error::file(path, format!("merge `{line}` is not two tokens with a space between"))),
    }
}

fn json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read(path).map_err(Error::io("read", path))?;
    serde_json::from_slice(&text).map_err(|e| Error::file(path, format!("not the JSON expected here: {e}")))
}

/// tokenizer_config.json, with special_tokens_map.json laid over it unless the former is of the newer, complete kind.
fn settings(folder: &Path) -> Result<Map<String, Value>> {
    let read = |name: &str| {
        let path = folder.join(name);
        if path.is_file() { json(&path) } else { Ok(Map::new()) }
    };
    let mut settings = read("tokenizer_config.json")?;
    if !settings.contains_key("added_tokens_decoder") {
        settings.extend(read("special_tokens_map.json")?);
    }
    Ok(settings)
}

/// Added tokens by id: `added_tokens_decoder` of newer configurations, or the older `added_tokens.json`.
fn added_tokens(folder: &Path, settings: &Map<String, Value>) -> Result<BTreeMap<u32, AddedToken>> {
    let bad = |id: &str| {
        Error::file(
            folder.join("tokenizer_config.json"),
            format!("added_tokens_decoder: `{id}` is not an id with its token"),
        )
    };
    if let Some(Value::Object(decoder)) = settings.get("added_tokens_decoder") {
        let entry = |(id, value): (&String, &Value)| Some((id.parse().ok()?, added_token(value)?));
        return decoder.iter().map(|item| entry(item).ok_or_else(|| bad(item.0))).collect();
    }
    let path = folder.join("added_tokens.json");
    if !path.is_file() {
        return Ok(BTreeMap::new());
    }
    let tokens: BTreeMap<String, u32> = json(&path)?;
    let special = |content: &String| [BOS, EOS].contains(&content.as_str());
    Ok(tokens
        .into_iter()
        .map(|(content, id)| (id, AddedToken::from(content.clone(), special(&content))))
        .collect())
}

struct Specials {
    bos: AddedToken,
    eos: AddedToken,
    unk: AddedToken,
    pad: AddedToken,
}

impl Specials {
    fn new(settings: &Map<String, Value>) -> Self {
        let token = |key: &str, default: &str| {
            let found = settings.get(key).and_then(added_token);
            found.unwrap_or_else(|| AddedToken::from(default, true)).special(true)
        };
        Self {
            bos: token("bos_token", BOS),
            eos: token("eos_token", EOS),
            unk: token("unk_token", EOS),
            pad: token("pad_token", EOS),
        }
    }
}

/// A plain string, or an object with flags.
fn added_token(value: &Value) -> Option<AddedToken> {
    if let Value::String(content) = value {
        return Some(AddedToken::from(content.clone(), true));
    }
    let flag = |key: &str, default: bool| value.get(key).and_then(Value::as_bool).unwrap_or(default);
    let special = flag("special", false);
    let token = AddedToken::from(value.get("content")?.as_str()?, special);
    let token = token
        .single_word(flag("single_word", false))
        .lstrip(flag("lstrip", false))
        .rstrip(flag("rstrip", false));
    Some(token.normalized(flag("normalized", !special)))
}
