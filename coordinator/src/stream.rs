//! The ring between the driver and one request's reader: bounded, numbered, and cheap for the
//! driver.
//!
//! The driver never waits for a reader. It pauses a sequence whose ring is full, so a slow reader
//! costs `capacity` tokens of memory and no more; the reader wakes the driver when half of the ring
//! is free again, and when it goes away.
//!
//! `sync` holds the primitives that the ring is made of, so that a test can run the same file under
//! a checker of schedules.

mod ring;
mod sync;

#[cfg(test)]
mod schedules;
#[cfg(test)]
mod tests;

pub use ring::{Item, Lag, Reader, ReaderState, Reading, Token, Writer, ring};
