//! The seam between the engine and the device: every operation a decoder needs, and nothing
//! speculative.
//!
//! A device implements the seam part by part. Each part is a trait in a file of its own, and has a
//! suite of its own in `conformance`, so that a new device can be tested before it is
//! complete:
//!
//! | part | what it does | builds on |
//! |---|---|---|
//! | [`Buffers`] | arrays of f32, upload, download | |
//! | [`Steps`] | puts off the calls of a decode step | |
//! | [`Products`] | weight matrices, embedding, products | [`Buffers`] |
//! | [`RankSums`] | products summed over ranks on the device | [`Products`] |
//! | [`Rows`] | norms, sums, gates, gathers | [`Buffers`] |
//! | [`Sampling`] | choice of the next token | [`Buffers`] |
//! | [`Cache`] | pages of keys and values | [`Buffers`] |
//! | [`Attention`] | attention, observed probabilities | [`Cache`] |
//! | [`Scoring`] | notes beside slots, scores of slots | [`Cache`] |
//! | [`Boundary`] | selection, compaction | [`Cache`] |
//! | [`LatentMemory`] | memories of evicted slots, readout | [`Boundary`] |
//! | [`Indexing`] | scores of a pairwise indexer | |
//!
//! Shapes use the axis legend of the crate. A device owns its memory (`Buffer`, `Matrix`,
//! `Pages`); the engine holds page tables and lengths on the host and passes them with each call,
//! so no call needs a host round trip.

mod attention;
mod boundary;
mod buffers;
mod cache;
mod indexing;
mod latent_memory;
mod products;
mod rank_sums;
mod rows;
mod sampling;
mod scoring;
mod steps;
mod weights;

pub use attention::{Attention, AttentionItem, ObserveItem, Reduce};
pub use boundary::{Boundary, SelectBudget, SelectHead};
pub use buffers::Buffers;
pub use cache::{Cache, QkNorm, RotateItem, SplitItem, SplitQkv};
pub use indexing::{IndexItem, IndexShape, Indexing};
pub use latent_memory::{AssociativeLayer, Features, LEAST_MASS, LatentMemory, ReadoutItem};
pub use products::Products;
pub use rank_sums::RankSums;
pub use rows::{CLAMP, RowOperation, Rows};
pub use sampling::Sampling;
pub use scoring::Scoring;
pub use steps::{DecodeStep, Steps};
pub(crate) use weights::GROUP;
pub use weights::{BlockSize, WeightType, WeightView};

pub use crate::shapes::{HeadPages, KvType, PageId, PageShape, QkvShape};

/// All parts, for `use …::parts::*` where methods of one device are called: a bound by [`Backend`]
/// brings them into scope, the type of a device does not.
pub mod parts {
    pub use super::{
        Attention, Backend, Boundary, Buffers, Cache, Indexing, LatentMemory, Products, RankSums,
        Rows, Sampling, Scoring, Steps,
    };
}

/// A device with all parts, which a decoder asks for.
///
/// Calls are synchronous for the caller's purposes: a later call sees the effects of an earlier
/// one, and `download` returns finished values. Shape errors are reported before anything is
/// written.
pub trait Backend:
    Steps + RankSums + Rows + Sampling + Attention + Scoring + LatentMemory + Indexing
{
}

impl<T> Backend for T where
    T: Steps + RankSums + Rows + Sampling + Attention + Scoring + LatentMemory + Indexing
{
}
