//! Weights in brackets, and `BREAK`.

use std::ops::Range;

use crate::{Error, Found, Result};

/// A part of a prompt that has one weight.
pub(super) struct Span {
    /// Without brackets and backslashes that are not meant themselves.
    pub text: String,
    /// The bytes of the prompt from which each byte of the text came.
    pub places: Vec<Range<usize>>,
    pub weight: f64,
    /// How many chunks end before it.
    pub breaks: usize,
}

/// What ends a chunk.
const BREAK: &str = "BREAK";

impl Span {
    /// A text as it stands.
    pub fn literal(text: &str) -> Self {
        let mut span = Self { text: String::new(), places: Vec::new(), weight: 1.0, breaks: 0 };
        span.push(text, 0, 0);
        span
    }

    /// Adds a text from the byte `at` of the prompt on, where `escape` bytes before it belong to its first character.
    fn push(&mut self, text: &str, at: usize, escape: usize) {
        self.text.push_str(text);
        for (i, c) in text.char_indices() {
            let start = at + i - if i == 0 { escape } else { 0 };
            self.places.extend(std::iter::repeat_n(start..at + i + c.len_utf8(), c.len_utf8()));
        }
    }

    /// A tag of the prompt, which is in this part whole and as it stands, or in another part.
    pub fn find(&self, tag: &Found) -> Option<Found> {
        let start = self.places.partition_point(|place| place.start < tag.bytes.start);
        let starts = self.places.get(start).is_some_and(|place| place.start == tag.bytes.start);
        starts.then(|| Found { tag: tag.tag, bytes: start..start + tag.bytes.len() })
    }

    /// The bytes of the prompt from which a part of the text came.
    pub fn bytes(&self, place: &Range<usize>) -> Range<usize> {
        self.places[place.start].start..self.places[place.end - 1].end
    }
}

/// The parts of a prompt and their weights, as brackets give them; neighbours of one weight are one part. What stands at
/// `own`, places in order, is text whatever brackets it has.
pub(super) fn spans<'a>(text: &str, own: impl IntoIterator<Item = &'a Range<usize>>) -> Result<Vec<Span>> {
    let mut parts: Vec<Span> = Vec::new();
    let (mut round, mut square) = (Vec::new(), Vec::new());
    let multiply = |parts: &mut Vec<Span>, from: usize, factor: f64| {
        parts[from..].iter_mut().for_each(|part| part.weight *= factor);
    };
    let mut own = own.into_iter().peekable();
    let (mut at, mut breaks) = (0, 0);
    while let Some(c) = text[at..].chars().next() {
        let rest = &text[at..];
        let mut length = c.len_utf8();
        // text, and the length of the backslash before it
        let mut literal = None;
        let close = closing_weight(rest).filter(|_| !round.is_empty());
        let tag = own.next_if(|place| place.start == at);
        match c {
            _ if tag.is_some() => {
                length = tag.map_or(0, |place| place.len());
                literal = Some((&rest[..length], 0));
            }
            'B' if is_break(text, at) => {
                length = BREAK.len();
                breaks += 1;
            }
            '\\' => match rest[1..].chars().next().filter(|c| r"()[]\".contains(*c)) {
                // it need not protect what a tag protects
                Some(_) if own.peek().is_some_and(|place| place.start == at + 1) => (),
                Some(_) => {
                    length = 2;
                    literal = Some((&rest[1..2], 1));
                }
                None => literal = Some((&rest[..1], 0)),
            },
            '(' => round.push(parts.len()),
            '[' => square.push(parts.len()),
            ':' if close.is_some() => {
                let (number, bytes) = close.unwrap_or_default();
                let Ok(factor) = number.parse() else {
                    return Err(Error::Input(format!(
                        "the prompt has the weight `{number}`, which is no number; write one such as (cat:1.2)"
                    )));
                };
                length = bytes;
                multiply(&mut parts, round.pop().unwrap_or(0), factor);
            }
            ')' if !round.is_empty() => multiply(&mut parts, round.pop().unwrap_or(0), 1.1),
            ']' if !square.is_empty() => multiply(&mut parts, square.pop().unwrap_or(0), 1.0 / 1.1),
            _ => literal = Some((&rest[..length], 0)),
        }
        if let Some((literal, escape)) = literal {
            // brackets that are open here begin a part of their own
            let fresh =
                [&round, &square].iter().all(|open| open.last().is_none_or(|from| *from < parts.len()));
            let fresh = fresh && breaks == 0;
            let at = at + escape;
            match parts.last_mut().filter(|part| fresh && part.weight == 1.0) {
                Some(part) => part.push(literal, at, escape),
                None => {
                    let mut part = Span { breaks: std::mem::take(&mut breaks), ..Span::literal("") };
                    part.push(literal, at, escape);
                    parts.push(part);
                }
            }
        }
        at += length;
    }
    // a bracket that is never closed reaches to the end
    round.iter().for_each(|from| multiply(&mut parts, *from, 1.1));
    square.iter().for_each(|from| multiply(&mut parts, *from, 1.0 / 1.1));

    let mut merged: Vec<Span> = Vec::new();
    if let Some(part) = parts.iter().find(|part| !(part.weight as f32).is_finite()) {
        return Err(Error::Input(format!(
            "the prompt has a weight that is too large at {:?}; write one such as (cat:1.2)",
            part.text.trim()
        )));
    }
    for part in parts {
        match merged.last_mut().filter(|last| last.weight == part.weight && part.breaks == 0) {
            Some(last) => {
                last.text.push_str(&part.text);
                last.places.extend(part.places);
            }
            None => merged.push(part),
        }
    }
    Ok(merged)
}

/// Whether a chunk ends at a byte of the text: `BREAK` as a word of its own, in capitals.
fn is_break(text: &str, at: usize) -> bool {
    let part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let after = text[at..].strip_prefix(BREAK);
    after.is_some_and(|after| !part(after.chars().next()) && !part(text[..at].chars().next_back()))
}

/// `: 1.2 )` at the start of `text`: the number, and the bytes of it all.
fn closing_weight(text: &str) -> Option<(&str, usize)> {
    let number = text.strip_prefix(':')?.trim_start();
    let digits = number.strip_prefix(['+', '-']).unwrap_or(number);
    let after = digits.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
    if after.len() == digits.len() {
        return None;
    }
    let close = after.trim_start().strip_prefix(')')?;
    Some((&number[..number.len() - after.len()], text.len() - close.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> Vec<(String, f64)> {
        let parts = spans(text, &[]).unwrap();
        parts.into_iter().map(|part| (part.text, (part.weight * 1e4).round() / 1e4)).collect()
    }

    /// A1111's own examples, from the docs of its `parse_prompt_attention`, and more.
    #[test]
    fn brackets_are_a1111s() {
        let cases: [(&str, &[(&str, f64)]); 15] = [
            ("normal text", &[("normal text", 1.0)]),
            ("an (important) word", &[("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
            ("(unbalanced", &[("unbalanced", 1.1)]),
            (r"\(literal\]", &[("(literal]", 1.0)]),
            ("(unnecessary)(parens)", &[("unnecessaryparens", 1.1)]),
            (
                "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
                &[
                    ("a ", 1.0),
                    ("house", 1.573),
                    (" ", 1.1),
                    ("on", 1.0),
                    (" a ", 1.1),
                    ("hill", 0.55),
                    (", sun, ", 1.1),
                    ("sky", 1.4641),
                    (".", 1.1),
                ],
            ),
            ("[x]", &[("x", 0.9091)]),
            ("[(x)]", &[("x", 1.0)]),
            ("a:1.2) b", &[("a:1.2) b", 1.0)]),
            ("(a: -0.5 )b", &[("a", -0.5), ("b", 1.0)]),
            ("(a:b:2)", &[("a:b", 2.0)]),
            (":) ;]", &[(":) ;]", 1.0)]),
            (r"C:\x\\", &[(r"C:\x\", 1.0)]),
            ("()", &[]),
            ("", &[]),
        ];
        for (text, expected) in cases {
            let expected: Vec<(String, f64)> = expected.iter().map(|(t, w)| (t.to_string(), *w)).collect();
            assert_eq!(parts(text), expected, "{text}");
        }
        let error = spans("(a:1.2.3)", &[]).err().unwrap().to_string();
        assert!(error.contains("1.2.3"), "{error}");
        let large = "9".repeat(30);
        for text in [format!("(cat:{large}{large})"), format!("((cat:{large}):{large})")] {
            let error = spans(&text, &[]).err().unwrap().to_string();
            assert!(error.contains("too large at \"cat\""), "{error}");
        }
        // small ones are 0
        assert_eq!(parts(&format!("(a:0.{}1)", "0".repeat(400))), [("a".to_owned(), 0.0)]);
    }

    #[test]
    fn chunks_end_at_break() {
        let of = |text: &str| -> Vec<(String, usize)> {
            spans(text, &[]).unwrap().into_iter().map(|span| (span.text, span.breaks)).collect()
        };
        let parts = |parts: &[(&str, usize)]| -> Vec<(String, usize)> {
            parts.iter().map(|(text, breaks)| (text.to_string(), *breaks)).collect()
        };
        assert_eq!(of("a BREAK b, BREAK"), parts(&[("a ", 0), (" b, ", 1)]));
        assert_eq!(of("BREAK BREAKa BREAK BREAK c"), parts(&[(" BREAKa ", 1), (" ", 1), (" c", 1)]));
        assert_eq!(of("(a BREAK b:1.5) break"), parts(&[("a ", 0), (" b", 1), (" break", 0)]));
        assert_eq!(of("(BREAK)x,BREAK,y"), parts(&[("x,", 1), (",y", 1)]));
        // a tag is itself
        let own = spans("a BREAK b", std::iter::once(&(2..7))).unwrap();
        assert_eq!((own.len(), own[0].breaks), (1, 0));
    }

    #[test]
    fn what_is_a_tags_own_stays() {
        let prompt = r"(hat_(a):1.2), \(a) b\)";
        let own = [1..8, 16..19];
        assert_eq!((&prompt[own[0].clone()], &prompt[own[1].clone()]), ("hat_(a)", "(a)"));
        let spans = spans(prompt, &own).unwrap();
        let texts: Vec<(&str, f64)> = spans.iter().map(|span| (span.text.as_str(), span.weight)).collect();
        assert_eq!(texts, [("hat_(a)", 1.2), (", (a) b)", 1.0)]);
        let places = |own: usize| {
            let tag = Found { tag: 7, bytes: [1..8, 16..19][own].clone() };
            spans.iter().map(|span| Some(span.find(&tag)?.bytes)).collect::<Vec<_>>()
        };
        assert_eq!(places(0), [Some(0..7), None]);
        assert_eq!(places(1), [None, Some(2..5)]);
        // what came of an escape came from its backslash as well
        assert_eq!(&prompt[spans[1].bytes(&(6..8))], r"b\)");
    }
}
