//! Weight matrices on the device.

use crate::backend::{WeightType, WeightView};
use crate::cuda::backend::{CudaBackend, Precision};
use crate::cuda::checks::exactly;
use crate::cuda::device::Device;
use crate::cuda::launch::kernels::Dequantize;
use crate::cuda::launch::{Kernel, Ptr, PtrMut, Void};
use crate::cuda::stream::StreamMemory;
use crate::error::{Error, Result};
use crate::quant;

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

/// The number of a type in `kernels/cu/dequantize.cu`. The other types are made f32 on the host.
const fn number(dtype: WeightType) -> Option<u32> {
    Some(match dtype {
        WeightType::F32 => F32,
        WeightType::F16 => 1,
        WeightType::BF16 => 2,
        WeightType::Q8_0 => 3,
        WeightType::Q4_0 => 4,
        WeightType::Q4_1 => 5,
        WeightType::Q4K => 6,
        WeightType::Q6K => 7,
        _ => return None,
    })
}

/// The number of f32.
const F32: u32 = 0;

/// Checks the parts of a matrix of `cols` columns; returns the rows of all of them.
fn check(parts: &[WeightView<'_>], cols: usize) -> Result<usize> {
    let op = "load_matrix";
    let mut rows = 0usize;
    for part in parts {
        exactly(op, "a row of a stacked part", part.cols, cols)?;
        part.row_bytes(op)?;
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
        let row_bytes = part.row_bytes("load_matrix")?.max(1);
        let number = number(part.dtype).filter(|_| part.is_whole());
        // What is uploaded of a row.
        let sent = number.map_or(cols.max(1) * size_of::<f32>(), |_| row_bytes);
        for chunk in part.bytes.chunks((CHUNK / sent).max(1) * row_bytes) {
            let rows = WeightView {
                rows: chunk.len() / row_bytes,
                bytes: chunk,
                ..*part
            };
            match number {
                Some(number) => dequantize(backend, &matrix, number, &rows, PtrMut::at(to))?,
                None => {
                    let floats = as_floats(&rows, row_bytes)?;
                    let rows = WeightView::new(WeightType::F32, rows.rows, cols, &floats);
                    dequantize(backend, &matrix, F32, &rows, PtrMut::at(to))?;
                }
            }
            to += (rows.rows * stride * element) as u64;
        }
    }
    Ok(matrix)
}

/// The bytes of rows as f32.
fn as_floats(rows: &WeightView<'_>, row_bytes: usize) -> Result<Vec<u8>> {
    let block = rows.dtype.block();
    let mut row = vec![0.0; row_bytes / block.bytes * block.weights];
    let mut floats = Vec::with_capacity(rows.rows * rows.cols * size_of::<f32>());
    for stored in rows.bytes.chunks_exact(row_bytes) {
        quant::dequantize(rows.dtype, stored, &mut row)?;
        let own = &row[rows.skip..][..rows.cols];
        floats.extend(own.iter().flat_map(|weight| weight.to_le_bytes()));
    }
    Ok(floats)
}

/// Uploads rows of whole blocks, whose type has number `dtype`, and writes them, converted, to
/// `out` inside the matrix.
fn dequantize<D: Device>(
    backend: &CudaBackend<D>,
    matrix: &Matrix<D>,
    dtype: u32,
    rows: &WeightView<'_>,
    out: PtrMut<Void>,
) -> Result<()> {
    let (stream, mut work) = (&backend.stream, backend.workspaces());
    let workspace = &mut work.descriptors;
    let from = stream.reserve(workspace, "weights of a file", rows.bytes.len())?;
    stream.upload(rows.bytes, workspace.memory()?, 0)?;
    let kernel = Dequantize {
        bytes: Ptr::at(from),
        dtype,
        cols: matrix.cols as u32,
        stride: matrix.stride as u32,
        is_f32: backend.precision == Precision::F32,
        out,
    };
    backend.launch(kernel.blocks(rows.rows))
}
