//! Tensor kernels behind one [`Backend`] trait.
//!
//! # Axis legend
//! `T` token rows of a step · `H` query heads · `K` KV heads · `G = H/K` query heads of one KV head
//! · `D` head dim · `E` hidden size · `F` feed-forward size · `V` vocabulary · `P` slots of one
//! page · `L` slots of one KV head. Arrays are row-major, innermost axis last.
//!
//! # The determinism contract
//! Every output element is reduced in an order that depends only on its own inputs: never on how
//! many rows share the call, on how a sequence was cut into pieces, on the number of threads, or on
//! the instruction set that was found. A product that ranks sum does not depend on how many they
//! are either: see [`fixed`].

pub mod backend;
mod centroids;
#[cfg(any(test, feature = "testing"))]
pub mod conformance;
pub mod cpu;
pub mod cuda;
pub mod error;
pub mod fixed;
pub mod latent;
#[cfg(any(test, feature = "testing"))]
pub mod reference;
pub mod sample;
pub mod score;
pub mod select;
mod shapes;
pub mod sums;

pub use backend::{
    AssociativeLayer, Attention, AttentionItem, Backend, BlockSize, Boundary, Buffers, Cache,
    DecodeStep, Features, IndexItem, IndexShape, Indexing, LEAST_MASS, LatentMemory, ObserveItem,
    Products, QkNorm, RankSums, ReadoutItem, Reduce, RotateItem, Rows, Sampling, Scoring,
    SelectBudget, SelectHead, SplitItem, SplitQkv, Steps, WeightType, WeightView, parts,
};
pub use error::{Error, Result};
pub use latent::{LatentHead, LatentId, LatentKind, LatentState};
pub use score::{NoteItem, ScoreItem, ScoreRule};
pub use select::SelectItem;
pub use shapes::{HeadPages, KvType, PageId, PageShape, QkvShape};
