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
//!
//! # Map
//! A part of [`Backend`] has the same name in `backend/`, `reference/` and `conformance/`; the
//! kernels of a device are in its own folder.
//!
//! | module | what it holds |
//! |---|---|
//! | [`backend`] | the parts of a device, each a trait, and what their calls take |
//! | [`cpu`] | the CPU: packed weights, SIMD, a thread pool |
//! | [`cuda`] | CUDA GPUs, and an emulated one for tests |
//! | `reference` | the oracle: every part by its definition; feature `testing` |
//! | `conformance` | suites of cases, one for each part, against the oracle; feature `testing` |
//! | [`error`] | what a kernel can refuse |
//! | `quant` | blocks of quantised weights, read plainly |
//! | [`fixed`] | fixed-point sums of products, the same for any number of ranks |
//! | `shapes` | pages, element types of the cache, layouts of heads |
//! | `stored` | slots of a head as bytes of the host |
//! | [`score`] | rules by which slots are scored, and notes beside slots |
//! | [`select`] | which slots stay at a boundary, on the host |
//! | [`latent`], `centroids` | latent memories, on the host |
//! | [`sample`] | the choice of a token, on the host |
//! | [`likelihood`] | how likely known tokens are, on the host |
//! | [`sums`] | sums over ranks that stay on a device |

pub mod backend;
mod centroids;
#[cfg(any(test, feature = "testing"))]
pub mod conformance;
pub mod cpu;
pub mod cuda;
pub mod error;
pub mod fixed;
pub mod latent;
pub mod likelihood;
mod quant;
#[cfg(any(test, feature = "testing"))]
pub mod reference;
pub mod sample;
pub mod score;
pub mod select;
mod shapes;
mod stored;
pub mod sums;

pub use backend::{
    AssociativeLayer, Attention, AttentionItem, Backend, BlockSize, Boundary, Buffers, Cache,
    DecodeStep, Features, IndexItem, IndexShape, Indexing, LEAST_MASS, LatentMemory, ObserveItem,
    Products, QkNorm, RankSums, ReadoutItem, Reduce, RotateItem, RowOperation, Rows, Sampling,
    Scoring, SelectBudget, SelectHead, SplitItem, SplitQkv, Steps, WeightType, WeightView, parts,
};
pub use error::{Error, Result};
pub use latent::{LatentHead, LatentId, LatentKind, LatentState};
pub use quant::dequantize;
#[cfg(any(test, feature = "testing"))]
pub use quant::random_blocks;
pub use score::{NoteItem, ScoreItem, ScoreRule};
pub use select::SelectItem;
pub use shapes::{HeadPages, KvType, PageId, PageList, PageMark, PageShape, QkvShape};
pub use stored::StoredParts;
