//! Rows of activations: norms, sums, gates, gathers.

use super::backend::{Buffer, CudaBackend};
use super::checks::{at_least, within};
use super::descriptors::Descriptors;
use super::device::Device;
use super::launch::Kernel;
use super::launch::kernels::{Add, GatherRows, RmsNorm, SiluMul};
use crate::backend::Rows;
use crate::error::Result;

impl<D: Device> Rows for CudaBackend<D> {
    fn rms_norm(
        &self,
        x: &Buffer<D>,
        weight: &Buffer<D>,
        eps: f32,
        rows: usize,
        out: &mut Buffer<D>,
    ) -> Result<()> {
        let (op, width) = ("rms_norm", weight.len);
        at_least(op, "x", x.len, rows.saturating_mul(width))?;
        at_least(op, "out", out.len, rows.saturating_mul(width))?;
        let kernel = RmsNorm {
            x: x.ptr(),
            weight: weight.ptr(),
            eps,
            width: width as u32,
            out: out.ptr_mut(),
        };
        self.launch(kernel.blocks(rows))
    }

    fn add(&self, x: &mut Buffer<D>, y: &Buffer<D>, len: usize) -> Result<()> {
        at_least("add", "x", x.len, len)?;
        at_least("add", "y", y.len, len)?;
        let kernel = Add {
            x: x.ptr_mut(),
            y: y.ptr(),
            len: len as u64,
        };
        self.launch(kernel.blocks(len.div_ceil(256)))
    }

    fn silu_mul(
        &self,
        gate_up: &Buffer<D>,
        rows: usize,
        width: usize,
        out: &mut Buffer<D>,
    ) -> Result<()> {
        let (op, values) = ("silu_mul", rows.saturating_mul(width));
        at_least(op, "gate_up", gate_up.len, values.saturating_mul(2))?;
        at_least(op, "out", out.len, values)?;
        let kernel = SiluMul {
            gate_up: gate_up.ptr(),
            width: width as u32,
            out: out.ptr_mut(),
        };
        self.launch(kernel.blocks(rows))
    }

    fn gather_rows(
        &self,
        x: &Buffer<D>,
        width: usize,
        rows: &[usize],
        out: &mut Buffer<D>,
    ) -> Result<()> {
        let op = "gather_rows";
        at_least(op, "out", out.len, rows.len().saturating_mul(width))?;
        let len = x.len / width.max(1);
        rows.iter()
            .try_for_each(|&row| within(op, "row", row, len))?;
        let list: Vec<u32> = rows.iter().map(|&row| row as u32).collect();

        let mut work = self.workspaces();
        let mut descriptors = Descriptors::of_call(&self.stream);
        let list = descriptors.push(&list);
        descriptors.send(&self.stream, &mut work.descriptors)?;
        let kernel = GatherRows {
            x: x.ptr(),
            width: width as u32,
            rows: list,
            out: out.ptr_mut(),
        };
        self.launch(kernel.blocks(rows.len()))
    }
}
