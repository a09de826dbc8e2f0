//! Weight matrices on the device.

use crate::backend::{WeightType, WeightView};
use crate::cuda::backend::{CudaBackend, Precision};
use crate::cuda::checks::exactly;
use crate::cuda::device::Device;
use crate::cuda::launch::kernels::Dequantize;
use crate::cuda::launch::{Kernel, Ptr, PtrMut, Void};
use crate::cuda::stream::StreamMemory;
use crate::error::{Error, Result};

/// Bytes of a file's weights that are uploaded at a time.
const CHUNK: usize = 32 << 20;

/// A matrix of `rows` outputs by `cols` inputs in bf16 or f32, as the backend's [`Precision`] says.
/// Rows are padded with zeros to a multiple of eight elements.
pub struct Matrix<D: Device> {
    memory: StreamMemory<D>,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// Elements from one row to the next.
    pub(crate) stride: usize,
}

impl<D: Device> Matrix<D> {
    /// Its elements, for kernels. `T` is the type that the backend's precision says.
    pub(crate) fn ptr<T>(&self) -> Ptr<T> {
        Ptr::at(self.memory.address())
    }
}

/// Bytes of an element.
pub(super) fn element_bytes(precision: Precision) -> usize {
    match precision {
        Precision::Bf16 => 2,
        Precision::F32 => 4,
    }
}

/// The number of a type in `kernels/cu/dequantize.cu`.
fn number(dtype: WeightType) -> u32 {
    match dtype {
        WeightType::F32 => 0,
        WeightType::F16 => 1,
        WeightType::BF16 => 2,
        WeightType::Q8_0 => 3,
        WeightType::Q4_0 => 4,
        WeightType::Q4_1 => 5,
        WeightType::Q4K => 6,
        WeightType::Q6K => 7,
    }
}

/// Checks the parts of a matrix of `cols` columns; returns the rows of all of them.
fn check(parts: &[WeightView<'_>], cols: usize) -> Result<usize> {
    let op = "load_matrix";
    let mut rows = 0usize;
    for part in parts {
        let block = part.dtype.block().weights;
        exactly(op, "a row of a stacked part", part.cols, cols)?;
        if !cols.is_multiple_of(block) {
            return Err(Error::Multiple {
                op,
                what: "cols",
                got: cols,
                multiple: block,
            });
        }
        let want = part
            .rows
            .checked_mul(cols)
            .and_then(|len| part.dtype.bytes(len))
            .unwrap_or(usize::MAX);
        exactly(op, "bytes", part.bytes.len(), want)?;
        rows = rows.saturating_add(part.rows);
    }
    Ok(rows)
}

/// Loads a matrix whose rows are those of all parts, one part after the other.
pub(super) fn load<D: Device>(
    backend: &CudaBackend<D>,
    parts: &[WeightView<'_>],
) -> Result<Matrix<D>> {
    let cols = parts.first().map_or(0, |part| part.cols);
    let rows = check(parts, cols)?;
    let (stride, element) = (cols.next_multiple_of(8), element_bytes(backend.precision));
    let bytes = rows
        .checked_mul(stride)
        .and_then(|len| len.checked_mul(element));
    let bytes = bytes.ok_or(Error::OutOfMemory {
        what: "a weight matrix",
        bytes: usize::MAX,
    })?;
    let matrix = Matrix {
        memory: backend.stream.alloc("a weight matrix", bytes)?,
        rows,
        cols,
        stride,
    };

    let mut to = matrix.memory.address();
    for part in parts {
        let row_bytes = part.dtype.bytes(cols).unwrap_or(0).max(1);
        for chunk in part.bytes.chunks((CHUNK / row_bytes).max(1) * row_bytes) {
            let count = chunk.len() / row_bytes;
            dequantize(backend, &matrix, part.dtype, chunk, PtrMut::at(to))?;
            to += (count * stride * element) as u64;
        }
    }
    Ok(matrix)
}

/// Uploads whole rows of a file and writes them, converted, to `out` inside the matrix.
fn dequantize<D: Device>(
    backend: &CudaBackend<D>,
    matrix: &Matrix<D>,
    dtype: WeightType,
    rows: &[u8],
    out: PtrMut<Void>,
) -> Result<()> {
    let row_bytes = dtype.bytes(matrix.cols).unwrap_or(0).max(1);
    let (stream, mut work) = (&backend.stream, backend.workspaces());
    let workspace = &mut work.descriptors;
    let from = stream.reserve(workspace, "weights of a file", rows.len())?;
    stream.upload(rows, workspace.memory()?, 0)?;
    let kernel = Dequantize {
        bytes: Ptr::at(from),
        dtype: number(dtype),
        cols: matrix.cols as u32,
        stride: matrix.stride as u32,
        is_f32: backend.precision == Precision::F32,
        out,
    };
    backend.launch(kernel.blocks(rows.len() / row_bytes))
}
