//! From TOML to [`Config`], and from an error back to its line and key.

use std::ops::Range;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::Config;
use crate::{Error, Result};

impl Config {
    /// Parses and checks the text of a config. `file` names it in errors, and its folder is where relative paths start.
    ///
    /// # Errors
    /// [`Error::Config`] for a syntax error, an unknown key, a wrong type, or what [`Config::validate`] refuses.
    pub fn parse(text: &str, file: &Path) -> Result<Self> {
        let fail = |offset: Option<usize>, message: String| Error::Config {
            file: Some(file.to_owned()),
            line: offset.map(|offset| text.bytes().take(offset).filter(|&b| b == b'\n').count() + 1),
            message,
        };
        let offset = |e: &toml::de::Error| e.span().map(|span| span.start);

        let table = DeTable::parse(text).map_err(|e| fail(offset(&e), e.message().trim().to_owned()))?;
        let mut config: Self = toml::from_str(text).map_err(|e| {
            let key = offset(&e).and_then(|offset| key_at(table.get_ref(), offset));
            fail(offset(&e), explain(e.message(), key.as_deref()))
        })?;
        config.check().map_err(|problem| fail(find(table.get_ref(), &problem.key), problem.message()))?;

        config.resolve(file.parent().unwrap_or(Path::new("")));
        Ok(config)
    }

    /// Makes every path relative to `folder`, unless it is absolute.
    fn resolve(&mut self, folder: &Path) {
        // a run with features has no folder of its own
        let own = self.feature.is_empty().then_some(&mut self.dataset.folder);
        let paths = [&mut self.model, &mut self.output].into_iter().chain(own);
        let optional = self
            .log
            .iter_mut()
            .chain(self.tensorboard.as_mut())
            .chain(self.feature.iter_mut().filter_map(|f| f.output.as_mut()));
        for path in paths.chain(optional) {
            *path = folder.join(std::mem::take(path));
        }
        for feature in &mut self.feature {
            feature.dataset.folder = folder.join(&feature.dataset.folder);
            if let Some(silence) = feature.silence.as_mut().filter(|s| s.bank_file().is_some()) {
                silence.bank = folder.join(&silence.bank).to_string_lossy().into_owned();
            }
        }
    }
}

/// Says what serde said in the words of a config: which key, and the known name nearest to a misspelt one.
fn explain(message: &str, key: Option<&str>) -> String {
    let message = message.trim().replacen("unknown field", "unknown key", 1);
    let hint = match message.split_once(", expected ") {
        // The misspelt name is quoted before the comma, the known ones after it.
        Some((unknown, known)) if message.starts_with("unknown") => unknown
            .split('`')
            .nth(1)
            .and_then(|name| nearest(name, known.split('`').skip(1).step_by(2)))
            .map(|known| format!("; did you mean `{known}`?"))
            .unwrap_or_default(),
        _ => String::new(),
    };
    match key {
        Some(key) if !message.starts_with("unknown key") => format!("{key}: {message}{hint}"),
        _ => format!("{message}{hint}"),
    }
}

/// The known name with the fewest edits to `name`, where at most half of its letters need one.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|known| (edits(name, known), known))
        .filter(|(edits, known)| 2 * edits <= known.chars().count())
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, known)| known)
}

/// Levenshtein distance: how many letters to insert, remove or replace to turn one word into the other.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, cb) in b.iter().enumerate() {
            let replace = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// The key whose name or value holds the byte at `offset`: `train.steps`.
fn key_at(table: &DeTable, offset: usize) -> Option<String> {
    let mut found = None;
    walk(table, "", &mut |key, span| {
        // Deeper keys come later, so that the last one found is the most precise.
        if span.contains(&offset) {
            found = Some(key.to_owned());
        }
    });
    found
}

/// The byte at which `key` begins, where the file has it.
fn find(table: &DeTable, key: &str) -> Option<usize> {
    let mut found = None;
    walk(table, "", &mut |name, span| {
        if name == key {
            found = Some(span.start);
        }
    });
    found
}

/// Calls `visit(path, bytes)` on every key, outer ones first: `train`, `train.steps`, `lora[0].rank`.
fn walk(table: &DeTable, prefix: &str, visit: &mut impl FnMut(&str, Range<usize>)) {
    for (name, value) in table {
        let path = if prefix.is_empty() {
            name.get_ref().to_string()
        } else {
            format!("{prefix}.{}", name.get_ref())
        };
        visit(&path, name.span().start..value.span().end.max(name.span().end));
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
