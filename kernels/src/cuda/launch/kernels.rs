//! Every kernel of `kernels/cu` with its parameters.
//!
//! A kernel is a struct here: its fields are the parameters, with the names and in the order that
//! the `.cu` file gives them. Where there are several functions of the same parameters, such as one
//! for each type of cached element, the arguments decide which of them is launched. A test compares
//! all of this with the sources.

use super::{
    Arg, Argument, Bf16, Cut, Floor, Item, Launch, Ptr, PtrMut, Reduction, Sample, Slots, SlotsMut,
    Void,
};
use crate::sample::LogitEdit;
use crate::shapes::KvType;

/// A kernel with its arguments.
pub(crate) trait Kernel: Sized {
    /// Threads of a block.
    const THREADS: u32;

    /// The function to launch.
    fn function(&self) -> &'static str;

    /// The arguments in order.
    fn args(&self) -> Vec<Arg>;

    /// A launch over `x` blocks.
    fn blocks(self, x: usize) -> Launch {
        self.grid(x, 1)
    }

    /// A launch over `x` times `y` blocks.
    fn grid(self, x: usize, y: usize) -> Launch {
        Launch {
            kernel: self.function(),
            grid: [x as u32, y as u32, 1],
            threads: Self::THREADS,
            shared: 0,
            args: self.args(),
        }
    }
}

/// Which function of a kernel: the only one, or the one that the arguments ask for.
macro_rules! function {
    ($kernel:ident, [$function:literal]) => {{
        let _ = $kernel;
        $function
    }};
    ($kernel:ident, [$($function:literal),+] by $choose:expr) => {{
        let choose: fn(&Self) -> usize = $choose;
        [$($function),+][choose($kernel)]
    }};
}

macro_rules! kernels {
    ($(
        $(#[$doc:meta])*
        $kernel:ident, $threads:literal threads, [$($function:literal),+ $(,)?]
        $(by $choose:expr)? => ($($parameter:ident: $type:ty),+ $(,)?);
    )+) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy)]
            pub(crate) struct $kernel {
                $(pub(crate) $parameter: $type),+
            }

            impl Kernel for $kernel {
                const THREADS: u32 = $threads;

                fn function(&self) -> &'static str {
                    function!(self, [$($function),+] $(by $choose)?)
                }

                fn args(&self) -> Vec<Arg> {
                    vec![$(self.$parameter.arg()),+]
                }
            }
        )+

        /// All functions and their parameters, for the test.
        #[cfg(all(test, feature = "emulate"))]
        fn all_signatures() -> Vec<signatures::Signature> {
            vec![$(signatures::Signature {
                functions: vec![$($function),+],
                parameters: vec![$(
                    (stringify!($parameter), <$type as signatures::CType>::c_type())
                ),+],
            }),+]
        }
    };
}

/// The place of an element's type in a list of functions for 8-bit integers, halves and singles.
fn of_element(dtype: KvType) -> usize {
    match dtype {
        KvType::Q8 => 0,
        KvType::F16 => 1,
        KvType::F32 => 2,
    }
}

/// Head dimensions that the tensor-core kernels are compiled for, in the order of their functions.
const WIDTHS: [usize; 5] = [16, 32, 64, 96, 128];

/// The head dimension that the tensor-core kernels pad `dim` to; `None`: they do not reach it.
pub(crate) fn padded_width(dim: usize) -> Option<usize> {
    WIDTHS.into_iter().find(|&width| width >= dim)
}

/// The place of a head dimension and an element's type in a list of functions: for each width one
/// for halves and one for 8-bit integers.
fn of_width(dim: u32, slots: Slots) -> usize {
    let width = WIDTHS.iter().filter(|&&width| width < dim as usize).count();
    2 * width + usize::from(slots.dtype == KvType::Q8)
}

kernels! {
    // rows.cu: rows of activations, words.

    /// Copies row `ids[b]` of a table; [`super::NONE`] gives a row of negative zeros.
    Embed, 256 threads, ["embed"] => (
        table: Ptr<Void>, is_f32: bool, stride: u32, cols: u32, ids: Ptr<u32>, out: PtrMut<f32>,
    );
    /// RMS norm of each row.
    RmsNorm, 256 threads, ["rms_norm"] => (
        x: Ptr<f32>, weight: Ptr<f32>, eps: f32, width: u32, out: PtrMut<f32>,
    );
    /// `x += y`.
    Add, 256 threads, ["add"] => (x: PtrMut<f32>, y: Ptr<f32>, len: u64);
    /// SiLU of the gate times the other half, for each row.
    SiluMul, 256 threads, ["silu_mul"] => (gate_up: Ptr<f32>, width: u32, out: PtrMut<f32>);
    /// Copies row `rows[b]`.
    GatherRows, 256 threads, ["gather_rows"] => (
        x: Ptr<f32>, width: u32, rows: Ptr<u32>, out: PtrMut<f32>,
    );
    /// Sets each row to the bias.
    FillBias, 256 threads, ["fill_bias"] => (bias: Ptr<f32>, outputs: u32, out: PtrMut<f32>);
    /// Writes changes of page tables. `header`: the first change, and how many there are.
    PutTables, 256 threads, ["put_tables"] => (
        tables: PtrMut<u32>, header: Ptr<u32>, changes: Ptr<[u32; 2]>,
    );
    /// Copies words, or zeroes them where `from` is null.
    PutWords, 256 threads, ["put_words"] => (from: Ptr<u32>, count: u32, out: PtrMut<u32>);
    /// Rounds each row to bf16, two values a word, and pads it with zeros to `stride`.
    CastRows, 256 threads, ["cast_rows"] => (
        x: Ptr<f32>, cols: u32, stride: u32, out: PtrMut<u32>,
    );

    // dequantize.cu: weights of a file.

    /// Weights of type `dtype` (a number, see `products/weights.rs`) to bf16 or f32.
    Dequantize, 256 threads, ["dequantize"] => (
        bytes: Ptr<u8>, dtype: u32, cols: u32, stride: u32, is_f32: bool, out: PtrMut<Void>,
    );

    // matmul.cu: products with weights.

    /// Products of up to eight rows, which read the weights once.
    Gemv, 128 threads, ["gemv_bf16_1", "gemv_bf16_2", "gemv_bf16_4", "gemv_bf16_8"]
        by |kernel| match kernel.rows { 0..=1 => 0, 2 => 1, 3..=4 => 2, _ => 3 } => (
        x: Ptr<Bf16>, w: Ptr<Bf16>, rows: u32, outputs: u32, stride: u32, accumulate: bool,
        out: PtrMut<f32>,
    );
    /// Products on tensor cores, in tiles of 64 by 64.
    MatmulBf16, 128 threads, ["matmul_bf16"] => (
        x: Ptr<Bf16>, w: Ptr<Bf16>, rows: u32, outputs: u32, stride: u32, accumulate: bool,
        out: PtrMut<f32>,
    );
    /// Products in f32, in tiles of 64 by 64.
    MatmulF32, 256 threads, ["matmul_f32"] => (
        x: Ptr<f32>, w: Ptr<f32>, rows: u32, outputs: u32, cols: u32, stride: u32,
        accumulate: bool, out: PtrMut<f32>,
    );

    // fixed.cu: what ranks sum.

    /// f32 to fixed point.
    ToFixed, 256 threads, ["to_fixed"] => (x: Ptr<f32>, len: u64, out: PtrMut<i64>);
    /// Fixed point to f32.
    FromFixed, 256 threads, ["from_fixed"] => (sums: Ptr<i64>, len: u64, out: PtrMut<f32>);

    // slots.cu: what writes, moves, rotates and copies slots.

    /// Splits fused rows: queries to `q`, keys and values to their slots, rotated.
    SplitQkv, 128 threads, ["split_qkv_q8", "split_qkv_f16", "split_qkv_f32"]
        by |kernel| of_element(kernel.pages.dtype) => (
        qkv: Ptr<f32>, cos: Ptr<f32>, sin: Ptr<f32>, q_norm: Ptr<f32>, k_norm: Ptr<f32>, eps: f32,
        items: Ptr<Item>, owners: Ptr<u32>, tables: Ptr<u32>, pages: SlotsMut, q: PtrMut<f32>,
        heads: u32, kv_heads: u32, dim: u32,
    );
    /// Rotates cached keys by their `deltas`.
    RotateKeys, 64 threads, ["rotate_keys_q8", "rotate_keys_f16", "rotate_keys_f32"]
        by |kernel| of_element(kernel.pages.dtype) => (
        pages: SlotsMut, items: Ptr<Item>, tables: Ptr<u32>, deltas: Ptr<f32>, inv_freq: Ptr<f32>,
        dim: u32,
    );
    /// Keys and values of slots, in f32.
    ReadSlots, 64 threads, ["read_slots_q8", "read_slots_f16", "read_slots_f32"]
        by |kernel| of_element(kernel.pages.dtype) => (
        pages: Slots, table: Ptr<u32>, slots: Ptr<u32>, dim: u32, keys: PtrMut<f32>,
        values: PtrMut<f32>,
    );
    /// Keys and values, from f32, to slots from `first` on.
    WriteSlots, 64 threads, ["write_slots_q8", "write_slots_f16", "write_slots_f32"]
        by |kernel| of_element(kernel.pages.dtype) => (
        pages: SlotsMut, table: Ptr<u32>, first: u32, dim: u32, keys: Ptr<f32>, values: Ptr<f32>,
    );
    /// Slots as they are stored, to the bytes of the host.
    SaveSlots, 64 threads, ["save_slots_q8", "save_slots_f16", "save_slots_f32"]
        by |kernel| of_element(kernel.pages.dtype) => (
        pages: Slots, items: Ptr<Item>, tables: Ptr<u32>, dim: u32, out: PtrMut<u8>,
    );
    /// Slots as they are stored, from the bytes of the host.
    LoadSlots, 64 threads, ["load_slots_q8", "load_slots_f16", "load_slots_f32"]
        by |kernel| of_element(kernel.pages.dtype) => (
        pages: SlotsMut, items: Ptr<Item>, tables: Ptr<u32>, dim: u32, from: Ptr<u8>,
    );
    /// Moves the slots that stay to the front, their notes with them.
    Compact, 256 threads, ["compact_q8", "compact_f16", "compact_f32"]
        by |kernel| of_element(kernel.pages.dtype) => (
        pages: SlotsMut, notes: PtrMut<[u32; 2]>, items: Ptr<Item>, tables: Ptr<u32>,
        counts: Ptr<u32>, keeps: Ptr<u32>, bytes: u32,
    );

    // score.cu: notes and scores.

    /// Keeps a note with each new slot.
    Note, 64 threads, ["note"] => (
        values: Ptr<f32>, width: u32, items: Ptr<Item>, tables: Ptr<u32>, notes: PtrMut<[u32; 2]>,
    );
    /// The notes of a head.
    ReadNotes, 256 threads, ["read_notes"] => (
        notes: Ptr<[u32; 2]>, table: Ptr<u32>, len: u32, values: PtrMut<u32>,
    );
    /// Notes and positions of a head's slots.
    WriteNotes, 256 threads, ["write_notes"] => (
        notes: PtrMut<[u32; 2]>, table: Ptr<u32>, len: u32, values: Ptr<u32>, positions: Ptr<u32>,
    );
    /// Scores by notes; `rates`: rate and scale.
    ScoreNotes, 256 threads, ["score_notes"] => (
        notes: Ptr<[u32; 2]>, items: Ptr<Item>, tables: Ptr<u32>, rates: Ptr<[f32; 2]>, at: u32,
        scores: PtrMut<f32>,
    );
    /// Scores by keys.
    ScoreKeys, 256 threads, ["score_keys_q8", "score_keys_f16", "score_keys_f32"]
        by |kernel| of_element(kernel.pages.dtype) => (
        pages: Slots, items: Ptr<Item>, tables: Ptr<u32>, dim: u32, scores: PtrMut<f32>,
    );

    // select.cu: which slots stay.

    /// What each head keeps for itself.
    SelectHeads, 256 threads, ["select_heads"] => (
        items: Ptr<Item>, scores: Ptr<f32>, floors: PtrMut<Floor>, floor: u32,
    );
    /// Where each pool is cut.
    SelectPools, 256 threads, ["select_pools"] => (
        items: Ptr<Item>, scores: Ptr<f32>, floors: Ptr<Floor>, cuts: PtrMut<Cut>, heads: u32,
        pools: u32, take: u32,
    );
    /// Lists of the slots that stay and of those that go.
    SelectLists, 256 threads, ["select_lists"] => (
        items: Ptr<Item>, scores: Ptr<f32>, cuts: Ptr<Cut>, counts: PtrMut<u32>,
        keeps: PtrMut<u32>, losts: PtrMut<u32>,
    );
    /// Lists like those of [`SelectLists`], of slots that the host chose.
    KeepLists, 256 threads, ["keep_lists"] => (
        items: Ptr<Item>, chosen: Ptr<u8>, counts: PtrMut<u32>, keeps: PtrMut<u32>,
        losts: PtrMut<u32>,
    );

    // sample.cu

    /// One token for each row of logits.
    SampleTokens, 512 threads, ["sample"] => (
        all: PtrMut<f32>, vocabulary: u32, samples: Ptr<Sample>, edits: Ptr<LogitEdit>,
        masks: Ptr<u32>, tokens: PtrMut<u32>,
    );

    // latent.cu: readout of associative memories, pairwise scores.

    /// Adds what associative memories hold to the output of attention.
    Readout, 128 threads, ["readout"] => (
        features: Ptr<f32>, gates: Ptr<f32>, q: Ptr<f32>, items: Ptr<Item>,
        states: Ptr<Ptr<f32>>, out: PtrMut<f32>, heads: u32, kv_heads: u32, dim: u32,
    );
    /// Scores of a pairwise indexer.
    IndexScores, 128 threads, ["index_scores"] => (
        items: Ptr<Item>, inputs: Ptr<f32>, scores: PtrMut<f32>, heads: u32, dim: u32,
    );

    // memorise.cu: slots that go, into latent memories.

    /// Merges into centroids. `held`: whether their keys fit into shared memory.
    MemoriseCentroids, 256 threads,
        ["memorise_centroids_q8", "memorise_centroids_f16", "memorise_centroids_f32"]
        by |kernel| of_element(kernel.pages.dtype) => (
        pages: Slots, items: Ptr<Item>, tables: Ptr<u32>, states: Ptr<PtrMut<f32>>,
        kept: Ptr<u32>, losts: Ptr<u32>, dim: u32, held: bool,
    );
    /// Adds to associative memories.
    MemoriseAssociative, 256 threads,
        ["memorise_associative_q8", "memorise_associative_f16", "memorise_associative_f32"]
        by |kernel| of_element(kernel.pages.dtype) => (
        pages: Slots, items: Ptr<Item>, tables: Ptr<u32>, states: Ptr<PtrMut<f32>>,
        kept: Ptr<u32>, losts: Ptr<u32>, dim: u32, features: Ptr<f32>, group: u32, layer: u32,
    );

    // attention_prefill.cu, attention_decode.cu: attention on tensor cores.

    /// Attention of 64 query rows a block; `tiles`: item and tile.
    AttentionPrefill, 128 threads, [
        "attention_prefill_16", "attention_prefill_16_q8",
        "attention_prefill_32", "attention_prefill_32_q8",
        "attention_prefill_64", "attention_prefill_64_q8",
        "attention_prefill_96", "attention_prefill_96_q8",
        "attention_prefill_128", "attention_prefill_128_q8",
    ] by |kernel| of_width(kernel.dim, kernel.pages) => (
        items: Ptr<Item>, tables: Ptr<u32>, first_visible: Ptr<u32>, centroids: Ptr<Ptr<f32>>,
        pages: Slots, q: Ptr<f32>, out: PtrMut<f32>, heads: u32, kv_heads: u32, dim: u32,
        scale: f32, tiles: Ptr<[u32; 2]>,
    );
    /// Attention of at most 16 query rows a block over a split of the slots; `splits`: item, first
    /// slot, partial result or [`super::NONE`], whether it reads the centroids.
    AttentionDecode, 128 threads, [
        "attention_decode_16", "attention_decode_16_q8",
        "attention_decode_32", "attention_decode_32_q8",
        "attention_decode_64", "attention_decode_64_q8",
        "attention_decode_96", "attention_decode_96_q8",
        "attention_decode_128", "attention_decode_128_q8",
    ] by |kernel| of_width(kernel.dim, kernel.pages) => (
        items: Ptr<Item>, tables: Ptr<u32>, first_visible: Ptr<u32>, centroids: Ptr<Ptr<f32>>,
        pages: Slots, q: Ptr<f32>, out: PtrMut<f32>, heads: u32, kv_heads: u32, dim: u32,
        scale: f32, splits: Ptr<[u32; 4]>, partials: PtrMut<f32>,
    );
    /// Merges the splits of an item; `merges`: item, first partial result, their number.
    AttentionMerge, 128 threads, ["attention_merge"] => (
        items: Ptr<Item>, merges: Ptr<[u32; 4]>, partials: Ptr<f32>, out: PtrMut<f32>,
        heads: u32, kv_heads: u32, dim: u32, padded: u32,
    );

    // attention_exact.cu: attention and observed probabilities in f32.

    /// Attention of one query row a block, in f32 throughout.
    AttentionExact, 128 threads,
        ["attention_exact_q8", "attention_exact_f16", "attention_exact_f32"]
        by |kernel| of_element(kernel.pages.dtype) => (
        items: Ptr<Item>, tables: Ptr<u32>, first_visible: Ptr<u32>, centroids: Ptr<Ptr<f32>>,
        pages: Slots, q: Ptr<f32>, out: PtrMut<f32>, heads: u32, kv_heads: u32, dim: u32,
    );
    /// Logits of every query row, with their maximum and sum.
    ObserveLogits, 128 threads,
        ["observe_logits_q8", "observe_logits_f16", "observe_logits_f32"]
        by |kernel| of_element(kernel.pages.dtype) => (
        items: Ptr<Item>, tables: Ptr<u32>, first_visible: Ptr<u32>, centroids: Ptr<Ptr<f32>>,
        pages: Slots, q: Ptr<f32>, logits: PtrMut<f32>, statistics: PtrMut<f32>, heads: u32,
        kv_heads: u32, dim: u32,
    );
    /// Probabilities of the logits, reduced over query rows.
    ObserveReduce, 128 threads, ["observe_reduce"] => (
        items: Ptr<Item>, reductions: Ptr<Reduction>, logits: Ptr<f32>, statistics: Ptr<f32>,
        row_weights: Ptr<f32>, out: PtrMut<f32>, group: u32,
    );
}

#[cfg(all(test, feature = "emulate"))]
mod signatures;
