//! The HTTP API over a real engine on a tiny model: what OpenAI's clients send and read.

mod answers;
mod client;
mod guided;
mod neighbours;
mod operation;
mod refusals;
