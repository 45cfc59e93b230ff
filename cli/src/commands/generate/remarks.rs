//! What a prompt holds that other programs read in another way, or that was hardly meant.

use strata_model::counted;

/// Begins what other programs take for a LoRA in the prompt.
pub(super) const CALLS: [&str; 3] = ["<lora:", "<lyco:", "<hypernet:"];

/// What is worth a note about a prompt.
pub fn remarks(prompt: &str) -> Vec<String> {
    let mut remarks = Vec::new();
    let lower = prompt.to_ascii_lowercase();
    if let Some(at) = CALLS.iter().filter_map(|call| lower.find(call)).min() {
        let call = &prompt[at..];
        let call = call.find('>').map_or(call, |end| &call[..=end]);
        remarks.push(format!(
            "`{call}` in the prompt is text like any other; a LoRA is given by --lora FILE:WEIGHT, such as --lora \
             hair.safetensors:0.8, or called so in the prompt from the folder that --lora-dir names"
        ));
    }
    for (open, close, does) in [('(', ')', "x 1.1"), ('[', ']', "/ 1.1")] {
        let (never_closed, never_opened) = unbalanced(prompt, open, close);
        if never_closed > 0 {
            remarks.push(format!(
                "the prompt has `{open}` {} without `{close}`; its weight ({does}) reaches to the end. \
                 `\\{open}` is the character itself",
                counted(never_closed, "time")
            ));
        }
        if never_opened > 0 {
            remarks.push(format!(
                "the prompt has `{close}` {} without `{open}` before it; it is a character like any other",
                counted(never_opened, "time")
            ));
        }
    }
    remarks.extend(no_weight(prompt).map(|(found, number)| {
        format!(
            "`{found}` in the prompt: `{number}` is no weight but text like any other; a weight is written as in (cat:1.2)"
        )
    }));
    remarks
}

/// A bracket that ends like one with a weight, `(cat:nan)` or `(cat:1,2)`, and what stands for the number.
fn no_weight(prompt: &str) -> Option<(&str, &str)> {
    let mut brackets = prompt.split_inclusive(')').filter_map(|part| {
        let open = part.rfind('(')?;
        let (_, number) = part[open..].strip_suffix(')')?.rsplit_once(':')?;
        Some((&part[open..], number.trim()))
    });
    let plain =
        |number: &str| number.parse::<f64>().is_ok_and(f64::is_finite) && !number.contains(['e', 'E']);
    let meant = |number: &str| {
        number.replace(',', ".").parse::<f64>().is_ok()
            || number.trim_end_matches(['f', '%']).parse::<f64>().is_ok()
    };
    brackets.find(|(_, number)| meant(number) && !plain(number))
}

/// How many brackets are not closed, and how many close none. A backslash takes its meaning from what follows.
fn unbalanced(prompt: &str, open: char, close: char) -> (usize, usize) {
    let (mut depth, mut stray) = (0, 0);
    let mut chars = prompt.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                chars.next();
            }
            _ if c == open => depth += 1,
            _ if c == close && depth > 0 => depth -= 1,
            _ if c == close => stray += 1,
            _ => {}
        }
    }
    (depth, stray)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loras_in_the_prompt() {
        let [remark] = &remarks("a cat, <LoRA:hair:0.8>, b")[..] else { panic!() };
        assert!(remark.contains("`<LoRA:hair:0.8>`") && remark.contains("--lora FILE:WEIGHT"), "{remark}");
        assert_eq!(remarks("a cat < lora, (b:1.2), [c]"), [""; 0]);
    }

    #[test]
    fn numbers_that_are_no_weights() {
        for (prompt, found) in [
            ("a (cat:nan), b", Some(("(cat:nan)", "nan"))),
            ("(a:-inf)", Some(("(a:-inf)", "-inf"))),
            ("(a (b:1,2))", Some(("(b:1,2)", "1,2"))),
            ("(a:1e1)", Some(("(a:1e1)", "1e1"))),
            ("(a:50%)", Some(("(a:50%)", "50%"))),
            ("(a:1.2), (b:-.5), (c: 2 ), (d:e), (f:), a:nan, (nan)", None),
        ] {
            assert_eq!(no_weight(prompt), found, "{prompt}");
        }
        let [remark] = &remarks("(a:nan)")[..] else { panic!() };
        assert!(remark.contains("`nan` is no weight"), "{remark}");
    }

    #[test]
    fn brackets_without_their_other_half() {
        for (prompt, round, square) in [
            ("(a (b", (2, 0), (0, 0)),
            (":) ;]", (0, 1), (0, 1)),
            (r"\(a\) (b:1.2) [c]", (0, 0), (0, 0)),
            ("(a]", (1, 0), (0, 1)),
            (r"a\", (0, 0), (0, 0)),
        ] {
            let found = (unbalanced(prompt, '(', ')'), unbalanced(prompt, '[', ']'));
            assert_eq!(found, (round, square), "{prompt}");
        }
        let [open, close] = &remarks("(a]")[..] else { panic!() };
        assert!(open.contains("reaches to the end") && close.contains("a character like any other"));
    }
}
