//! The parts of [`Backend`](crate::Backend) on a device: every method checks its shapes and
//! launches the kernel of the same name.

use std::sync::Arc;

use super::attention::SPLIT;
use super::select::Kept;
use super::slots::Pages;
use super::weights::Matrix;
use super::{Arg, Buffer, CudaBackend, Device, Launch, Pack, Precision, at_least};
use crate::backend::{
    AssociativeLayer, Attention, AttentionItem, Boundary, Buffers, Cache, DecodeStep, Features,
    HeadPages, IndexItem, IndexShape, Indexing, LatentMemory, ObserveItem, PageShape, Products,
    QkvShape, RankSums, ReadoutItem, RotateItem, Rows, Sampling, Scoring, SelectBudget, SelectHead,
    SplitQkv, Steps, WeightView,
};
use crate::error::{Error, Result};
use crate::latent::{LatentHead, LatentId, LatentKind, LatentState};
use crate::sample::SampleItem;
use crate::score::{NoteItem, ScoreItem};
use crate::sums::DeviceSums;

/// Values of an upload that goes with a step's descriptors, at most.
const PUT_WORDS: usize = 1 << 20;

impl<D: Device> Buffers for CudaBackend<D> {
    type Buffer = Buffer<D>;

    fn name(&self) -> String {
        let precision = match self.precision {
            Precision::Bf16 => "bf16",
            Precision::F32 => "f32",
        };
        format!("cuda {precision} ({})", self.device.device.name())
    }

    fn alloc(&self, len: usize) -> Result<Buffer<D>> {
        let bytes = len.checked_mul(4).ok_or(Error::OutOfMemory {
            what: "buffer",
            bytes: usize::MAX,
        })?;
        Ok(Buffer {
            memory: self.device.alloc("buffer", bytes)?,
            len,
        })
    }

    fn upload(&self, src: &[f32], dst: &mut Buffer<D>, offset: usize) -> Result<()> {
        at_least("upload", "dst", dst.len, offset.saturating_add(src.len()))?;
        let mut work = self.work();
        let mut pack = Pack::of_step(&self.device);
        if pack.shape.is_none() || src.len() > PUT_WORDS {
            drop(work);
            return self
                .device
                .upload(bytemuck::cast_slice(src), &dst.memory, offset * 4);
        }
        let values = pack.push(src);
        let from = pack.upload(&self.device, &mut work.stage)?(values);
        let to = Arg::Pointer(dst.address() + 4 * offset as u64);
        let grid = [src.len().div_ceil(256) as u32, 1, 1];
        let args = [from, Arg::U32(src.len() as u32), to];
        self.run(Launch {
            kernel: "put_words",
            grid,
            threads: 256,
            shared: 0,
            args: &args,
        })
    }

    fn download(&self, src: &Buffer<D>, offset: usize, dst: &mut [f32]) -> Result<()> {
        at_least("download", "src", src.len, offset.saturating_add(dst.len()))?;
        self.device
            .download(&src.memory, offset * 4, bytemuck::cast_slice_mut(dst))
    }
}

impl<D: Device> Steps for CudaBackend<D> {
    fn begin_decode(&self, step: &DecodeStep<'_>) -> Option<usize> {
        self.device.open(step, SPLIT)
    }

    fn end_decode(&self) -> Result<()> {
        self.device.close()
    }

    fn cancel_decode(&self) {
        self.device.forget();
    }
}

impl<D: Device> Products for CudaBackend<D> {
    type Matrix = Matrix<D>;

    fn load_matrix(&self, parts: &[WeightView<'_>]) -> Result<Matrix<D>> {
        self.load(parts)
    }

    fn matrix_bytes(&self, matrix: &Matrix<D>) -> usize {
        self.bytes_of(matrix)
    }

    fn embed(&self, table: &Matrix<D>, ids: &[u32], out: &mut Buffer<D>) -> Result<()> {
        self.embed_rows(table, ids, out)
    }

    fn matmul(
        &self,
        matrix: &Matrix<D>,
        x: &Buffer<D>,
        rows: usize,
        bias: Option<&Buffer<D>>,
        out: &mut Buffer<D>,
    ) -> Result<()> {
        self.multiply(matrix, x, rows, bias, out)
    }

    fn matmul_units(
        &self,
        matrix: &Matrix<D>,
        x: &Buffer<D>,
        rows: usize,
        ends: &[usize],
        out: &mut Buffer<D>,
    ) -> Result<()> {
        self.multiply_units(matrix, x, rows, ends, out)
    }

    fn matmul_share(
        &self,
        matrix: &Matrix<D>,
        x: &Buffer<D>,
        rows: usize,
        ends: &[usize],
        out: &mut [i64],
    ) -> Result<()> {
        self.multiply_share(matrix, x, rows, ends, out)
    }
}

impl<D: Device> RankSums for CudaBackend<D> {
    fn join_sums(&self, sums: Option<Arc<dyn DeviceSums>>) -> bool {
        self.device.join_sums(sums);
        true
    }

    fn matmul_sum(
        &self,
        matrix: &Matrix<D>,
        x: &Buffer<D>,
        rows: usize,
        ends: &[usize],
        out: &mut Buffer<D>,
    ) -> Result<()> {
        self.multiply_sum(matrix, x, rows, ends, out)
    }

    fn embed_sum(&self, table: &Matrix<D>, ids: &[Option<u32>], out: &mut Buffer<D>) -> Result<()> {
        self.embed_sum_rows(table, ids, out)
    }
}

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
        let args = [
            x.arg(),
            weight.arg(),
            Arg::F32(eps),
            Arg::U32(width as u32),
            out.arg(),
        ];
        self.run(Launch {
            kernel: "rms_norm",
            grid: [rows as u32, 1, 1],
            threads: 256,
            shared: 0,
            args: &args,
        })
    }

    fn add(&self, x: &mut Buffer<D>, y: &Buffer<D>, len: usize) -> Result<()> {
        at_least("add", "x", x.len, len)?;
        at_least("add", "y", y.len, len)?;
        let args = [x.arg(), y.arg(), Arg::U64(len as u64)];
        let grid = [len.div_ceil(256) as u32, 1, 1];
        self.run(Launch {
            kernel: "add",
            grid,
            threads: 256,
            shared: 0,
            args: &args,
        })
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
        let args = [gate_up.arg(), Arg::U32(width as u32), out.arg()];
        self.run(Launch {
            kernel: "silu_mul",
            grid: [rows as u32, 1, 1],
            threads: 256,
            shared: 0,
            args: &args,
        })
    }

    fn gather_rows(
        &self,
        x: &Buffer<D>,
        width: usize,
        rows: &[usize],
        out: &mut Buffer<D>,
    ) -> Result<()> {
        let (op, len) = ("gather_rows", x.len / width.max(1));
        at_least(op, "out", out.len, rows.len().saturating_mul(width))?;
        if let Some(&index) = rows.iter().find(|&&row| row >= len) {
            return Err(Error::Index {
                op,
                what: "row",
                index,
                len,
            });
        }
        let list: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
        let mut work = self.work();
        let mut pack = Pack::new();
        let list = pack.push(&list);
        let arg = pack.upload(&self.device, &mut work.stage)?;
        let args = [x.arg(), Arg::U32(width as u32), arg(list), out.arg()];
        let grid = [rows.len() as u32, 1, 1];
        self.run(Launch {
            kernel: "gather_rows",
            grid,
            threads: 256,
            shared: 0,
            args: &args,
        })
    }
}

impl<D: Device> Sampling for CudaBackend<D> {
    fn sample(
        &self,
        logits: &mut Buffer<D>,
        vocabulary: usize,
        items: &[SampleItem<'_>],
    ) -> Result<Vec<Option<u32>>> {
        self.sample_tokens(logits, vocabulary, items)
    }
}

impl<D: Device> Cache for CudaBackend<D> {
    type Pages = Pages<D>;

    fn alloc_pages(&self, shape: PageShape, count: usize) -> Result<Pages<D>> {
        self.new_pages(shape, count)
    }

    fn split_qkv(
        &self,
        args: SplitQkv<'_, Self>,
        pages: &mut Pages<D>,
        q: &mut Buffer<D>,
    ) -> Result<()> {
        self.split(args, pages, q)
    }

    fn rotate_keys(
        &self,
        pages: &mut Pages<D>,
        items: &[RotateItem<'_>],
        inv_freq: &[f32],
    ) -> Result<()> {
        self.rotate(pages, items, inv_freq)
    }

    fn read_slots(
        &self,
        pages: &Pages<D>,
        head: HeadPages<'_>,
        slots: &[u32],
        keys: &mut [f32],
        values: &mut [f32],
    ) -> Result<()> {
        self.read(pages, head, slots, (keys, values))
    }

    fn write_slots(
        &self,
        pages: &mut Pages<D>,
        head: HeadPages<'_>,
        first: usize,
        keys: &[f32],
        values: &[f32],
    ) -> Result<()> {
        self.write(pages, head, first, (keys, values))
    }
}

impl<D: Device> Attention for CudaBackend<D> {
    fn attention(
        &self,
        shape: QkvShape,
        pages: &Pages<D>,
        q: &Buffer<D>,
        items: &[AttentionItem<'_>],
        out: &mut Buffer<D>,
    ) -> Result<()> {
        self.attend(shape, pages, q, items, out)
    }

    fn observe(
        &self,
        shape: QkvShape,
        pages: &Pages<D>,
        q: &Buffer<D>,
        items: &[ObserveItem<'_>],
        out: &mut [Vec<f32>],
    ) -> Result<()> {
        self.observe_all(shape, pages, q, items, out)
    }
}

impl<D: Device> Scoring for CudaBackend<D> {
    fn note(
        &self,
        pages: &mut Pages<D>,
        values: &Buffer<D>,
        width: usize,
        items: &[NoteItem<'_>],
    ) -> Result<()> {
        self.write_notes(pages, values, width, items)
    }

    fn read_notes(&self, pages: &Pages<D>, head: HeadPages<'_>) -> Result<Vec<u32>> {
        self.download_notes(pages, head)
    }

    fn score(
        &self,
        pages: &Pages<D>,
        at: u32,
        items: &[ScoreItem<'_>],
        out: &mut Buffer<D>,
    ) -> Result<()> {
        self.score_slots(pages, at, items, out)
    }
}

impl<D: Device> Boundary for CudaBackend<D> {
    type Kept = Kept<D>;

    fn select(
        &self,
        budget: SelectBudget,
        scores: &Buffer<D>,
        heads: &[SelectHead],
    ) -> Result<Kept<D>> {
        self.select_slots(budget, scores, heads)
    }

    fn keep_lists(&self, lens: &[usize], lists: &[Vec<u32>]) -> Result<Kept<D>> {
        self.upload_lists(lens, lists)
    }

    fn kept(&self, kept: &Kept<D>) -> Result<Vec<Vec<u32>>> {
        self.download_lists(kept)
    }

    fn compact(&self, pages: &mut Pages<D>, heads: &[HeadPages<'_>], kept: &Kept<D>) -> Result<()> {
        self.compact_slots(pages, heads, kept)
    }
}

impl<D: Device> LatentMemory for CudaBackend<D> {
    fn reserve_latents(&self, pages: &mut Pages<D>, bytes: usize) -> Result<()> {
        self.reserve_room(pages, bytes)
    }

    fn alloc_latent(
        &self,
        pages: &mut Pages<D>,
        kind: LatentKind,
        heads: usize,
    ) -> Result<LatentId> {
        self.new_latent(pages, kind, heads)
    }

    fn free_latent(&self, pages: &mut Pages<D>, id: LatentId) {
        pages.free(id);
    }

    fn memorise(
        &self,
        pages: &mut Pages<D>,
        id: LatentId,
        features: Option<Features<'_, Buffer<D>>>,
        heads: &[HeadPages<'_>],
        kept: &Kept<D>,
    ) -> Result<()> {
        self.merge_slots(pages, id, features, heads, kept)
    }

    fn read_latent(&self, pages: &Pages<D>, head: LatentHead) -> Result<LatentState> {
        self.download_state(pages, head)
    }

    fn write_latent(
        &self,
        pages: &mut Pages<D>,
        head: LatentHead,
        state: &LatentState,
    ) -> Result<()> {
        self.upload_state(pages, head, state)
    }

    fn readout(
        &self,
        layer: AssociativeLayer<'_, Self>,
        pages: &Pages<D>,
        q: &Buffer<D>,
        items: &[ReadoutItem],
        out: &mut Buffer<D>,
    ) -> Result<()> {
        self.read_memories(layer, (pages, q), items, out)
    }
}

impl<D: Device> Indexing for CudaBackend<D> {
    fn index(&self, shape: IndexShape, items: &mut [IndexItem<'_>]) -> Result<()> {
        self.score_pairs(shape, items)
    }
}
