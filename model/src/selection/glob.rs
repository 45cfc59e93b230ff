//! Dotted paths with wildcards.

/// Whether `pattern` names `path` or a module around it. A component `*` of the pattern stands for one or more
/// components, `**` for none or more; within a component `*` stands for any letters and `?` for one.
pub fn contains(pattern: &[&str], path: &[&str]) -> bool {
    fits(pattern, path, false)
}

/// Whether `pattern` names `path` itself, and does so by more than a wildcard in its last component.
pub fn names(pattern: &[&str], path: &[&str]) -> bool {
    !matches!(pattern.last(), Some(&("*" | "**"))) && fits(pattern, path, true)
}

/// Whether the pattern fits all of the path, or unless `whole` its beginning.
fn fits(pattern: &[&str], path: &[&str], whole: bool) -> bool {
    let Some((first, rest)) = pattern.split_first() else { return !whole || path.is_empty() };
    let mut after = (0..=path.len()).map(|skipped| fits(rest, &path[skipped..], whole));
    match *first {
        "**" => after.any(|fits| fits),
        "*" => after.skip(1).any(|fits| fits),
        part => path.split_first().is_some_and(|(name, path)| {
            component(part.as_bytes(), name.as_bytes()) && fits(rest, path, whole)
        }),
    }
}

fn component(pattern: &[u8], name: &[u8]) -> bool {
    match pattern.split_first() {
        None => name.is_empty(),
        Some((b'*', rest)) => (0..=name.len()).any(|skipped| component(rest, &name[skipped..])),
        Some((b'?', rest)) => !name.is_empty() && component(rest, &name[1..]),
        Some((letter, rest)) => name.first() == Some(letter) && component(rest, &name[1..]),
    }
}

#[cfg(test)]
mod tests {
    use super::{contains, names};

    #[test]
    fn wildcards() {
        let path = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0";
        let holds = |pattern: &str| {
            contains(&pattern.split('.').collect::<Vec<_>>(), &path.split('.').collect::<Vec<_>>())
        };
        for pattern in [
            "down_blocks",
            "down_blocks.1",
            "down_blocks.?.attentions",
            "*.attn2",
            "down_blocks.*.attn2.to_*",
            "**.down_blocks.**.to_out",
            path,
        ] {
            assert!(holds(pattern), "{pattern}");
        }
        for pattern in [
            "down_block",
            "attn2",
            "*.down_blocks",
            "down_blocks.1.*.attn1",
            "*.to_o",
            "*.to_out.0.x",
            "down_blocks.??",
        ] {
            assert!(!holds(pattern), "{pattern}");
        }
    }

    #[test]
    fn names_of_the_layer_itself() {
        let path = ["up_blocks", "1", "resnets", "0", "conv1"];
        let named = |pattern: &str| names(&pattern.split('.').collect::<Vec<_>>(), &path);
        for pattern in ["up_blocks.1.resnets.0.conv1", "**.conv1", "*.conv?", "up_blocks.*.c*1"] {
            assert!(named(pattern), "{pattern}");
        }
        for pattern in ["up_blocks.1", "up_blocks.1.*", "**", "*.resnets.0", "conv1", "*.conv2"] {
            assert!(!named(pattern), "{pattern}");
        }
    }
}
