//! Everything about Strata that a machine can check, in one binary.

mod checkpointing;
mod cli;
mod dataset;
mod demo;
mod drawing;
mod embeddings;
mod engine;
mod features;
mod files;
mod frozen;
mod gates;
mod goldens;
mod harness_bites;
mod keys;
mod lint;
mod merge;
mod probe;
mod rows;
mod shaders;
mod silence;
mod single_file;
mod support;
mod toy;
mod training;
mod trigger;
mod tuning;
