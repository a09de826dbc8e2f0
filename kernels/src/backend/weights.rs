//! Weights as model files hold them.

use crate::error::{Error, Result};

/// Weights that share scales in every quantised type; blocks are groups or hold whole groups.
pub(crate) const GROUP: usize = 32;

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
    /// GGML Q5_0: 32 weights, f16 scale, 5-bit minus 16.
    Q5_0,
    /// GGML Q5_1: 32 weights, f16 scale and minimum, 5-bit.
    Q5_1,
    /// GGML Q2_K: 256 weights in 16 groups of 16 with 4-bit scales and minima, 2-bit.
    Q2K,
    /// GGML Q3_K: 256 weights in 16 groups of 16 with 6-bit scales, 3-bit minus 4.
    Q3K,
    /// GGML Q4_K: 256 weights in 8 groups of 32 with 6-bit scales and minima, 4-bit.
    Q4K,
    /// GGML Q5_K: 256 weights in 8 groups of 32 with 6-bit scales and minima, 5-bit.
    Q5K,
    /// GGML Q6_K: 256 weights in 16 groups of 16 with 8-bit scales, 6-bit minus 32.
    Q6K,
    /// GGML IQ1_S: 256 weights in 8 groups of 32 with 3-bit scales, eights of -1, 0, 1 from a grid
    /// of 2048, all moved by an eighth up or down.
    Iq1S,
    /// GGML IQ1_M: as [`Self::Iq1S`], with a scale for each 16 and a shift for each 8 weights.
    Iq1M,
    /// GGML IQ2_XXS: 256 weights in 8 groups of 32 with 4-bit scales, eights of 8, 25, 43 from a
    /// grid of 256, 7-bit signs.
    Iq2Xxs,
    /// GGML IQ2_XS: as [`Self::Iq2Xxs`], with a scale for each 16 weights and a grid of 512.
    Iq2Xs,
    /// GGML IQ2_S: as [`Self::Iq2Xs`], with a grid of 1024 and a sign for each weight.
    Iq2S,
    /// GGML IQ3_XXS: 256 weights in 8 groups of 32 with 4-bit scales, fours of eight magnitudes
    /// from a grid of 256, 7-bit signs.
    Iq3Xxs,
    /// GGML IQ3_S: as [`Self::Iq3Xxs`], with a grid of 512 and a sign for each weight.
    Iq3S,
    /// GGML IQ4_NL: 32 weights, f16 scale, 4-bit indices of 16 values.
    Iq4Nl,
    /// GGML IQ4_XS: 256 weights in 8 groups of 32 with 6-bit scales, 4-bit indices of 16 values.
    Iq4Xs,
    /// GGML TQ1_0: 256 weights -1, 0, 1, five to a byte, f16 scale.
    Tq1_0,
    /// GGML TQ2_0: 256 weights -1, 0, 1 of two bits, f16 scale.
    Tq2_0,
    /// GGML MXFP4: 32 weights of four bits (E2M1), a power of two as their scale.
    Mxfp4,
}

/// Size of one block of a [`WeightType`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSize {
    /// Weights along the input axis.
    pub weights: usize,
    /// Bytes in a file.
    pub bytes: usize,
}

impl WeightType {
    /// All of them.
    pub const ALL: [Self; 25] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Iq1S,
        Self::Iq1M,
        Self::Iq2Xxs,
        Self::Iq2Xs,
        Self::Iq2S,
        Self::Iq3Xxs,
        Self::Iq3S,
        Self::Iq4Nl,
        Self::Iq4Xs,
        Self::Tq1_0,
        Self::Tq2_0,
        Self::Mxfp4,
    ];

    /// Size of one block, as laid out in a file.
    pub const fn block(self) -> BlockSize {
        const fn block(weights: usize, bytes: usize) -> BlockSize {
            BlockSize { weights, bytes }
        }
        match self {
            Self::F32 => block(1, 4),
            Self::F16 | Self::BF16 => block(1, 2),
            Self::Q8_0 => block(32, 34),
            Self::Q4_0 => block(32, 18),
            Self::Q4_1 => block(32, 20),
            Self::Q5_0 => block(32, 22),
            Self::Q5_1 => block(32, 24),
            Self::Q2K => block(256, 84),
            Self::Q3K => block(256, 110),
            Self::Q4K => block(256, 144),
            Self::Q5K => block(256, 176),
            Self::Q6K => block(256, 210),
            Self::Iq1S => block(256, 50),
            Self::Iq1M => block(256, 56),
            Self::Iq2Xxs => block(256, 66),
            Self::Iq2Xs => block(256, 74),
            Self::Iq2S => block(256, 82),
            Self::Iq3Xxs => block(256, 98),
            Self::Iq3S => block(256, 110),
            Self::Iq4Nl => block(32, 18),
            Self::Iq4Xs => block(256, 136),
            Self::Tq1_0 => block(256, 54),
            Self::Tq2_0 => block(256, 66),
            Self::Mxfp4 => block(32, 17),
        }
    }

    /// Bytes of `len` consecutive weights; `None` when `len` does not fill whole blocks or the size
    /// overflows.
    pub const fn bytes(self, len: usize) -> Option<usize> {
        let BlockSize { weights, bytes } = self.block();
        if len.is_multiple_of(weights) {
            (len / weights).checked_mul(bytes)
        } else {
            None
        }
    }
}

/// A weight matrix as a model file holds it: `rows` outputs by `cols` inputs, row-major blocks,
/// little-endian.
///
/// A shard may begin and end within blocks of 256 weights, at groups of 32: its rows are then the
/// blocks that it touches, of which the first `skip` weights and those behind the last column are
/// not its own.
#[derive(Debug, Clone, Copy)]
pub struct WeightView<'a> {
    /// Stored element type.
    pub dtype: WeightType,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// Weights at the beginning of each row that are not the matrix's: a multiple of 32 below the
    /// weights of a block.
    pub skip: usize,
    /// `rows` times the bytes of `skip + cols` weights, rounded up to whole blocks.
    pub bytes: &'a [u8],
}

impl<'a> WeightView<'a> {
    /// A matrix of whole blocks: `bytes` holds `dtype.bytes(rows * cols)` bytes.
    pub const fn new(dtype: WeightType, rows: usize, cols: usize, bytes: &'a [u8]) -> Self {
        Self {
            dtype,
            rows,
            cols,
            skip: 0,
            bytes,
        }
    }

    /// Whether rows are whole blocks.
    pub(crate) const fn is_whole(&self) -> bool {
        self.skip == 0 && self.cols.is_multiple_of(self.dtype.block().weights)
    }

    /// Bytes of a row, once all sizes were checked.
    ///
    /// # Errors
    /// [`Error::Multiple`] where columns are no whole groups, [`Error::Shape`] where the bytes have
    /// another size.
    pub(crate) fn row_bytes(&self, op: &'static str) -> Result<usize> {
        let block = self.dtype.block();
        // What columns and the skipped ones come in.
        let group = block.weights.min(GROUP);
        let multiple = |what, got: usize| match got.is_multiple_of(group) {
            true => Ok(()),
            false => Err(Error::Multiple {
                op,
                what,
                got,
                multiple: group,
            }),
        };
        multiple("cols", self.cols)?;
        multiple("skip", self.skip)?;
        let blocks = self.skip.saturating_add(self.cols).div_ceil(block.weights);
        let row = blocks.saturating_mul(block.bytes);
        let want = row.saturating_mul(self.rows);
        let shape = |what, got, want| Error::Shape {
            op,
            what,
            got,
            want,
        };
        if self.skip >= block.weights {
            return Err(shape("skip", self.skip, block.weights - 1));
        }
        if self.bytes.len() != want {
            return Err(shape("bytes", self.bytes.len(), want));
        }
        Ok(row)
    }
}
