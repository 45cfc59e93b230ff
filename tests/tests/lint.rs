//! The purity linter: silence about a clean dataset, every planted fault found and no other, and its reports.

mod faults;
mod reports;
mod set;
