//! The other ranks of a group, as a decoder talks to them in a step.
//!
//! Per step: one sum after the embedding, two per layer (attention output, feed-forward output),
//! one gather of logits where a token is sampled. At a boundary that evicts, budgets pooled over
//! the whole model add five small sums; where ranks share KV heads, policies that look at attention
//! add one gather for all layers, and a count for its length. Alone, a rank exchanges nothing. The
//! two sums per layer are of integers ([`palimpsest_kernels::fixed`]), so that they do not depend
//! on the number of ranks.
//!
//! Where both the device and the communicator can, the sums of a step's layers and of its embedding
//! stay on the device ([`palimpsest_kernels::sums`]). All else is the host's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use palimpsest_collective::Collective;
use palimpsest_kernels::sums::DeviceSums;
use palimpsest_kernels::{Backend, fixed};

use crate::error::Result;

/// Collectives of one decoder, within the deadline of the present step.
pub struct Peers {
    collective: Option<Arc<dyn Collective>>,
    /// Those that the device has joined.
    sums: Option<Arc<dyn DeviceSums>>,
    limit: Duration,
    deadline: Instant,
    calls: Calls,
    mine: Vec<f32>,
    all: Vec<f32>,
    shares: Vec<i64>,
}

/// Collectives called so far.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Calls {
    /// Sums of activations.
    pub sums: u64,
    /// Gathers of activations or logits.
    pub gathers: u64,
    /// Sums of counts.
    pub counts: u64,
}

/// A product of a matrix whose input columns are dealt to the ranks of a group.
pub struct RowParallel<'a, B: Backend> {
    /// This rank's columns `[N, K]`.
    pub matrix: &'a B::Matrix,
    /// Their inputs `[T, K]`.
    pub x: &'a B::Buffer,
    /// `T`.
    pub rows: usize,
    /// `N`.
    pub width: usize,
    /// Where the units end in which the product is summed, see [`crate::shard`].
    pub units: &'a [usize],
}

/// Longest time that a step's collectives may take together, unless the caller says otherwise.
const STEP_LIMIT: Duration = Duration::from_secs(60);

impl Peers {
    /// A rank that is alone.
    pub fn alone() -> Self {
        Self {
            collective: None,
            sums: None,
            limit: STEP_LIMIT,
            deadline: Instant::now(),
            calls: Calls::default(),
            mine: Vec::new(),
            all: Vec::new(),
            shares: Vec::new(),
        }
    }

    /// Exchanges over `collective` from now on, for a rank that computes on `backend`.
    pub fn join<B: Backend>(&mut self, backend: &B, collective: Arc<dyn Collective>) {
        let sums = collective.clone().device_sums();
        let joined = backend.join_sums(sums.clone());
        self.sums = sums.filter(|_| joined);
        self.collective = Some(collective);
    }

    /// Whether the sums of layers and embeddings stay on the device.
    pub fn sums_on_device(&self) -> bool {
        self.sums.is_some()
    }

    /// The communicator, if the rank is not alone.
    pub fn collective(&self) -> Option<&Arc<dyn Collective>> {
        self.collective.as_ref()
    }

    /// Starts the clock of a step.
    pub fn begin_step(&mut self) {
        self.deadline = Instant::now() + self.limit;
        if let Some(sums) = &self.sums {
            sums.set_deadline(self.deadline);
        }
    }

    /// Collectives called so far.
    pub fn calls(&self) -> Calls {
        self.calls
    }

    /// The product of a row-parallel matrix, summed over all ranks: `[T, N]` into `out`. On the CPU
    /// it has the same bits for any number of ranks.
    ///
    /// # Errors
    /// Those of the collective and of the device.
    pub fn row_parallel<B: Backend>(
        &mut self,
        backend: &B,
        product: &RowParallel<'_, B>,
        out: &mut B::Buffer,
    ) -> Result<()> {
        let RowParallel {
            matrix,
            x,
            rows,
            width,
            units,
        } = *product;
        if self.collective.is_none() {
            return Ok(backend.matmul_units(matrix, x, rows, units, out)?);
        }
        if self.sums.is_some() {
            self.calls.sums += 1;
            return Ok(backend.matmul_sum(matrix, x, rows, units, out)?);
        }
        let mut shares = std::mem::take(&mut self.shares);
        shares.resize(rows * width, 0);
        backend.matmul_share(matrix, x, rows, units, &mut shares)?;
        let summed = self.sum_shares(backend, &mut shares, out);
        self.shares = shares;
        summed
    }

    /// Sums over all ranks what each has added up in fixed point ([`palimpsest_kernels::fixed`]),
    /// as f32 into `out`. `shares` are spent.
    ///
    /// # Errors
    /// Those of the collective and of the device.
    pub fn sum_shares<B: Backend>(
        &mut self,
        backend: &B,
        shares: &mut [i64],
        out: &mut B::Buffer,
    ) -> Result<()> {
        if let Some(collective) = &self.collective {
            // Addition of two's complements is that of counts.
            shares
                .iter_mut()
                .for_each(|sum| *sum = fixed::one_poison(*sum));
            self.calls.sums += 1;
            collective.all_reduce_counts(bytemuck::cast_slice_mut(shares), self.deadline)?;
        }
        self.mine.clear();
        self.mine
            .extend(shares.iter().map(|&sum| fixed::to_f32(sum)));
        Ok(backend.upload(&self.mine, out, 0)?)
    }

    /// Rows of a table of `width` columns, of which this rank has some: `ids` count from its first
    /// one, `None` where another rank has the row. The sum has them all: `[T, width]` into `out`.
    ///
    /// # Errors
    /// Those of the collective and of the device.
    pub fn embed<B: Backend>(
        &mut self,
        backend: &B,
        table: &B::Matrix,
        ids: &[Option<u32>],
        width: usize,
        out: &mut B::Buffer,
    ) -> Result<()> {
        if self.sums.is_some() {
            self.calls.sums += 1;
            return Ok(backend.embed_sum(table, ids, out)?);
        }
        let local: Vec<u32> = ids.iter().map(|id| id.unwrap_or(0)).collect();
        backend.embed(table, &local, out)?;
        let mut values = vec![0.0; ids.len() * width];
        backend.download(out, 0, &mut values)?;
        for (row, _) in values
            .chunks_exact_mut(width)
            .zip(ids)
            .filter(|(_, id)| id.is_none())
        {
            // Negative zero changes nothing that is added to it, not even the sign of a zero.
            row.fill(-0.0);
        }
        self.sum(&mut values)?;
        Ok(backend.upload(&values, out, 0)?)
    }

    /// Sums values over all ranks, in rank order.
    ///
    /// # Errors
    /// Those of the collective.
    pub fn sum(&mut self, values: &mut [f32]) -> Result<()> {
        if let Some(collective) = &self.collective {
            self.calls.sums += 1;
            collective.all_reduce_sum(values, self.deadline)?;
        }
        Ok(())
    }

    /// Sums counts over all ranks.
    ///
    /// # Errors
    /// Those of the collective.
    pub fn sum_counts(&mut self, counts: &mut [u64]) -> Result<()> {
        if let Some(collective) = &self.collective {
            self.calls.counts += 1;
            collective.all_reduce_counts(counts, self.deadline)?;
        }
        Ok(())
    }

    /// The largest value that any rank has.
    ///
    /// # Errors
    /// Those of the collective.
    pub fn max(&mut self, value: u64) -> Result<u64> {
        let Some(collective) = &self.collective else {
            return Ok(value);
        };
        let mut all = vec![0; collective.world_size()];
        all[collective.rank()] = value;
        self.sum_counts(&mut all)?;
        Ok(all.into_iter().max().unwrap_or(value))
    }

    /// What every rank calls with, each padded to `len` values, in rank order.
    ///
    /// # Errors
    /// Those of the collective.
    pub fn gather(&mut self, mine: &[f32], len: usize) -> Result<&[f32]> {
        debug_assert!(mine.len() <= len, "the longest part is {len}");
        self.mine.clear();
        self.mine.extend_from_slice(mine);
        self.mine.resize(len, 0.0);
        let Some(collective) = &self.collective else {
            return Ok(&self.mine);
        };
        self.calls.gathers += 1;
        self.all.resize(len * collective.world_size(), 0.0);
        let (mine, all) = (
            bytemuck::cast_slice(&self.mine),
            bytemuck::cast_slice_mut(&mut self.all),
        );
        collective.all_gather(mine, all, self.deadline)?;
        Ok(&self.all)
    }
}
