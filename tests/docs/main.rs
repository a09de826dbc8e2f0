//! What the documents tell a reader to type: every block of commands in README.md and in the book
//! is run in order against the program of this build, and so is every program of `examples/`.
//!
//! ```text
//! a page ─blocks─▶ `sh`, `python`: run      `console`: not run, and a comment above says why
//!                  `sh` that ends with `palimpsest serve` or `coordinator`: left running
//! ```
//!
//! Commands of pages need the default model, whose path is in `PALIMPSEST_TEST_MODEL`. Without it
//! these tests print that they are skipped. `cargo xtask test` sets it.
#![forbid(unsafe_code)]

mod block;
mod examples;
mod names;
mod pages;
mod session;
