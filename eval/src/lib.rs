//! Offline evaluation of a rank: retrieval tasks after RULER, LongBench, and next-token loss on
//! prose, over lengths, budgets, policies, memories and head budgets.
//!
//! Modules from the top down. Each uses only what stands below it:
//!
//! ```text
//! grid, perplexity       all cells of a run; every sample becomes a line of a file
//! report (over plot)     tables and SVG, from records alone: it measures nothing
//! sample                 one sample of a cell (with the policy oracle: over oracle)
//! measure, show          one prompt under one contract: likelihoods and answers, or a page
//! prompt                 a question as token ids, cut at a boundary
//! record, store          what was set and what came of it, as JSON lines
//! tasks                  what is hidden, what is asked, how answers are judged
//! caches, contracts      which caches are compared, and what one means for a prompt
//! draws, stats           random numbers by seed; means with their intervals
//! ```
//!
//! Everything is a function of the seed: sample `i` of a task and length is the same text for every
//! policy and budget, so differences between cells are paired. A run that was cut off goes on where
//! it stopped.
//!
//! LongBench is read from its own files and measured the same way.
//!
//! Hsieh et al., "RULER: What's the Real Context Size of Your Long-Context Language Models?", 2024.
#![forbid(unsafe_code)]

pub mod caches;
pub mod contracts;
pub mod draws;
mod error;
pub mod grid;
pub mod measure;
pub mod oracle;
pub mod perplexity;
pub mod plot;
pub mod prompt;
pub mod record;
pub mod report;
pub mod sample;
pub mod show;
pub mod stats;
pub mod store;
mod subject;
pub mod tasks;

pub use contracts::{Budget, CacheShape};
pub use error::{Error, Result};
pub use grid::{GridSpec, run_grid};
pub use report::Outcome;
pub use subject::{Subject, TextSide};

/// Receives samples done and samples in all.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);
