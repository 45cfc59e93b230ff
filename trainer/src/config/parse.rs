//! From a config file to [`Config`], and from what is wrong with it back to its line and key.

use std::ops::Range;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::check::{Problem, check, join};
use super::section::{Known, Nested, Section};
use super::value::{Value, nearest};
use super::{Config, DatasetConfig};
use crate::{Error, Result};

impl Config {
    /// Reads and checks a config file.
    ///
    /// # Errors
    /// [`Error::Io`] where the file cannot be read, [`Error::Config`] where it is not UTF-8 or leaves out a folder that is
    /// not where it would be by default, else whatever [`Config::parse`] says.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io("read config", path))?;
        let fail = |(line, message)| Error::Config { file: Some(path.to_owned()), line, message };
        let text = decode(bytes).map_err(fail)?;
        let config = Self::parse(&text, path)?;
        match left_out(&text, &config) {
            Some(message) => Err(fail((None, message))),
            None => Ok(config),
        }
    }

    /// Parses and checks the text of a config. `file` names it in errors, and its folder is where relative paths start.
    ///
    /// # Errors
    /// [`Error::Config`] for a syntax error, a key that is unknown or given twice, a wrong type, or what
    /// [`Config::validate`] refuses.
    pub fn parse(text: &str, file: &Path) -> Result<Self> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let fail = |offset: Option<usize>, message: String| Error::Config {
            file: Some(file.to_owned()),
            line: offset.map(|offset| line(text, offset)),
            message,
        };
        let (table, errors) = DeTable::parse_recoverable(text);
        let table = table.get_ref();
        if let Some(error) = errors.first() {
            let (offset, message) = (error.span().map(|span| span.start), error.message().trim());
            let twice =
                error.span().filter(|_| message == "duplicate key").and_then(|s| twice(text, table, s));
            return Err(fail(offset, twice.unwrap_or_else(|| message.to_owned())));
        }
        let problem = |problem: Problem| fail(find(table, &problem.key), problem.message);
        let mut config = Self::default();
        Source { text, table, at: String::new() }.fill(&mut config).map_err(problem)?;
        check(&config, "").map_err(problem)?;
        Section::relocate(&mut config, file.parent().unwrap_or(Path::new("")));
        if !config.feature.is_empty() {
            // such a run has no pictures of its own
            config.dataset = DatasetConfig::default();
        }
        Ok(config)
    }
}

/// Names a folder that every run needs, where the file does not name it and none has its name.
fn left_out(text: &str, config: &Config) -> Option<String> {
    let (table, _) = DeTable::parse_recoverable(text.strip_prefix('\u{feff}').unwrap_or(text));
    let pictures = match &config.feature[..] {
        [] => vec![("dataset".to_owned(), &config.dataset.folder)],
        features => {
            let at = (0..).map(|i| format!("feature[{i}].dataset"));
            at.zip(features.iter().map(|feature| &feature.dataset.folder)).collect()
        }
    };
    let pictures = pictures.into_iter().map(|(at, folder)| (join(&at, "folder"), folder));
    let mut needed = std::iter::once(("model".to_owned(), &config.model)).chain(pictures);
    let (key, folder) =
        needed.find(|(key, folder)| find(table.get_ref(), key).is_none() && !folder.exists())?;
    Some(format!(
        "{key} is not given, and by default it is {}, which is not there; name the folder that is meant",
        folder.display()
    ))
}

/// A table of a file.
pub(crate) struct Source<'a> {
    text: &'a str,
    table: &'a DeTable<'a>,
    /// Where it stands: `train`, `lora[0]`.
    at: String,
}

impl Source<'_> {
    /// Reads the table into a section, which must know every key of it.
    pub fn fill<S: Section>(&self, section: &mut S) -> Result<(), Problem> {
        let known = S::schema();
        let names = || self.table.keys().filter(|name| !known.iter().any(|k| k.name == *name.get_ref()));
        if let Some(name) = names().min_by_key(|name| name.span().start) {
            let name = name.get_ref();
            let message = format!("unknown key `{name}`; {}", hint(name, &kind(&self.at), &known));
            return Err(Problem { key: join(&self.at, name), message });
        }
        section.read(self)
    }

    /// Reads a key, if it is there. What cannot be read is told with the limits of `check`, where it has some.
    pub fn key<V: Value>(
        &self,
        name: &str,
        to: &mut V,
        check: impl Fn(&V) -> Result<(), String>,
    ) -> Result<(), Problem> {
        let Some(value) = self.table.get(name) else { return Ok(()) };
        *to = V::read(value.get_ref()).map_err(|must| {
            let must = V::largest().and_then(|largest| check(&largest).err()).unwrap_or(must);
            let written = self.text.get(value.span()).and_then(|text| text.lines().next());
            Problem::new(join(&self.at, name), written.unwrap_or_default(), must)
        })?;
        Ok(())
    }

    /// Reads the tables of a name, if there are any.
    pub fn tables<N: Nested>(&self, name: &str, to: &mut N) -> Result<(), Problem> {
        let Some(value) = self.table.get(name) else { return Ok(()) };
        let key = join(&self.at, name);
        let (one, several) = (format!("[{}]", kind(&key)), format!("[[{}]]", kind(&key)));
        let wrong = |message: String| Err(Problem { key: key.clone(), message });
        let source = |table, at| Source { text: self.text, table, at };
        match (value.get_ref(), N::REPEATED) {
            (DeValue::Table(table), false) => to.read(&[source(table, key)]),
            (DeValue::Boolean(false), false) if N::SWITCH => {
                to.turn_off();
                Ok(())
            }
            (DeValue::Table(_), true) => {
                wrong(format!("{one}: there may be several of these; write {several}"))
            }
            (DeValue::Array(items), true) => {
                let mut tables = Vec::new();
                for (i, item) in items.iter().enumerate() {
                    match item.get_ref() {
                        DeValue::Table(table) => tables.push(source(table, format!("{key}[{i}]"))),
                        _ => return wrong(format!("{key}: must be tables, each under a line {several}")),
                    }
                }
                to.read(&tables)
            }
            (DeValue::Array(_), false) => wrong(format!("{several}: there is one of these; write {one}")),
            (_, true) => wrong(format!("{key}: must be tables, each under a line {several}")),
            (_, false) if N::SWITCH => wrong(format!("{key}: must be false, or a table under a line {one}")),
            (_, false) => wrong(format!("{key}: must be a table, under a line {one}")),
        }
    }
}

/// `feature.lora` for `feature[0].lora[1]`.
fn kind(at: &str) -> String {
    at.split('[').map(|part| part.split_once(']').map_or(part, |(_, rest)| rest)).collect()
}

/// What may have been meant by a key that the table `at` does not have, or what it has.
fn hint(name: &str, at: &str, known: &[Known]) -> String {
    let same = |k: &Known| k.name == name || k.aliases.contains(&name);
    if let Some(known) = known.iter().find(|known| same(known)) {
        return format!("did you mean `{}`?", known.name);
    }
    let mut elsewhere = Vec::new();
    visit(&<Config as Section>::schema(), "", "", &mut |table, label, known| {
        if same(known) && table != at {
            elsewhere.push((table.to_owned(), format!("`{}` {label}", known.name)));
        }
    });
    // rather within this table
    let within = |(table, _): &(String, String)| !at.is_empty() && table.starts_with(at);
    if elsewhere.iter().any(within) {
        elsewhere.retain(within);
    }
    if !elsewhere.is_empty() {
        let places: Vec<String> = elsewhere.into_iter().map(|(_, place)| place).collect();
        return format!("did you mean {}?", places.join(" or "));
    }
    match nearest(name, known.iter().map(|known| known.name)) {
        Some(known) => format!("did you mean `{known}`?"),
        None => {
            let names: Vec<String> = known.iter().map(|known| format!("`{}`", known.name)).collect();
            format!("known here are {}", names.join(", "))
        }
    }
}

/// Calls `visit(table, where that is, what it may hold)` for every key and table that a config can have.
fn visit(known: &[Known], table: &str, label: &str, each: &mut impl FnMut(&str, &str, &Known)) {
    let label = if table.is_empty() { "at the top of the file" } else { label };
    for known in known {
        each(table, label, known);
        if let Some((repeated, inner)) = &known.table {
            let path = join(table, known.name);
            let label = if *repeated { format!("in [[{path}]]") } else { format!("in [{path}]") };
            visit(inner, &path, &label, each);
        }
    }
}

/// The line of a byte, from 1.
fn line(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|&byte| byte == b'\n').count() + 1
}

/// Says where a key or table whose name stands at `span` was given before.
fn twice(text: &str, table: &DeTable<'_>, span: Range<usize>) -> Option<String> {
    let path = text.get(span.clone())?.lines().next()?;
    let name = path.rsplit('.').next()?.trim_matches(|c: char| "[]\"'".contains(c) || c.is_whitespace());
    let mut first = None;
    walk(table, "", &mut |path, key| {
        let same = path.rsplit('.').next().is_some_and(|last| last == name);
        if same && key.start < span.start {
            first = first.max(Some(key.start));
        }
    });
    let first = first.or_else(|| header(text, name, span.start))?;
    let lines = [first, span.start].map(|offset| line(text, offset));
    Some(format!("`{name}` is given twice, on lines {} and {}; keep one", lines[0], lines[1]))
}

/// The byte at which the line of a table of this name begins, before another byte.
fn header(text: &str, name: &str, before: usize) -> Option<usize> {
    let mut start = 0;
    text.split_inclusive('\n').find_map(|line| {
        let at = start;
        start += line.len();
        let path = line.trim().strip_prefix('[')?.trim_matches(['[', ']', ' ']);
        (start <= before && path.rsplit('.').next() == Some(name)).then_some(at)
    })
}

/// The byte at which `key` begins, where the file has it.
fn find(table: &DeTable<'_>, key: &str) -> Option<usize> {
    let mut found = None;
    walk(table, "", &mut |name, span| {
        if name == key {
            found = Some(span.start);
        }
    });
    found
}

/// Calls `visit(path, bytes of its name)` on every key, outer ones first: `train`, `train.steps`, `lora[0].rank`.
fn walk(table: &DeTable<'_>, at: &str, visit: &mut impl FnMut(&str, Range<usize>)) {
    for (name, value) in table {
        let path = join(at, name.get_ref());
        visit(&path, name.span());
        match value.get_ref() {
            DeValue::Table(inner) => walk(inner, &path, visit),
            DeValue::Array(items) => {
                for (i, item) in items.iter().enumerate() {
                    if let DeValue::Table(inner) = item.get_ref() {
                        walk(inner, &format!("{path}[{i}]"), visit);
                    }
                }
            }
            _ => {}
        }
    }
}

/// The text of a file, or the line at which it stops being UTF-8, and what it may be instead.
fn decode(bytes: Vec<u8>) -> Result<String, (Option<usize>, String)> {
    let zeros = |from: usize| bytes.iter().skip(from).step_by(2).filter(|byte| **byte == 0).count();
    // of ASCII in UTF-16 every second byte is 0
    let wide = 4 * zeros(0).max(zeros(1)) > bytes.len();
    if wide || bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err((None, "is UTF-16; save it as UTF-8".to_owned()));
    }
    if bytes.iter().any(|byte| *byte < b'\t') {
        let message = "is no text; name a TOML file, such as `strata train --print-config` prints";
        return Err((None, message.to_owned()));
    }
    String::from_utf8(bytes).map_err(|error| {
        let (valid, bytes) = (error.utf8_error().valid_up_to(), error.as_bytes());
        let line = bytes[..valid].iter().filter(|&&byte| byte == b'\n').count() + 1;
        let byte = bytes[valid];
        let message =
            format!("byte 0x{byte:02x} is not UTF-8, but perhaps Latin-1 or Windows-1252; save it as UTF-8");
        (Some(line), message)
    })
}
