//! Looking at pictures and captions before a run, and at what a LoRA does after it; and the pages that show what was found.

pub mod lint;
pub mod probe;
pub(crate) mod sheet;
