//! What keeps a feature from being heard where its tag is not.

pub(crate) mod key;
pub(crate) mod preserve;
pub mod silence;
