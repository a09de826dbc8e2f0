//! Matrices of a model file, and the parts of them that a rank holds.

use std::borrow::Cow;
use std::ops::Range;

use palimpsest_kernels::{WeightType, WeightView};

use crate::error::WeightsError;

/// Weights of a quantised type that share scales: what columns are dealt in.
const GROUP: usize = 32;

/// A matrix of a model file, `rows` outputs by `cols` inputs, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightData<'a> {
    /// Stored element type.
    pub dtype: WeightType,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// Weights at the beginning of each row that are not the matrix's, see [`WeightView`].
    pub skip: usize,
    /// The rows' blocks: the file's, or a reordered copy.
    pub bytes: Cow<'a, [u8]>,
}

impl<'a> WeightData<'a> {
    /// The matrix as [`palimpsest_kernels::Products::load_matrix`] takes it.
    pub fn view(&self) -> WeightView<'_> {
        WeightView {
            dtype: self.dtype,
            rows: self.rows,
            cols: self.cols,
            skip: self.skip,
            bytes: &self.bytes,
        }
    }

    /// Some outputs of the matrix: a shard of a column-parallel layer. Nothing is copied that lies
    /// in a file.
    ///
    /// # Panics
    /// When `range` goes beyond `rows`.
    pub fn into_rows(self, range: Range<usize>) -> Self {
        let width = self.row_bytes();
        let bytes = range.start * width..range.end * width;
        let bytes = match self.bytes {
            Cow::Borrowed(all) => Cow::Borrowed(&all[bytes]),
            Cow::Owned(all) => Cow::Owned(all[bytes].to_vec()),
        };
        Self {
            rows: range.len(),
            bytes,
            ..self
        }
    }

    /// [`Self::into_rows`] of a projection whose rows stand in `order` in the file.
    pub(crate) fn into_rows_in(self, order: RowOrder, range: Range<usize>) -> Self {
        if order == RowOrder::Halves {
            return self.into_rows(range);
        }
        let width = self.row_bytes();
        let mut bytes = Vec::with_capacity(range.len() * width);
        for row in range.clone() {
            let stored = order.stored(row);
            bytes.extend_from_slice(&self.bytes[stored * width..(stored + 1) * width]);
        }
        Self {
            rows: range.len(),
            bytes: Cow::Owned(bytes),
            ..self
        }
    }

    /// Some inputs of the matrix, copied unless they are all: a shard of a row-parallel layer.
    /// Where they begin or end within blocks of 256 weights, these blocks are copied whole.
    ///
    /// # Errors
    /// [`WeightsError::Columns`] when the range leaves the matrix or cuts through a group of 32
    /// quantised weights.
    pub fn into_columns(self, range: Range<usize>) -> Result<Self, WeightsError> {
        let block = self.dtype.block();
        let is_cut = |column: usize| !column.is_multiple_of(block.weights.min(GROUP));
        let leaves = range.start > range.end || range.end > self.cols;
        if leaves || is_cut(range.start) || is_cut(range.end) {
            return Err(WeightsError::Columns {
                range,
                dtype: self.dtype,
                cols: self.cols,
            });
        }
        if range == (0..self.cols) {
            return Ok(self);
        }
        let (start, end) = (self.skip + range.start, self.skip + range.end);
        let blocks = start / block.weights..end.div_ceil(block.weights);
        let bytes = self
            .bytes
            .chunks_exact(self.row_bytes())
            .flat_map(|row| &row[blocks.start * block.bytes..blocks.end * block.bytes])
            .copied()
            .collect();
        Ok(Self {
            cols: range.len(),
            skip: start % block.weights,
            bytes: Cow::Owned(bytes),
            ..self
        })
    }

    fn row_bytes(&self) -> usize {
        self.bytes.len() / self.rows
    }
}

/// Order of the rows of query and key projections in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowOrder {
    /// Rotary halves one after the other, as the kernels want them.
    Halves,
    /// The order of llama.cpp's converter (`LlamaModel.permute`), which interleaves the two halves
    /// of each head. Whole rows move, so quantised blocks stay as they are.
    Interleaved {
        /// `D`.
        head_dim: usize,
    },
    /// The first `R` values of a head are rotary halves, and the others are not rotated. The
    /// kernels rotate value `i` with value `i + D/2`, so the halves go to the beginnings of the
    /// halves of the head, and what is not rotated behind them, where pairs stand still. Queries
    /// and keys are reordered alike, so their products stay.
    Partial {
        /// `D`.
        head_dim: usize,
        /// `R`.
        rotary_dim: usize,
    },
}

impl RowOrder {
    /// Where the file has `row`. The converter put value `half * D/2 + i` of a head at `2 * i +
    /// half`.
    const fn stored(self, row: usize) -> usize {
        match self {
            Self::Halves => row,
            Self::Interleaved { head_dim } => {
                let (head, value) = (row / head_dim, row % head_dim);
                let (half, i) = (value / (head_dim / 2), value % (head_dim / 2));
                head * head_dim + 2 * i + half
            }
            Self::Partial {
                head_dim,
                rotary_dim,
            } => {
                let (head, value) = (row / head_dim, row % head_dim);
                let (half, i) = (value / (head_dim / 2), value % (head_dim / 2));
                let (turning, still) = (rotary_dim / 2, (head_dim - rotary_dim) / 2);
                let stored = if i < turning {
                    half * turning + i
                } else {
                    rotary_dim + half * still + i - turning
                };
                head * head_dim + stored
            }
        }
    }
}

/// The values of a bias that belong to rows `range`.
pub(crate) fn pick(bias: &[f32], order: RowOrder, range: Range<usize>) -> Vec<f32> {
    range.map(|row| bias[order.stored(row)]).collect()
}
