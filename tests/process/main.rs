//! `palimpsest serve` as a process over a tiny model: what only a process shows.
#![forbid(unsafe_code)]

mod group;
mod idle;
mod pipes;
mod ready;
mod serving;
mod traces;
