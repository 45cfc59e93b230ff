//! What kernels and whole steps take at the shapes of Stable Diffusion 1.5, on the GPU's own clock, and how that compares with
//! what the same GPU can do at best.
//!
//! [`parity`] compares with PyTorch's numbers.
//!
//! [`list`] names kernels, [`run`] times them, a U-Net's forward pass and training step, VAE and CLIP, all on random weights,
//! and makes a [`Report`]. [`roofline`] draws it.

mod case;
mod clock;
mod compare;
mod models;
mod ops;
pub mod parity;
mod report;
mod roofline;
mod run;

pub use case::Case;
pub use compare::{Change, compare};
pub use report::{Ceilings, Device, Kernel, Report, Row};
pub use roofline::roofline;
pub use run::{Options, list, run, tune};

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
