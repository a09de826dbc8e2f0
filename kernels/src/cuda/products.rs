//! Products with weight matrices.

mod weights;

pub use weights::Matrix;

use super::backend::{Buffer, CudaBackend, Precision};
use super::checks::{at_least, within};
use super::descriptors::Descriptors;
use super::device::Device;
use super::launch::kernels::{CastRows, Embed, FillBias, Gemv, MatmulBf16, MatmulF32};
use super::launch::{Bf16, Kernel, Product, Ptr, PtrMut};
use crate::backend::{Buffers, Products, WeightView};
use crate::error::Result;
use crate::fixed;

/// Rows up to which a product reads the weights once and needs no tiles.
const GEMV_ROWS: usize = 8;
/// Rows and outputs of a tile of the other products.
const TILE: usize = 64;
/// Bytes of shared memory of a tiled bf16 product: two stages of two tiles, whose rows are eight
/// elements longer than the tile.
const TILES_BYTES: usize = 4 * TILE * (TILE + 8) * 2;

impl<D: Device> Products for CudaBackend<D> {
    type Matrix = Matrix<D>;

    fn load_matrix(&self, parts: &[WeightView<'_>]) -> Result<Matrix<D>> {
        weights::load(self, parts)
    }

    fn matrix_bytes(&self, matrix: &Matrix<D>) -> usize {
        matrix.rows * matrix.stride * weights::element_bytes(self.precision)
    }

    fn embed(&self, table: &Matrix<D>, ids: &[u32], out: &mut Buffer<D>) -> Result<()> {
        let op = "embed";
        at_least(op, "out", out.len, ids.len().saturating_mul(table.cols))?;
        for &id in ids {
            within(op, "token id", id as usize, table.rows)?;
        }
        self.launch_embed(table, ids, out)
    }

    fn matmul(
        &self,
        matrix: &Matrix<D>,
        x: &Buffer<D>,
        rows: usize,
        bias: Option<&Buffer<D>>,
        out: &mut Buffer<D>,
    ) -> Result<()> {
        let (op, outputs) = ("matmul", matrix.rows);
        at_least(op, "x", x.len, rows.saturating_mul(matrix.cols))?;
        at_least(op, "out", out.len, rows.saturating_mul(outputs))?;
        at_least(op, "bias", bias.map_or(outputs, |bias| bias.len), outputs)?;
        if rows == 0 || outputs == 0 {
            return Ok(());
        }

        if let Some(bias) = bias {
            let kernel = FillBias {
                bias: bias.ptr(),
                outputs: outputs as u32,
                out: out.ptr_mut(),
            };
            self.launch(kernel.blocks(rows))?;
        }
        match self.precision {
            Precision::Bf16 => self.matmul_bf16(matrix, x, rows, bias.is_some(), out),
            Precision::F32 => self.matmul_f32(matrix, x, rows, bias.is_some(), out),
        }
    }

    /// The columns are one unit: tiles of tensor cores do not end where units do.
    fn matmul_units(
        &self,
        matrix: &Matrix<D>,
        x: &Buffer<D>,
        rows: usize,
        ends: &[usize],
        out: &mut Buffer<D>,
    ) -> Result<()> {
        fixed::check_ends("matmul_units", ends, matrix.cols)?;
        self.matmul(matrix, x, rows, None, out)
    }

    fn matmul_share(
        &self,
        matrix: &Matrix<D>,
        x: &Buffer<D>,
        rows: usize,
        ends: &[usize],
        out: &mut [i64],
    ) -> Result<()> {
        let len = rows.saturating_mul(matrix.rows);
        at_least("matmul_share", "out", out.len(), len)?;
        let mut product = self.alloc(len)?;
        self.matmul_units(matrix, x, rows, ends, &mut product)?;
        let mut values = vec![0.0; len];
        self.download(&product, 0, &mut values)?;
        for (out, value) in out.iter_mut().zip(values) {
            *out = fixed::from_f32(value);
        }
        Ok(())
    }
}

impl<D: Device> CudaBackend<D> {
    /// Copies rows of a table, once ids and `out` were checked.
    pub(super) fn launch_embed(
        &self,
        table: &Matrix<D>,
        ids: &[u32],
        out: &mut Buffer<D>,
    ) -> Result<()> {
        let mut work = self.workspaces();
        let mut descriptors = Descriptors::of_call(&self.stream);
        let list = descriptors.push(ids);
        descriptors.send(&self.stream, &mut work.descriptors)?;
        let kernel = Embed {
            table: table.ptr(),
            is_f32: self.precision == Precision::F32,
            stride: table.stride as u32,
            cols: table.cols as u32,
            ids: list,
            out: out.ptr_mut(),
        };
        self.launch(kernel.blocks(ids.len()))
    }

    fn matmul_f32(
        &self,
        matrix: &Matrix<D>,
        x: &Buffer<D>,
        rows: usize,
        accumulate: bool,
        out: &mut Buffer<D>,
    ) -> Result<()> {
        let outputs = matrix.rows;
        let kernel = MatmulF32 {
            x: x.ptr(),
            w: matrix.ptr(),
            rows: rows as u32,
            outputs: outputs as u32,
            cols: matrix.cols as u32,
            stride: matrix.stride as u32,
            accumulate,
            out: out.ptr_mut(),
        };
        self.launch(kernel.grid(outputs.div_ceil(TILE), rows.div_ceil(TILE)))
    }

    /// A bf16 product: its activations are rounded to bf16 first.
    fn matmul_bf16(
        &self,
        matrix: &Matrix<D>,
        x: &Buffer<D>,
        rows: usize,
        accumulate: bool,
        out: &mut Buffer<D>,
    ) -> Result<()> {
        let stride = matrix.stride;
        let mut work = self.workspaces();
        let rounded = self
            .stream
            .reserve(&mut work.scratch, "activations", rows * stride * 2)?;
        let kernel = CastRows {
            x: x.ptr(),
            cols: matrix.cols as u32,
            stride: stride as u32,
            out: PtrMut::at(rounded),
        };
        self.launch(kernel.blocks(rows))?;
        self.product(&Product {
            x: rounded,
            w: matrix.ptr::<Bf16>().address(),
            out: out.address(),
            rows,
            outputs: matrix.rows,
            stride,
            accumulate,
        })
    }

    /// A product of bf16 matrices, by the kernel or the library that suits the number of rows.
    fn product(&self, product: &Product) -> Result<()> {
        let &Product { rows, outputs, .. } = product;
        if rows <= GEMV_ROWS {
            let kernel = Gemv {
                x: Ptr::at(product.x),
                w: Ptr::at(product.w),
                rows: rows as u32,
                outputs: outputs as u32,
                stride: product.stride as u32,
                accumulate: product.accumulate,
                out: PtrMut::at(product.out),
            };
            return self.launch(kernel.blocks(outputs.div_ceil(4)));
        }
        // SAFETY: `matmul` checked the sizes of all three, which are `StreamMemory`.
        if unsafe { self.stream.product(product) }? {
            return Ok(());
        }
        let kernel = MatmulBf16 {
            x: Ptr::at(product.x),
            w: Ptr::at(product.w),
            rows: rows as u32,
            outputs: outputs as u32,
            stride: product.stride as u32,
            accumulate: product.accumulate,
            out: PtrMut::at(product.out),
        };
        let launch = kernel.grid(outputs.div_ceil(TILE), rows.div_ceil(TILE));
        self.launch(launch.with_shared(TILES_BYTES))
    }
}
