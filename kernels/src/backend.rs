//! The seam between the engine and the device: every operation a decoder needs, and nothing
//! speculative.
//!
//! Shapes use the axis legend of the crate. A backend owns its memory (`Buffer`, `Matrix`,
//! `Pages`); the engine holds page tables and lengths on the host and passes them with each call,
//! so no call needs a host round trip.

use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::latent::{LatentHead, LatentId, LatentKind, LatentState};
use crate::sample::SampleItem;
use crate::score::{NoteItem, ScoreItem};
use crate::sums::DeviceSums;

/// Element type of a weight as stored in a model file. Quantised types come in blocks along the
/// input axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightType {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    BF16,
    /// GGML Q8_0: 32 weights, f16 scale, 8-bit signed.
    Q8_0,
    /// GGML Q4_0: 32 weights, f16 scale, 4-bit minus 8.
    Q4_0,
    /// GGML Q4_1: 32 weights, f16 scale and minimum, 4-bit.
    Q4_1,
    /// GGML Q4_K: 256 weights in 8 groups of 32 with 6-bit scales and minima.
    Q4K,
    /// GGML Q6_K: 256 weights in 16 groups of 16 with 8-bit scales, 6-bit minus 32.
    Q6K,
}

impl WeightType {
    /// Weights per block and bytes per block, as laid out in a file.
    pub const fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q8_0 => (32, 34),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q4K => (256, 144),
            Self::Q6K => (256, 210),
        }
    }

    /// Bytes of `len` consecutive weights; `None` when `len` does not fill whole blocks or the size
    /// overflows.
    pub const fn bytes(self, len: usize) -> Option<usize> {
        let (weights, bytes) = self.block();
        if len.is_multiple_of(weights) {
            (len / weights).checked_mul(bytes)
        } else {
            None
        }
    }
}

/// A weight matrix as a model file holds it: `rows` outputs by `cols` inputs, row-major blocks,
/// little-endian.
#[derive(Debug, Clone, Copy)]
pub struct WeightView<'a> {
    /// Stored element type.
    pub dtype: WeightType,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// `dtype.bytes(rows * cols)` bytes.
    pub bytes: &'a [u8],
}

/// Index of a page in a backend's `Pages`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageId(pub u32);

/// Element type of cached keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvType {
    /// IEEE single: exact, for parity tests.
    F32,
    /// IEEE half: the default.
    F16,
    /// 8-bit integers, half the bytes of [`Self::F16`]: each key and each value, once rotated, has
    /// a scale `s` of its own, the largest half with `127 s <= max |x|` (at most the largest half
    /// there is), and is stored as `x / s` rounded to the nearest integer, ties to even, within
    /// -127 and 127; NaN, and all of a vector whose scale is 0, as 0. It stands for integer times
    /// scale, which f32 holds exactly, so that what was read and is written again has the same
    /// bits.
    Q8,
}

impl KvType {
    /// Name in options and records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8 => "q8",
        }
    }

    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
            Self::Q8 => 1,
        }
    }

    /// Bytes that a key or a value has beside its elements.
    pub const fn scale_bytes(self) -> usize {
        match self {
            Self::F32 | Self::F16 => 0,
            Self::Q8 => 2,
        }
    }

    /// Bytes of one slot: a key and a value of `head_dim` elements.
    pub const fn slot_bytes(self, head_dim: usize) -> usize {
        2 * (head_dim * self.bytes() + self.scale_bytes())
    }
}

/// Geometry of the slot arena. A page holds the keys and values of [`PageShape::SLOTS`] slots of
/// one KV head, and the scales of all keys and then of all values behind them where the type has
/// scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageShape {
    /// `D`.
    pub head_dim: usize,
    /// Stored element type.
    pub dtype: KvType,
}

impl PageShape {
    /// `P`: slots of one page.
    pub const SLOTS: usize = 32;

    /// Bytes of a note, which a policy may keep with a slot.
    pub const NOTE_BYTES: usize = 8;

    /// Bytes that a page costs: keys, values and the notes of its slots.
    pub const fn cost(&self) -> usize {
        self.bytes() + Self::SLOTS * Self::NOTE_BYTES
    }

    /// Bytes of one page, keys and values.
    pub const fn bytes(&self) -> usize {
        Self::SLOTS * self.dtype.slot_bytes(self.head_dim)
    }
}

/// The slots of one KV head of one sequence in one layer: slot `i` lives in `pages[i / P]` at `i %
/// P`.
#[derive(Debug, Clone, Copy)]
pub struct HeadPages<'a> {
    /// Page table, at least `ceil(len / P)` entries.
    pub pages: &'a [PageId],
    /// Slots that hold an entry.
    pub len: usize,
}

/// Head layout of a fused query/key/value row: `H*D` query values, then `K*D` key values, then
/// `K*D` values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QkvShape {
    /// `H`, of this rank.
    pub heads: usize,
    /// `K`, of this rank.
    pub kv_heads: usize,
    /// `D`.
    pub head_dim: usize,
}

impl QkvShape {
    /// Values of one fused row.
    pub const fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }
}

/// Where `split_qkv` writes the keys and values of one KV head of one sequence.
#[derive(Debug, Clone)]
pub struct SplitItem<'a> {
    /// Token rows of this sequence in the step.
    pub rows: Range<usize>,
    /// KV head of this rank.
    pub kv_head: usize,
    /// The head's slots; row `rows.start + i` becomes slot `slots.len + i`.
    pub slots: HeadPages<'a>,
}

/// One KV head of one sequence in an attention call.
#[derive(Debug, Clone)]
pub struct AttentionItem<'a> {
    /// Token rows of this sequence in the step.
    pub rows: Range<usize>,
    /// KV head of this rank; its query heads are `kv_head*G .. (kv_head+1)*G`.
    pub kv_head: usize,
    /// All slots **including** the entries of `rows`, which are the last `rows.len()` ones: row
    /// `rows.start + i` sees slots `0 .. len - rows.len() + i + 1`.
    pub slots: HeadPages<'a>,
    /// First visible slot of each row (`rows.len()` entries) for sliding-window models; `None`:
    /// all are visible.
    pub first_visible: Option<&'a [u32]>,
    /// Centroids of evicted entries, read in the same softmax; `None`, and one that holds nothing
    /// yet: no such logits.
    pub centroids: Option<LatentHead>,
}

/// How attention probabilities are reduced over query rows by [`Backend::observe`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduce {
    /// Sum over rows.
    Sum,
    /// Maximum over rows.
    Max,
}

/// One KV head of one sequence whose attention probabilities are observed.
#[derive(Debug, Clone)]
pub struct ObserveItem<'a> {
    /// What is attended, as in the attention call. `attend.rows` may be the last part of the
    /// sequence's rows only.
    pub attend: AttentionItem<'a>,
    /// Reduction over the rows; the `G` query heads of a row are averaged first for `Sum`,
    /// maximised for `Max`.
    pub reduce: Reduce,
    /// What the probabilities of each row are multiplied with (`rows.len()` entries, at least 0);
    /// `None`: 1.
    pub row_weights: Option<&'a [f32]>,
}

/// Learned part of associative memories, of which a call reads one layer: linear features `phi(z) =
/// features * z` and a gate per KV head.
///
/// Source: IndexMem (arXiv 2605.25475), latent memory.
pub struct AssociativeLayer<'a, B: Backend + ?Sized> {
    /// Heads of a layer on this rank.
    pub shape: QkvShape,
    /// `[layers, F, D]`; a memory may use fewer features, then the first ones.
    pub features: &'a B::Buffer,
    /// `F`.
    pub count: usize,
    /// Gates of this rank's KV heads `[layers, K]`.
    pub gates: &'a B::Buffer,
    /// The layer.
    pub layer: usize,
}

impl<B: Backend + ?Sized> Clone for AssociativeLayer<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend + ?Sized> Copy for AssociativeLayer<'_, B> {}

/// Smallest denominator of [`Backend::readout`].
pub const LEAST_MASS: f32 = 1e-6;

/// Associative memory of one KV head of one sequence, read by [`Backend::readout`].
#[derive(Debug, Clone)]
pub struct ReadoutItem {
    /// Token rows of this sequence in the step.
    pub rows: Range<usize>,
    /// KV head of this rank.
    pub kv_head: usize,
    /// The memory.
    pub memory: LatentHead,
}

/// Heads and width of a pairwise indexer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexShape {
    /// Indexer heads of one KV head.
    pub heads: usize,
    /// Width of indexer queries and keys.
    pub dim: usize,
}

/// New queries and all slots of one KV head of one sequence, for [`Backend::index`]. Arrays are on
/// the host, as all that policies store is.
#[derive(Debug)]
pub struct IndexItem<'a> {
    /// New rows `R`, whose own slots are the last ones: row `i` sees slots `0 .. L - R + i + 1`.
    pub rows: usize,
    /// Indexer queries `[R, heads, dim]`.
    pub queries: &'a [f32],
    /// Weights of the heads `[R, heads]`.
    pub weights: &'a [f32],
    /// Indexer keys of the slots `[L, dim]`.
    pub keys: &'a [f32],
    /// Largest score of each slot so far `[L]`; negative infinity where no query has seen it.
    pub scores: &'a mut [f32],
}

/// How many slots stay at a boundary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SelectBudget {
    /// Head `i` belongs to pool `i % pools`; the number of heads is a multiple of it.
    pub pools: usize,
    /// Candidates that the heads of a pool keep on average.
    pub take: usize,
    /// Candidates that every head keeps for itself, at most `take`.
    pub floor: usize,
}

/// Slots of one KV head that are ranked at a boundary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelectHead {
    /// `L`: its slots.
    pub len: usize,
    /// Slots that compete; those before and behind stay.
    pub candidates: Range<usize>,
}

/// Re-rotation of one KV head's cached keys (positions `compacted`).
#[derive(Debug, Clone)]
pub struct RotateItem<'a> {
    /// The head's slots.
    pub slots: HeadPages<'a>,
    /// For each slot the change of its rotary position, in tokens.
    pub delta: &'a [f32],
}

/// What is known of a step of decoding before it begins.
#[derive(Debug, Clone, Copy)]
pub struct DecodeStep<'a> {
    /// Sequences, which are the rows of the step.
    pub rows: usize,
    /// `K`, of this rank.
    pub kv_heads: usize,
    /// For each layer, slots that the KV heads of its sequences may hold until their next
    /// boundaries.
    pub slots: &'a [Vec<usize>],
}

/// A device with the operations of a decoder layer and of the bounded cache.
///
/// Calls are synchronous for the caller's purposes: a later call sees the effects of an earlier
/// one, and `download` returns finished values. Shape errors are reported before anything is
/// written.
pub trait Backend: Send + Sync + 'static {
    /// Array of f32 on the device.
    type Buffer: Send + Sync;
    /// Weight matrix in the device's own layout.
    type Matrix: Send + Sync;
    /// Slot arena: pages of keys and values.
    type Pages: Send;
    /// Which slots of some heads stay.
    type Kept: Send;

    /// Name for logs and reports, such as `cpu (avx2, 2 threads, int8 activations)`.
    fn name(&self) -> String;

    /// Begins a step of decoding: one token of each of `step.rows` sequences. A device may put off
    /// what it is asked for until [`Self::end_decode`], or until the host waits for something, so
    /// as to start all of it as one; results are the same. Returns the rows that calls of the step
    /// are to be made with, `step.rows` or a few more: those beyond belong to no sequence and no
    /// item, and what buffers hold of them is not used. `None`: steps are not put off, and nothing
    /// changes.
    fn begin_decode(&self, step: &DecodeStep<'_>) -> Option<usize> {
        let _ = step;
        None
    }
    /// Ends it: all that was asked for is started.
    fn end_decode(&self) -> Result<()> {
        Ok(())
    }
    /// Ends a step that failed: what was put off is dropped.
    fn cancel_decode(&self) {}

    /// A zeroed array of `len` values.
    fn alloc(&self, len: usize) -> Result<Self::Buffer>;
    /// Writes `src` at `offset` of `dst`.
    fn upload(&self, src: &[f32], dst: &mut Self::Buffer, offset: usize) -> Result<()>;
    /// Reads `dst.len()` values from `offset` of `src`.
    fn download(&self, src: &Self::Buffer, offset: usize, dst: &mut [f32]) -> Result<()>;

    /// Packs weights for this device. Several views are stacked along the output axis (fused
    /// projections); their `cols` must agree, their types may differ.
    fn load_matrix(&self, parts: &[WeightView<'_>]) -> Result<Self::Matrix>;
    /// Bytes that a packed matrix occupies on the device.
    fn matrix_bytes(&self, matrix: &Self::Matrix) -> usize;

    /// `out[t] = table[ids[t]]`, dequantised. `out`: `[T, E]`.
    fn embed(&self, table: &Self::Matrix, ids: &[u32], out: &mut Self::Buffer) -> Result<()>;
    /// `out[T, N] = x[T, C] · matrixᵀ (+ bias[N])`, f32 accumulation in a fixed order per element.
    fn matmul(
        &self,
        matrix: &Self::Matrix,
        x: &Self::Buffer,
        rows: usize,
        bias: Option<&Self::Buffer>,
        out: &mut Self::Buffer,
    ) -> Result<()>;
    /// [`Self::matmul`] of a row-parallel matrix, whose columns come in units that end at columns
    /// `ends` (increasing, the last one `C`; at most [`MAX_UNITS`](crate::fixed::MAX_UNITS)): each
    /// unit is summed as by `matmul`, the units are added in fixed point ([`crate::fixed`]) and
    /// rounded to f32 once. `out`: `[T, N]`. An end within a block of 32 quantised weights does not
    /// count, since no shard ends there.
    ///
    /// A backend may take all its columns for one unit, as CUDA does: then the sum over ranks
    /// depends on how many there are, by rounding.
    fn matmul_units(
        &self,
        matrix: &Self::Matrix,
        x: &Self::Buffer,
        rows: usize,
        ends: &[usize],
        out: &mut Self::Buffer,
    ) -> Result<()>;
    /// A rank's share of [`Self::matmul_units`], in fixed point, on the host: the wrapping sum over
    /// all ranks, through [`fixed::to_f32`](crate::fixed::to_f32), is what a rank with all units
    /// computes, in the same bits on the CPU. `ends` are those of the rank's own units, from its
    /// own first column. `out`: `[T, N]`.
    fn matmul_share(
        &self,
        matrix: &Self::Matrix,
        x: &Self::Buffer,
        rows: usize,
        ends: &[usize],
        out: &mut [i64],
    ) -> Result<()>;
    /// Takes sums over ranks from now on from `sums`, `None`: from nobody. Whether the device can
    /// put them between its kernels; where it cannot, nothing changes, and sums go through the host
    /// ([`Self::matmul_share`]).
    fn join_sums(&self, sums: Option<Arc<dyn DeviceSums>>) -> bool {
        let _ = sums;
        false
    }
    /// [`Self::matmul_units`] of this rank's columns, summed over the ranks that joined, on the
    /// device: the bits that [`Self::matmul_share`] and a sum on the host give. `out`: `[T, N]`.
    /// After [`Self::join_sums`] said yes.
    fn matmul_sum(
        &self,
        matrix: &Self::Matrix,
        x: &Self::Buffer,
        rows: usize,
        ends: &[usize],
        out: &mut Self::Buffer,
    ) -> Result<()> {
        let _ = (matrix, x, rows, ends, out);
        Err(Error::Unavailable(format!(
            "{} has no sums over ranks",
            self.name()
        )))
    }
    /// [`Self::embed`] where each rank has some rows of the table, on the device as [`Self::matmul_sum`]: `ids` count from the
    /// rank's first row, and are `None` where another rank has it. One rank has each. `out`: `[T,
    /// E]`.
    fn embed_sum(
        &self,
        table: &Self::Matrix,
        ids: &[Option<u32>],
        out: &mut Self::Buffer,
    ) -> Result<()> {
        let _ = (table, ids, out);
        Err(Error::Unavailable(format!(
            "{} has no sums over ranks",
            self.name()
        )))
    }
    /// `out[r] = x[r] / sqrt(mean(x[r]²) + eps) * weight`, rows of `weight`'s length.
    fn rms_norm(
        &self,
        x: &Self::Buffer,
        weight: &Self::Buffer,
        eps: f32,
        rows: usize,
        out: &mut Self::Buffer,
    ) -> Result<()>;
    /// `x += y` on the first `len` values.
    fn add(&self, x: &mut Self::Buffer, y: &Self::Buffer, len: usize) -> Result<()>;
    /// `out[t, f] = silu(gate_up[t, f]) * gate_up[t, F + f]`; `gate_up`: `[T, 2F]`, `out`: `[T,
    /// F]`, `width` is `F`.
    fn silu_mul(
        &self,
        gate_up: &Self::Buffer,
        rows: usize,
        width: usize,
        out: &mut Self::Buffer,
    ) -> Result<()>;
    /// `out[i] = x[rows[i]]`, rows of `width` values.
    fn gather_rows(
        &self,
        x: &Self::Buffer,
        width: usize,
        rows: &[usize],
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// Chooses a token for every item from its row of `logits` (`[T, V]`, `vocabulary` is `V`),
    /// whose edits change the row in place: see [`crate::sample`], bit for bit. `None`: a logit of
    /// the row is not a number.
    fn sample(
        &self,
        logits: &mut Self::Buffer,
        vocabulary: usize,
        items: &[SampleItem<'_>],
    ) -> Result<Vec<Option<u32>>>;

    /// Splits fused rows: normalises query and key heads when `qk_norm` is given (weights `[D]` for
    /// q and for k, eps), rotates them (GPT-NeoX halves: value `i` pairs with `i + D/2`) by row `t`
    /// of `cos`, `sin` (`[T, D/2]`), writes queries to `q` (`[T, H, D]`) and keys and values to the
    /// slots of `items`.
    fn split_qkv(
        &self,
        args: SplitQkv<'_, Self>,
        pages: &mut Self::Pages,
        q: &mut Self::Buffer,
    ) -> Result<()>;

    /// An arena of `count` pages. Backends may commit memory lazily, page by page.
    fn alloc_pages(&self, shape: PageShape, count: usize) -> Result<Self::Pages>;
    /// Softmax attention at scale `1/sqrt(D)` over centroids and slots. `q`, `out`: `[T, H, D]`;
    /// every row belongs to exactly one item per KV head, rows of no item stay untouched.
    fn attention(
        &self,
        shape: QkvShape,
        pages: &Self::Pages,
        q: &Self::Buffer,
        items: &[AttentionItem<'_>],
        out: &mut Self::Buffer,
    ) -> Result<()>;
    /// Attention probabilities per slot, reduced over rows: the slot weights that attention-based
    /// policies score by. `out[i]` goes on from the values it holds (zeros are added up to
    /// `items[i].attend.slots.len`), row by row, so the same rows give the same bits in one call or
    /// in several. Computed separately from `attention`, so that policies that do not look at
    /// attention never pay for it.
    fn observe(
        &self,
        shape: QkvShape,
        pages: &Self::Pages,
        q: &Self::Buffer,
        items: &[ObserveItem<'_>],
        out: &mut [Vec<f32>],
    ) -> Result<()>;
    /// Adds the readout of associative memories to attention outputs: for every query head of an
    /// item's KV head `out += gate * (phi(q)^T A) / max((phi(q)^2)^T b, LEAST_MASS)`. `q`, `out`:
    /// `[T, H, D]`. One that holds nothing adds nothing.
    fn readout(
        &self,
        layer: AssociativeLayer<'_, Self>,
        pages: &Self::Pages,
        q: &Self::Buffer,
        items: &[ReadoutItem],
        out: &mut Self::Buffer,
    ) -> Result<()>;
    /// Raises the slots' scores to the largest over the new rows of `sum_h weight[h] *
    /// relu(<query[h], key>)`, the lightning indexer of IndexMem (arXiv 2605.25475).
    fn index(&self, shape: IndexShape, items: &mut [IndexItem<'_>]) -> Result<()>;
    /// Keeps a note with each new slot, and its position: `values[row, kv_head]`, as f32, or that
    /// and `values[row, second]` as f16; `values`: `[T, width]`.
    fn note(
        &self,
        pages: &mut Self::Pages,
        values: &Self::Buffer,
        width: usize,
        items: &[NoteItem<'_>],
    ) -> Result<()>;
    /// Notes of a head's slots, as they lie there. Slots without one have any.
    fn read_notes(&self, pages: &Self::Pages, head: HeadPages<'_>) -> Result<Vec<u32>>;
    /// Scores all slots of all items, one item after the other in `out`, where [`Self::select`]
    /// reads them; `at` is the position of the last token read.
    fn score(
        &self,
        pages: &Self::Pages,
        at: u32,
        items: &[ScoreItem<'_>],
        out: &mut Self::Buffer,
    ) -> Result<()>;
    /// Chooses the slots that stay: every head keeps its best `floor` candidates, then the best of
    /// all that are left in a pool stay until its heads keep `take` on average. Ties go by head,
    /// then by slot, smaller first. Nobody waits for the answer: it is where [`Self::compact`]
    /// reads it.
    ///
    /// `scores`: `L` numbers of each head, one after the other, higher: keep. NaN loses against
    /// everything.
    fn select(
        &self,
        budget: SelectBudget,
        scores: &Self::Buffer,
        heads: &[SelectHead],
    ) -> Result<Self::Kept>;
    /// The same for a choice that the host made: for each head with `lens[i]` slots those that
    /// stay, strictly increasing.
    fn keep_lists(&self, lens: &[usize], lists: &[Vec<u32>]) -> Result<Self::Kept>;
    /// Slots that stay, strictly increasing, for each head.
    fn kept(&self, kept: &Self::Kept) -> Result<Vec<Vec<u32>>>;
    /// Moves kept slots to the front, in order: the `i`-th of a head becomes its slot `i`, its note
    /// with it. The stored bits do not change.
    /// `heads` are those that were chosen from, before the compaction.
    fn compact(
        &self,
        pages: &mut Self::Pages,
        heads: &[HeadPages<'_>],
        kept: &Self::Kept,
    ) -> Result<()>;
    /// Sets `bytes` aside for latent memories, before the first of them. A device that allocates
    /// when it starts and never after takes all of them from there, and refuses what does not fit;
    /// one that commits memory as it is used does nothing.
    fn reserve_latents(&self, pages: &mut Self::Pages, bytes: usize) -> Result<()> {
        let _ = (pages, bytes);
        Ok(())
    }
    /// An empty latent memory beside the pages, for `heads` KV heads.
    fn alloc_latent(
        &self,
        pages: &mut Self::Pages,
        kind: LatentKind,
        heads: usize,
    ) -> Result<LatentId>;
    /// Gives its memory back; its id may be used again.
    fn free_latent(&self, pages: &mut Self::Pages, id: LatentId);
    /// Merges the slots that go into a latent memory, head by head in position order: see
    /// [`crate::latent`]. `heads` are those that were chosen from, all heads of the memory, before
    /// the compaction. `features`: `[layers, F, D]` and `F`, for associative memories; heads are
    /// layer-major. Nobody waits for it.
    fn memorise(
        &self,
        pages: &mut Self::Pages,
        id: LatentId,
        features: Option<(&Self::Buffer, usize)>,
        heads: &[HeadPages<'_>],
        kept: &Self::Kept,
    ) -> Result<()>;
    /// The state of one head of a latent memory.
    fn read_latent(&self, pages: &Self::Pages, head: LatentHead) -> Result<LatentState>;
    /// Replaces the state of one head: snapshots coming back.
    fn write_latent(
        &self,
        pages: &mut Self::Pages,
        head: LatentHead,
        state: &LatentState,
    ) -> Result<()>;
    /// Rotates cached keys by `delta * inv_freq[i]` (`inv_freq`: `[D/2]`), rounding once to the
    /// stored type.
    fn rotate_keys(
        &self,
        pages: &mut Self::Pages,
        items: &[RotateItem<'_>],
        inv_freq: &[f32],
    ) -> Result<()>;
    /// Copies keys and values of the listed slots to the host as f32. `keys`, `values`:
    /// `[slots.len(), D]`.
    fn read_slots(
        &self,
        pages: &Self::Pages,
        head: HeadPages<'_>,
        slots: &[u32],
        keys: &mut [f32],
        values: &mut [f32],
    ) -> Result<()>;
    /// Writes keys and values (`[n, D]` each) to slots `first ..` of a head: snapshots coming back.
    fn write_slots(
        &self,
        pages: &mut Self::Pages,
        head: HeadPages<'_>,
        first: usize,
        keys: &[f32],
        values: &[f32],
    ) -> Result<()>;
}

/// Arguments of [`Backend::split_qkv`].
pub struct SplitQkv<'a, B: Backend + ?Sized> {
    /// Head layout.
    pub shape: QkvShape,
    /// Fused rows `[T, (H+2K)*D]`.
    pub qkv: &'a B::Buffer,
    /// Number of rows `T`.
    pub rows: usize,
    /// Cosines `[T, D/2]`.
    pub cos: &'a B::Buffer,
    /// Sines `[T, D/2]`.
    pub sin: &'a B::Buffer,
    /// Query weight `[D]`, key weight `[D]` and epsilon of per-head RMS norms (Qwen3).
    pub qk_norm: Option<(&'a B::Buffer, &'a B::Buffer, f32)>,
    /// Destination of every KV head of every sequence.
    pub items: &'a [SplitItem<'a>],
}
