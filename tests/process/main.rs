//! `palimpsest serve` as a process over a tiny model: what only a process shows.
#![forbid(unsafe_code)]

mod attack;
mod chat;
mod config;
mod devices;
mod group;
mod hub;
mod idle;
#[cfg(feature = "cloud")]
mod objects;
mod pipes;
mod ready;
mod refusals;
mod responses;
mod reuse;
mod serving;
mod sessions;
mod siege;
mod signals;
mod traces;
