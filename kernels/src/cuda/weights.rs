//! Weight matrices on the device, and products with them.

use super::{Arg, Buffer, CudaBackend, Device, Held, Launch, Pack, Precision, Product, at_least};
use crate::backend::{Buffers, WeightType, WeightView};
use crate::error::{Error, Result};
use crate::fixed;

/// A matrix of `rows` outputs by `cols` inputs in bf16 or f32, as the backend's [`Precision`] says.
/// Rows are padded with zeros to a multiple of eight elements.
pub struct Matrix<D: Device> {
    memory: Held<D>,
    pub(super) rows: usize,
    pub(super) cols: usize,
    stride: usize,
}

/// Bytes of a file's weights that are uploaded at a time.
const CHUNK: usize = 32 << 20;

/// Rows up to which a product reads the weights once and needs no tiles.
const GEMV_ROWS: usize = 8;

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

fn check(parts: &[WeightView<'_>], cols: usize) -> Result<usize> {
    let op = "load_matrix";
    let mut rows = 0usize;
    for part in parts {
        let block = part.dtype.block().weights;
        if part.cols != cols {
            return Err(Error::Shape {
                op,
                what: "a row of a stacked part",
                got: part.cols,
                want: cols,
            });
        }
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
        super::exactly(op, "bytes", part.bytes.len(), want)?;
        rows = rows.saturating_add(part.rows);
    }
    Ok(rows)
}

impl<D: Device> CudaBackend<D> {
    fn element_bytes(&self) -> usize {
        match self.precision {
            Precision::Bf16 => 2,
            Precision::F32 => 4,
        }
    }

    pub(super) fn load(&self, parts: &[WeightView<'_>]) -> Result<Matrix<D>> {
        let cols = parts.first().map_or(0, |part| part.cols);
        let rows = check(parts, cols)?;
        let (stride, element) = (cols.next_multiple_of(8), self.element_bytes());
        let bytes = rows
            .checked_mul(stride)
            .and_then(|len| len.checked_mul(element));
        let too_large = Error::OutOfMemory {
            what: "a weight matrix",
            bytes: usize::MAX,
        };
        let memory = self
            .device
            .alloc("a weight matrix", bytes.ok_or(too_large)?)?;
        let mut to = memory.address();
        for part in parts {
            let row_bytes = part.dtype.bytes(cols).unwrap_or(0).max(1);
            for chunk in part.bytes.chunks((CHUNK / row_bytes).max(1) * row_bytes) {
                let count = chunk.len() / row_bytes;
                let mut work = self.work();
                let from = work
                    .stage
                    .address(&self.device, "weights of a file", chunk.len())?;
                self.device.upload(chunk, work.stage.memory()?, 0)?;
                let is_f32 = u32::from(self.precision == Precision::F32);
                let sizes = [number(part.dtype), cols as u32, stride as u32, is_f32].map(Arg::U32);
                self.run(Launch {
                    kernel: "dequantize",
                    grid: [count as u32, 1, 1],
                    threads: 256,
                    shared: 0,
                    args: &[
                        Arg::Pointer(from),
                        sizes[0],
                        sizes[1],
                        sizes[2],
                        sizes[3],
                        Arg::Pointer(to),
                    ],
                })?;
                to += (count * stride * element) as u64;
            }
        }
        Ok(Matrix {
            memory,
            rows,
            cols,
            stride,
        })
    }

    pub(super) fn bytes_of(&self, matrix: &Matrix<D>) -> usize {
        matrix.rows * matrix.stride * self.element_bytes()
    }

    pub(super) fn embed_rows(&self, table: &Matrix<D>, ids: &[u32], out: &Buffer<D>) -> Result<()> {
        let op = "embed";
        at_least(op, "out", out.len, ids.len().saturating_mul(table.cols))?;
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= table.rows) {
            return Err(Error::Index {
                op,
                what: "token id",
                index: id as usize,
                len: table.rows,
            });
        }
        self.launch_embed(table, ids, out)
    }

    /// The kernel, once ids and `out` were checked.
    pub(super) fn launch_embed(
        &self,
        table: &Matrix<D>,
        ids: &[u32],
        out: &Buffer<D>,
    ) -> Result<()> {
        let mut work = self.work();
        let mut pack = Pack::new();
        let ids_part = pack.push(ids);
        let arg = pack.upload(&self.device, &mut work.stage)?;
        self.run(Launch {
            kernel: "embed",
            grid: [ids.len() as u32, 1, 1],
            threads: 256,
            shared: 0,
            args: &[
                Arg::Pointer(table.memory.address()),
                Arg::U32(u32::from(self.precision == Precision::F32)),
                Arg::U32(table.stride as u32),
                Arg::U32(table.cols as u32),
                arg(ids_part),
                out.arg(),
            ],
        })
    }

    pub(super) fn multiply(
        &self,
        matrix: &Matrix<D>,
        x: &Buffer<D>,
        rows: usize,
        bias: Option<&Buffer<D>>,
        out: &Buffer<D>,
    ) -> Result<()> {
        let (op, outputs) = ("matmul", matrix.rows);
        at_least(op, "x", x.len, rows.saturating_mul(matrix.cols))?;
        at_least(op, "out", out.len, rows.saturating_mul(outputs))?;
        at_least(op, "bias", bias.map_or(outputs, |bias| bias.len), outputs)?;
        if rows == 0 || outputs == 0 {
            return Ok(());
        }
        if let Some(bias) = bias {
            let args = [bias.arg(), Arg::U32(outputs as u32), out.arg()];
            self.run(Launch {
                kernel: "fill_bias",
                grid: [rows as u32, 1, 1],
                threads: 256,
                shared: 0,
                args: &args,
            })?;
        }
        let (w, accumulate) = (matrix.memory.address(), bias.is_some());
        match self.precision {
            Precision::Bf16 => {
                let stride = matrix.stride;
                let mut work = self.work();
                let cast = work
                    .scratch
                    .address(&self.device, "activations", rows * stride * 2)?;
                let args = [
                    x.arg(),
                    Arg::U32(matrix.cols as u32),
                    Arg::U32(stride as u32),
                    Arg::Pointer(cast),
                ];
                self.run(Launch {
                    kernel: "cast_rows",
                    grid: [rows as u32, 1, 1],
                    threads: 256,
                    shared: 0,
                    args: &args,
                })?;
                self.product(&Product {
                    x: cast,
                    w,
                    out: out.address(),
                    rows,
                    outputs,
                    stride,
                    accumulate,
                })
            }
            Precision::F32 => {
                let sizes =
                    [rows, outputs, matrix.cols, matrix.stride].map(|size| Arg::U32(size as u32));
                let [rows_arg, outputs_arg, cols, stride] = sizes;
                let accumulate = Arg::U32(u32::from(accumulate));
                self.run(Launch {
                    kernel: "matmul_f32",
                    grid: [outputs.div_ceil(64) as u32, rows.div_ceil(64) as u32, 1],
                    threads: 256,
                    shared: 0,
                    args: &[
                        x.arg(),
                        Arg::Pointer(w),
                        rows_arg,
                        outputs_arg,
                        cols,
                        stride,
                        accumulate,
                        out.arg(),
                    ],
                })
            }
        }
    }

    /// A product whose columns are one unit: tiles of tensor cores do not end where units do.
    pub(super) fn multiply_units(
        &self,
        matrix: &Matrix<D>,
        x: &Buffer<D>,
        rows: usize,
        ends: &[usize],
        out: &Buffer<D>,
    ) -> Result<()> {
        fixed::check_ends("matmul_units", ends, matrix.cols)?;
        self.multiply(matrix, x, rows, None, out)
    }

    /// [`Self::multiply_units`] in fixed point.
    pub(super) fn multiply_share(
        &self,
        matrix: &Matrix<D>,
        x: &Buffer<D>,
        rows: usize,
        ends: &[usize],
        out: &mut [i64],
    ) -> Result<()> {
        let len = rows.saturating_mul(matrix.rows);
        at_least("matmul_share", "out", out.len(), len)?;
        let product = self.alloc(len)?;
        self.multiply_units(matrix, x, rows, ends, &product)?;
        let mut values = vec![0.0; len];
        self.download(&product, 0, &mut values)?;
        out.iter_mut()
            .zip(values)
            .for_each(|(out, value)| *out = fixed::from_f32(value));
        Ok(())
    }

    /// A bf16 product, by the kernel that suits the number of rows.
    fn product(&self, product: &Product) -> Result<()> {
        let &Product {
            x,
            w,
            out,
            rows,
            outputs,
            stride,
            accumulate,
        } = product;
        let sizes = [
            rows as u32,
            outputs as u32,
            stride as u32,
            u32::from(accumulate),
        ]
        .map(Arg::U32);
        let [rows_arg, outputs_arg, stride_arg, accumulate_arg] = sizes;
        let (x, w, out) = (Arg::Pointer(x), Arg::Pointer(w), Arg::Pointer(out));
        let args = [x, w, rows_arg, outputs_arg, stride_arg, accumulate_arg, out];
        if rows <= GEMV_ROWS {
            let kernel = match rows {
                1 => "gemv_bf16_1",
                2 => "gemv_bf16_2",
                3 | 4 => "gemv_bf16_4",
                _ => "gemv_bf16_8",
            };
            let grid = [outputs.div_ceil(4) as u32, 1, 1];
            return self.run(Launch {
                kernel,
                grid,
                threads: 128,
                shared: 0,
                args: &args,
            });
        }
        // SAFETY: `multiply` checked the sizes of all three, which are `Held`.
        if unsafe { self.device.product(product) }? {
            return Ok(());
        }
        let grid = [outputs.div_ceil(64) as u32, rows.div_ceil(64) as u32, 1];
        self.run(Launch {
            kernel: "matmul_bf16",
            grid,
            threads: 128,
            shared: 4 * 64 * 72 * 2,
            args: &args,
        })
    }
}
