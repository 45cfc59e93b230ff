//! What the `strata` command does that tests want to call as well: drawing portraits.

pub mod portraits;
