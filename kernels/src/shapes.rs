//! Shapes and element types of the cache: what a page holds, where the slots of a head lie, and how
//! the heads of a layer are laid out.

mod pages;

pub use pages::{HeadPages, PageId, PageList, PageMark};

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
