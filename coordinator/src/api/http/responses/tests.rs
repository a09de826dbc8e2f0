//! The routes over a fake rank, without sockets: what is answered, what the rank reads, what is
//! kept.

mod answers;
mod chains;
mod server;
mod streams;
