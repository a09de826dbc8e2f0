//! Offline evaluation of a rank: retrieval tasks after RULER, LongBench, and next-token loss on
//! prose, over lengths, budgets, policies, memories and head budgets.
//!
//! A run goes through these modules from left to right, and each uses only what stands to its left
//! or below it:
//!
//! ```text
//! tasks ▸ prompt ▸ measure ▸ sample ▸ grid        a question, its tokens, one pass, one sample, all
//!    (subject, oracle)     perplexity             a text, window by window
//!                               ▼
//! caches (contracts) ▸ record ▸ store             what was run and what came of it; samples.jsonl
//!                               ▼
//!                       report ▸ plot             tables and SVG, from records alone
//! ```
//! [`show`] stands apart: one prompt as an HTML page. [`draws`] and [`stats`] are below everything.
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
