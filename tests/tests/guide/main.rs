//! Answers that a schema, an expression or a grammar guides.

mod ranks;
mod schemas;
mod service;
