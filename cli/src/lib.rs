//! What the `strata` command does that tests want to call as well: comparing Strata with PyTorch, and drawing portraits.

pub mod parity;
pub mod portraits;

/// An error and its causes on one line. Many errors here say their cause themselves; its words are not said again.
pub fn message(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |said, cause| match &said[..] {
        "" => cause,
        _ if said.ends_with(&cause) => said,
        _ => format!("{said}: {cause}"),
    })
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    #[test]
    fn a_cause_is_said_once() {
        let cause = std::io::Error::other("disk full");
        let error = Err::<(), _>(cause).context("cannot write a: disk full").context("saving");
        assert_eq!(super::message(&error.unwrap_err()), "saving: cannot write a: disk full");
    }
}
