//! The parts of [`Backend`](crate::Backend) on the CPU: every method hands its slices to the kernel
//! of the same name.

use std::sync::OnceLock;

use super::device::CpuBackend;
use super::elementwise::Gated;
use super::pack::CpuMatrix;
use super::pages::CpuPages;
use super::simd::SimdLevel;
use super::split_qkv::SplitArgs;
use super::{
    attention, elementwise, embed, index, matmul, memorise, observe, readout, scoring, slots,
    split_qkv, stored,
};
use crate::backend::{
    AssociativeLayer, Attention, AttentionItem, Boundary, Buffers, Cache, Features, HeadPages,
    IndexItem, IndexShape, Indexing, LatentMemory, ObserveItem, PageShape, Products, QkNorm,
    QkvShape, RankSums, ReadoutItem, RotateItem, RowOperation, Rows, Sampling, Scoring,
    SelectBudget, SelectHead, SplitQkv, Steps, WeightView,
};
use crate::error::{Error, Result, at_least};
use crate::latent::{LatentHead, LatentId, LatentKind, LatentState};
use crate::likelihood::{self, KnownToken, Likelihood};
use crate::sample::{self, SampleItem};
use crate::score::{NoteItem, ScoreItem};
use crate::select::{self, KeptLists};

impl Buffers for CpuBackend {
    type Buffer = Vec<f32>;

    fn name(&self) -> String {
        let activations = self.activations.name();
        let simd = match self.simd {
            SimdLevel::Portable => "portable",
            SimdLevel::Avx2 => "avx2",
        };
        format!(
            "cpu ({simd}, {} threads, {activations} activations)",
            self.pool.threads()
        )
    }

    /// Neither threads nor the instruction set change a bit.
    fn arithmetic(&self) -> String {
        format!("cpu {}", self.activations.name())
    }

    fn alloc(&self, len: usize) -> Result<Vec<f32>> {
        let mut buffer = Vec::new();
        let bytes = len.saturating_mul(size_of::<f32>());
        buffer
            .try_reserve_exact(len)
            .map_err(|_| Error::OutOfMemory {
                what: "buffer",
                bytes,
            })?;
        buffer.resize(len, 0.0);
        Ok(buffer)
    }

    fn upload(&self, src: &[f32], dst: &mut Vec<f32>, offset: usize) -> Result<()> {
        let want = offset.saturating_add(src.len());
        at_least("upload", "dst", dst.len(), want)?;
        dst[offset..want].copy_from_slice(src);
        Ok(())
    }

    fn download(&self, src: &Vec<f32>, offset: usize, dst: &mut [f32]) -> Result<()> {
        let want = offset.saturating_add(dst.len());
        at_least("download", "src", src.len(), want)?;
        dst.copy_from_slice(&src[offset..want]);
        Ok(())
    }
}

impl Steps for CpuBackend {}

impl Products for CpuBackend {
    type Matrix = CpuMatrix;

    fn load_matrix(&self, parts: &[WeightView<'_>]) -> Result<CpuMatrix> {
        CpuMatrix::load(&self.pool, parts)
    }

    fn matrix_bytes(&self, matrix: &CpuMatrix) -> usize {
        matrix.bytes()
    }

    fn embed(&self, table: &CpuMatrix, ids: &[u32], out: &mut Vec<f32>) -> Result<()> {
        embed::embed(self, table, ids, out)
    }

    fn matmul(
        &self,
        matrix: &CpuMatrix,
        x: &Vec<f32>,
        rows: usize,
        bias: Option<&Vec<f32>>,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        matmul::matmul(self, matrix, x, rows, bias.map(Vec::as_slice), out)
    }

    fn matmul_units(
        &self,
        matrix: &CpuMatrix,
        x: &Vec<f32>,
        rows: usize,
        ends: &[usize],
        out: &mut Vec<f32>,
    ) -> Result<()> {
        matmul::matmul_fixed(self, matrix, x, rows, ends, out.as_mut_slice())
    }

    fn matmul_share(
        &self,
        matrix: &CpuMatrix,
        x: &Vec<f32>,
        rows: usize,
        ends: &[usize],
        out: &mut [i64],
    ) -> Result<()> {
        matmul::matmul_fixed(self, matrix, x, rows, ends, out)
    }
}

impl RankSums for CpuBackend {}

impl Rows for CpuBackend {
    fn rms_norm(
        &self,
        x: &Vec<f32>,
        weight: &Vec<f32>,
        eps: f32,
        rows: usize,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        elementwise::rms_norm(self.exec(), x, weight, eps, rows, out)
    }

    fn add(&self, x: &mut Vec<f32>, y: &Vec<f32>, len: usize) -> Result<()> {
        elementwise::add(self.exec(), x, y, len)
    }

    fn silu_mul(
        &self,
        gate_up: &Vec<f32>,
        rows: usize,
        width: usize,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let gated = Gated {
            gate_up,
            rows,
            width,
            out,
        };
        elementwise::silu_mul(self.exec(), gated)
    }

    fn offers(&self, _: RowOperation) -> bool {
        true
    }

    fn gelu_mul(
        &self,
        gate_up: &Vec<f32>,
        rows: usize,
        width: usize,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let gated = Gated {
            gate_up,
            rows,
            width,
            out,
        };
        elementwise::gelu_mul(self.exec(), gated)
    }

    fn clamped_mul(
        &self,
        gate_up: &Vec<f32>,
        rows: usize,
        width: usize,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let gated = Gated {
            gate_up,
            rows,
            width,
            out,
        };
        elementwise::clamped_mul(self.exec(), gated)
    }

    fn scale_rows(&self, x: &mut Vec<f32>, width: usize, factors: &[f32]) -> Result<()> {
        elementwise::scale_rows(self.exec(), x, width, factors)
    }

    fn gather_rows(
        &self,
        x: &Vec<f32>,
        width: usize,
        rows: &[usize],
        out: &mut Vec<f32>,
    ) -> Result<()> {
        elementwise::gather_rows(x, width, rows, out)
    }
}

impl Sampling for CpuBackend {
    fn sample(
        &self,
        logits: &mut Vec<f32>,
        vocabulary: usize,
        items: &[SampleItem<'_>],
    ) -> Result<Vec<Option<u32>>> {
        sample::check(items, logits.len() / vocabulary.max(1), vocabulary)?;
        let choose = |item: &SampleItem<'_>| {
            sample::choose(
                &mut logits[item.row * vocabulary..(item.row + 1) * vocabulary],
                item,
            )
        };
        Ok(items.iter().map(choose).collect())
    }

    fn likelihoods(
        &self,
        logits: &Vec<f32>,
        vocabulary: usize,
        items: &[KnownToken],
    ) -> Result<Vec<Likelihood>> {
        likelihood::check(items, logits.len() / vocabulary.max(1), vocabulary)?;
        // A row is the work of one thread, so its bits are the same for any number of threads.
        let found: Vec<OnceLock<Likelihood>> = items.iter().map(|_| OnceLock::new()).collect();
        self.exec()
            .run(items.len(), items.len() * vocabulary, &|index| {
                let item = &items[index];
                let row = &logits[item.row * vocabulary..][..vocabulary];
                found[index].get_or_init(|| likelihood::likelihood(row, item));
            });
        let told = found.into_iter().map(OnceLock::into_inner);
        Ok(told.map(|one| one.expect("every task has run")).collect())
    }
}

impl Cache for CpuBackend {
    type Pages = CpuPages;

    fn alloc_pages(&self, shape: PageShape, count: usize) -> Result<CpuPages> {
        CpuPages::alloc(shape, count)
    }

    fn split_qkv(
        &self,
        args: SplitQkv<'_, Self>,
        pages: &mut CpuPages,
        q: &mut Vec<f32>,
    ) -> Result<()> {
        let SplitQkv {
            shape,
            qkv,
            rows,
            cos,
            sin,
            qk_norm,
            items,
        } = args;
        let qk_norm = qk_norm.map(|norm| QkNorm {
            query: &norm.query[..],
            key: &norm.key[..],
            eps: norm.eps,
        });
        split_qkv::split_qkv(
            self.exec(),
            &SplitArgs {
                shape,
                qkv,
                rows,
                cos,
                sin,
                qk_norm,
                items,
            },
            pages,
            q,
        )
    }

    fn rotate_keys(
        &self,
        pages: &mut CpuPages,
        items: &[RotateItem<'_>],
        inv_freq: &[f32],
    ) -> Result<()> {
        slots::rotate_keys(self.exec(), pages, items, inv_freq)
    }

    fn read_slots(
        &self,
        pages: &CpuPages,
        head: HeadPages<'_>,
        slots: &[u32],
        keys: &mut [f32],
        values: &mut [f32],
    ) -> Result<()> {
        slots::read_slots(self.exec(), pages, head, slots, keys, values)
    }

    fn write_slots(
        &self,
        pages: &mut CpuPages,
        head: HeadPages<'_>,
        first: usize,
        keys: &[f32],
        values: &[f32],
    ) -> Result<()> {
        slots::write_slots(self.exec(), pages, head, first, keys, values)
    }

    fn save_slots(&self, pages: &CpuPages, heads: &[HeadPages<'_>], out: &mut [u8]) -> Result<()> {
        stored::save_slots(self.exec(), pages, heads, out)
    }

    fn load_slots(&self, pages: &mut CpuPages, heads: &[HeadPages<'_>], from: &[u8]) -> Result<()> {
        stored::load_slots(self.exec(), pages, heads, from)
    }
}

impl Attention for CpuBackend {
    fn offers_sinks(&self) -> bool {
        true
    }

    fn attention(
        &self,
        shape: QkvShape,
        pages: &CpuPages,
        q: &Vec<f32>,
        items: &[AttentionItem<'_>],
        out: &mut Vec<f32>,
    ) -> Result<()> {
        attention::attention(self.exec(), shape, pages, q, items, out)
    }

    fn observe(
        &self,
        shape: QkvShape,
        pages: &CpuPages,
        q: &Vec<f32>,
        items: &[ObserveItem<'_>],
        out: &mut [Vec<f32>],
    ) -> Result<()> {
        observe::observe(self.exec(), shape, pages, q, items, out)
    }
}

impl Scoring for CpuBackend {
    fn note(
        &self,
        pages: &mut CpuPages,
        values: &Vec<f32>,
        width: usize,
        items: &[NoteItem<'_>],
    ) -> Result<()> {
        scoring::note(pages, values, width, items)
    }

    fn read_notes(&self, pages: &CpuPages, head: HeadPages<'_>) -> Result<Vec<u32>> {
        scoring::read_notes(pages, head)
    }

    fn write_notes(
        &self,
        pages: &mut CpuPages,
        head: HeadPages<'_>,
        notes: &[u32],
        positions: &[u32],
    ) -> Result<()> {
        scoring::write_notes(pages, head, notes, positions)
    }

    fn score(
        &self,
        pages: &CpuPages,
        at: u32,
        items: &[ScoreItem<'_>],
        out: &mut Vec<f32>,
    ) -> Result<()> {
        scoring::score(self.exec(), pages, at, items, out)
    }
}

impl Boundary for CpuBackend {
    type Kept = KeptLists;

    fn select(
        &self,
        budget: SelectBudget,
        scores: &Vec<f32>,
        heads: &[SelectHead],
    ) -> Result<KeptLists> {
        select::select(budget, &select::scored(scores, heads)?)
    }

    fn keep_lists(&self, lens: &[usize], lists: &[Vec<u32>]) -> Result<KeptLists> {
        KeptLists::new(lens, lists)
    }

    fn kept(&self, kept: &KeptLists) -> Result<Vec<Vec<u32>>> {
        Ok(kept.lists().to_vec())
    }

    fn compact(
        &self,
        pages: &mut CpuPages,
        heads: &[HeadPages<'_>],
        kept: &KeptLists,
    ) -> Result<()> {
        slots::compact(self.exec(), pages, heads, kept)
    }
}

impl LatentMemory for CpuBackend {
    fn alloc_latent(
        &self,
        pages: &mut CpuPages,
        kind: LatentKind,
        heads: usize,
    ) -> Result<LatentId> {
        pages.latents_mut().create(kind, heads)
    }

    fn free_latent(&self, pages: &mut CpuPages, id: LatentId) {
        pages.latents_mut().remove(id);
    }

    fn memorise(
        &self,
        pages: &mut CpuPages,
        id: LatentId,
        features: Option<Features<'_, Vec<f32>>>,
        heads: &[HeadPages<'_>],
        kept: &KeptLists,
    ) -> Result<()> {
        let features = features.map(|features| Features {
            values: &features.values[..],
            count: features.count,
        });
        memorise::memorise(self.exec(), pages, id, features, heads, kept)
    }

    fn read_latent(&self, pages: &CpuPages, head: LatentHead) -> Result<LatentState> {
        pages.latents().head("read_latent", head).cloned()
    }

    fn write_latent(
        &self,
        pages: &mut CpuPages,
        head: LatentHead,
        state: &LatentState,
    ) -> Result<()> {
        let dim = pages.head_dim();
        pages.latents_mut().write(head, state, dim)
    }

    fn readout(
        &self,
        layer: AssociativeLayer<'_, Self>,
        pages: &CpuPages,
        q: &Vec<f32>,
        items: &[ReadoutItem],
        out: &mut Vec<f32>,
    ) -> Result<()> {
        readout::readout(self.exec(), layer, pages, q, items, out)
    }
}

impl Indexing for CpuBackend {
    fn index(&self, shape: IndexShape, items: &mut [IndexItem<'_>]) -> Result<()> {
        index::index(self.exec(), shape, items)
    }
}
