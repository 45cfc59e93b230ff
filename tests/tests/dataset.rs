//! The trainer's inputs: a run's config, its pictures and captions, and its chance.

mod chance;
mod config;
mod pictures;
