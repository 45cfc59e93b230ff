//! What the linter found, and how it is written.

use std::fmt::{self, Display, Write as _};
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use super::html::Card;
use super::{Reading, Text};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It breaks the feature.
    Error,
    /// It weakens the feature, or lets it leak.
    Warning,
    /// It is as well to know.
    Note,
}

/// What kind of finding it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Code {
    /// `missing-tag`: captions without a tag of their feature.
    MissingTag,
    /// `foreign-tag`: captions with another feature's tag.
    ForeignTag,
    /// `empty-caption`: captions without a token.
    EmptyCaption,
    /// `empty-tag`: a feature without a tag, or a tag without a token.
    EmptyTag,
    /// `unusable-tag`: a tag that cannot call a feature, such as a single letter.
    UnusableTag,
    /// `same-tag`: two features with one tag.
    SameTag,
    /// `contained-tag`: a tag that is the beginning or another part of another feature's.
    ContainedTag,
    /// `corrupt-picture`: pictures that cannot be read.
    CorruptPicture,
    /// `describing-word`: captions that say what the feature is.
    DescribingWord,
    /// `tag-word`: captions with a word of the tag outside it.
    TagWord,
    /// `constant-word`: words that nearly all captions have.
    ConstantWord,
    /// `little-variety`: captions that say too little beside the tag.
    LittleVariety,
    /// `duplicate-caption`: captions that are the same.
    DuplicateCaption,
    /// `vocabulary-tag`: a tag that is one token.
    VocabularyTag,
    /// `ordinary-tag`: a tag with words that the base model knows.
    OrdinaryTag,
    /// `few-pictures`: a feature with too few pictures.
    FewPictures,
    /// `imbalance`: a feature with far fewer pictures than another.
    Imbalance,
    /// `small-picture`: pictures smaller than they are trained.
    SmallPicture,
    /// `blurred-picture`: pictures without sharp edges.
    BlurredPicture,
    /// `transparency`: pictures that let the background through.
    Transparency,
    /// `one-background`: nearly all pictures have the same border.
    OneBackground,
    /// `duplicate-picture`: pictures that are the same.
    DuplicatePicture,
    /// `near-duplicate-picture`: pictures that look the same.
    NearDuplicatePicture,
    /// `shared-picture`: pictures of several features that look the same.
    SharedPicture,
    /// `long-caption`: captions longer than the text encoder reads at once.
    LongCaption,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What kind it is.
    pub code: Code,
    /// The feature it is about.
    pub feature: String,
    /// The pictures it is about, by file or by caption. None for a finding about tags, or about a dataset as a whole.
    pub files: Vec<Concerned>,
    /// What is wrong, and what to do.
    pub message: String,
}

/// A picture that a finding is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Concerned {
    /// The picture's file.
    #[serde(serialize_with = "as_shown")]
    pub path: PathBuf,
    /// What the finding is in this one, such as `300 × 200`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// A feature in numbers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FeatureSummary {
    /// Its name.
    pub name: String,
    /// Its pictures.
    pub pictures: usize,
    /// Findings that are errors.
    pub errors: usize,
    /// Findings that are warnings.
    pub warnings: usize,
    /// Its tags.
    pub tags: Vec<TagSummary>,
}

/// A tag as the model sees it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TagSummary {
    /// The tag.
    pub tag: String,
    /// What it is split into.
    pub tokens: Vec<TagToken>,
    /// Words that begin as nearly the same vector.
    pub nearest: Vec<Nearest>,
}

/// A token of a tag.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TagToken {
    /// Its number in the vocabulary.
    pub id: u32,
    /// Its spelling there; `</w>` closes a word.
    pub piece: String,
}

/// A word of the vocabulary, and how near it is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Nearest {
    /// The word.
    pub word: String,
    /// Cosine of its vector with the mean of the tag's.
    pub cosine: f32,
}

/// All that was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// One of each feature.
    pub features: Vec<FeatureSummary>,
    /// By feature, errors first.
    pub findings: Vec<Finding>,
    #[serde(skip)]
    pub(super) cards: Vec<Card>,
}

impl Code {
    /// How bad findings of this kind are.
    pub fn severity(self) -> Severity {
        match self {
            Self::LongCaption => Severity::Note,
            code if code <= Self::CorruptPicture => Severity::Error,
            _ => Severity::Warning,
        }
    }
}

impl Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(match self {
            Self::MissingTag => "missing-tag",
            Self::ForeignTag => "foreign-tag",
            Self::EmptyCaption => "empty-caption",
            Self::EmptyTag => "empty-tag",
            Self::UnusableTag => "unusable-tag",
            Self::SameTag => "same-tag",
            Self::ContainedTag => "contained-tag",
            Self::CorruptPicture => "corrupt-picture",
            Self::DescribingWord => "describing-word",
            Self::TagWord => "tag-word",
            Self::ConstantWord => "constant-word",
            Self::LittleVariety => "little-variety",
            Self::DuplicateCaption => "duplicate-caption",
            Self::VocabularyTag => "vocabulary-tag",
            Self::OrdinaryTag => "ordinary-tag",
            Self::FewPictures => "few-pictures",
            Self::Imbalance => "imbalance",
            Self::SmallPicture => "small-picture",
            Self::BlurredPicture => "blurred-picture",
            Self::Transparency => "transparency",
            Self::OneBackground => "one-background",
            Self::DuplicatePicture => "duplicate-picture",
            Self::NearDuplicatePicture => "near-duplicate-picture",
            Self::SharedPicture => "shared-picture",
            Self::LongCaption => "long-caption",
        })
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        })
    }
}

/// Serialises a path as it is shown, since one that is not Unicode has no other form in JSON.
fn as_shown<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

impl Concerned {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), note: None }
    }

    pub(super) fn noted(path: &Path, note: String) -> Self {
        Self { path: path.to_owned(), note: Some(note) }
    }
}

/// The message and the files.
impl Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.message)?;
        if self.files.is_empty() { Ok(()) } else { write!(f, ": {}", listing(&self.files, None)) }
    }
}

impl Finding {
    /// A finding about a feature as a whole.
    pub(super) fn new(code: Code, feature: &str, message: String) -> Self {
        Self { severity: code.severity(), code, feature: feature.to_owned(), files: Vec::new(), message }
    }

    /// The same about some files; none if there are none.
    pub(super) fn concerning(mut self, files: impl IntoIterator<Item = Concerned>) -> Option<Self> {
        self.files.extend(files);
        if self.files.is_empty() { None } else { Some(self) }
    }
}

/// A feature's summary, with its findings yet to be counted.
pub(super) fn summarise(reading: &Reading, text: &Text) -> FeatureSummary {
    /// How many of the nearest words are told: enough to see what the base model takes a tag for.
    const NEAREST: usize = 3;
    let token = |&id: &u32| TagToken { id, piece: text.token(id) };
    let tags = reading.tags.iter().map(|tag| TagSummary {
        tag: tag.encoded.text.to_owned(),
        tokens: tag.encoded.ids.iter().map(token).collect(),
        nearest: text.nearest_words(&tag.encoded.ids, NEAREST),
    });
    FeatureSummary {
        name: reading.name().to_owned(),
        pictures: reading.captions.len(),
        errors: 0,
        warnings: 0,
        tags: tags.collect(),
    }
}

impl Report {
    /// Sorts the findings by feature and severity, and counts them.
    pub(super) fn new(
        mut features: Vec<FeatureSummary>,
        mut findings: Vec<Finding>,
        cards: Vec<Card>,
    ) -> Self {
        for feature in &mut features {
            let count = |severity| {
                findings.iter().filter(|f| f.feature == feature.name && f.severity == severity).count()
            };
            (feature.errors, feature.warnings) = (count(Severity::Error), count(Severity::Warning));
        }
        let place = |f: &Finding| features.iter().position(|feature| feature.name == f.feature);
        findings.sort_by_key(|f| (place(f), f.severity, f.code));
        Self { features, findings, cards }
    }

    /// The findings that are errors.
    pub fn errors(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.severity == Severity::Error)
    }

    /// The findings that are warnings.
    pub fn warnings(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.severity == Severity::Warning)
    }

    /// As plain text for a terminal, by feature, in lines of at most 100 characters.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for (i, feature) in self.features.iter().enumerate() {
            let folder = self.folder(i);
            let place = folder.map_or(String::new(), |folder| format!(" in {}", folder.display()));
            let tags: String = feature.tags.iter().map(|tag| format!(", tag `{}`", tag.tag)).collect();
            let pictures = count(feature.pictures, "picture");
            wrap(&mut text, "", &format!("feature {}: {pictures}{place}{tags}", feature.name));
            let mut said = None;
            for finding in self.findings.iter().filter(|finding| finding.feature == feature.name) {
                let Finding { severity, code, message, .. } = finding;
                // Several groups of duplicates need telling only once what they are.
                if said.replace((code, message)) != Some((code, message)) {
                    wrap(&mut text, "  ", &format!("{severity} {code}: {message}"));
                }
                if !finding.files.is_empty() {
                    wrap(&mut text, "      ", &listing(&finding.files, folder));
                }
            }
        }
        wrap(&mut text, "", &self.totals());
        text
    }

    /// `1 error, 2 warnings`, and the notes if there are any.
    pub(super) fn totals(&self) -> String {
        let (errors, warnings) = (self.errors().count(), self.warnings().count());
        let totals = format!("{}, {}", count(errors, "error"), count(warnings, "warning"));
        match self.findings.len() - errors - warnings {
            0 => totals,
            notes => format!("{totals}, {}", count(notes, "note")),
        }
    }

    /// The folder of a feature's pictures, where they have one.
    fn folder(&self, feature: usize) -> Option<&Path> {
        let mut folders =
            self.cards.iter().filter(|card| card.feature == feature).map(|card| card.path.parent());
        let first = folders.next()??;
        folders.all(|folder| folder == Some(first)).then_some(first)
    }

    /// As JSON: `features` and `findings`.
    #[expect(clippy::missing_panics_doc, reason = "strings and numbers can always be written")]
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("strings and numbers can always be written")
    }
}

impl TagSummary {
    /// How the model sees the tag, in words.
    pub(super) fn evidence(&self) -> String {
        let tokens: Vec<_> =
            self.tokens.iter().map(|token| format!("{} {}", token.id, token.piece)).collect();
        let nearest: Vec<_> =
            self.nearest.iter().map(|near| format!("{} {:.2}", near.word, near.cosine)).collect();
        format!("tokens {}; nearest words {}", tokens.join(", "), nearest.join(", "))
    }
}

/// The files, comma separated, by name where they are in `folder`; a long list is cut.
fn listing(files: &[Concerned], folder: Option<&Path>) -> String {
    const SHOWN: usize = 8;
    let shown = |file: &Concerned| {
        let name =
            folder.and_then(|folder| file.path.strip_prefix(folder).ok()).unwrap_or(&file.path).display();
        file.note.as_ref().map_or(name.to_string(), |note| format!("{name} ({note})"))
    };
    let mut text = files.iter().take(SHOWN).map(shown).collect::<Vec<_>>().join(", ");
    if files.len() > SHOWN {
        let _ = write!(text, " and {} more", files.len() - SHOWN);
    }
    text
}

/// `1 error`, `2 errors`.
pub(super) fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Adds a paragraph in lines of at most 100 characters, the first one after `indent` and the others further in. A word
/// that no line holds, such as a long path, is cut.
fn wrap(text: &mut String, indent: &str, paragraph: &str) {
    const WIDTH: usize = 100;
    let mut used = indent.len();
    text.push_str(indent);
    let mut begun = false;
    for word in paragraph.split_whitespace() {
        if begun && used + 1 + word.chars().count() <= WIDTH {
            text.push(' ');
            used += 1;
        } else if begun {
            used = new_line(text, indent);
        }
        for letter in word.chars() {
            if used == WIDTH {
                used = new_line(text, indent);
            }
            text.push(letter);
            used += 1;
        }
        begun = true;
    }
    text.push('\n');
}

/// Begins a line, and says how long it is.
fn new_line(text: &mut String, indent: &str) -> usize {
    const FURTHER: &str = "    ";
    text.push('\n');
    text.push_str(indent);
    text.push_str(FURTHER);
    indent.len() + FURTHER.len()
}
