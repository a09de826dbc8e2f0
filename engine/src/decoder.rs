//! ONE decoder for every supported architecture and every backend.
//!
//! ```text
//! embed ▸ layers × [ norm ▸ qkv ▸ norm/rotate/store ▸ attention ▸ output ▸ + ▸ norm ▸ gate·up ▸ down ▸ + ] ▸ norm ▸ head
//!                                                    boundary: score ▸ rank ▸ evict ▸ memorise ▸ compact, after the last layer
//! ```

mod answers;
mod arena;
mod decode;
mod scratch;

use std::sync::Arc;

pub use answers::Answer;
pub use arena::Arena;
use palimpsest_collective::Collective;
use palimpsest_kernels::sample::SampleItem;
use palimpsest_kernels::{Backend, PageShape, QkvShape};
use palimpsest_models::config::ModelConfig;
use palimpsest_models::weights::Weights;
use xxhash_rust::xxh3::xxh3_64;

use self::scratch::Scratch;
use crate::device_memory::StepSize;
use crate::error::{Error, Result};
use crate::indexer::Indexer;
use crate::kv::SequenceCache;
use crate::kv::boundary::{self, BoundaryContext, Scores};
use crate::layers::attention::{AttentionArgs, Span, attend};
use crate::layers::pairwise::DevicePairwise;
use crate::layers::query_moments::{self, QueryRows};
use crate::layers::scorer::DeviceScorer;
use crate::layers::{Layer, stack, vector};
use crate::memory::DeviceAssociative;
use crate::peers::{Peers, RowParallel};
use crate::shard::Shard;

/// Which logits a piece wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logits {
    /// None: more of the prompt follows.
    None,
    /// After the last token.
    Last,
    /// After every token.
    All,
}

/// Tokens of one sequence in a step. They must not go beyond the next boundary.
pub struct Piece<'a> {
    /// The sequence.
    pub cache: &'a mut SequenceCache,
    /// Tokens to read, at least one.
    pub tokens: &'a [u32],
    /// Logits to return.
    pub logits: Logits,
}

/// What a layer computed for the rows of a step.
pub struct Captured<'a> {
    /// Decoder layer.
    pub layer: usize,
    /// Normalised hidden states that enter attention `[T, E]`.
    pub hidden: &'a [f32],
    /// Queries, rotated `[T, H, D]`.
    pub queries: &'a [f32],
}

/// Receives what layers compute, see [`Decoder::set_capture`].
pub type Capture = Box<dyn FnMut(Captured<'_>) + Send>;

/// A model on a device.
pub struct Decoder<B: Backend> {
    backend: B,
    config: ModelConfig,
    shard: Shard,
    peers: Peers,
    stride: u64,
    embedding: B::Matrix,
    layers: Vec<Layer<B>>,
    final_norm: B::Buffer,
    /// `None`: tied to the embedding.
    head: Option<B::Matrix>,
    inv_freq: Vec<f32>,
    scorer: Option<DeviceScorer<B>>,
    query: Option<DevicePairwise<B>>,
    associative: Option<DeviceAssociative<B>>,
    capture: Option<Capture>,
    state_digests: Vec<u64>,
    perturbed: bool,
    /// Scores of a boundary.
    scores: Scores<B>,
    scratch: Scratch<B>,
}

impl<B: Backend> Decoder<B> {
    /// Packs the weights of `shard` for the device. `progress` is called with the fraction done. A
    /// shard that is not the whole model needs [`Self::join`] before its first step.
    ///
    /// # Errors
    /// Those of the weights (missing, misshapen) and of the kernels.
    pub fn load(
        backend: B,
        weights: &Weights,
        shard: Shard,
        stride: u64,
        progress: &mut dyn FnMut(f32),
    ) -> Result<Self> {
        let config = weights.config().clone();
        let count = config.layers;
        let mut layers = Vec::with_capacity(count);
        for index in 0..count {
            layers.push(Layer::load(&backend, &weights.layer(index, &shard.part)?)?);
            progress((index + 1) as f32 / (count + 1) as f32);
        }
        let head = match weights.output(&shard.part)? {
            Some(output) => Some(stack(&backend, &[&output])?),
            None => None,
        };
        let decoder = Self {
            embedding: stack(&backend, &[&weights.embedding(&shard.part)?])?,
            final_norm: vector(&backend, &weights.final_norm()?)?,
            inv_freq: config.rope.inv_freq(),
            scorer: None,
            query: None,
            associative: None,
            capture: None,
            state_digests: Vec::new(),
            perturbed: false,
            scores: Scores::new(&backend)?,
            scratch: Scratch::new(&backend, &config, &shard, StepSize::ONE)?,
            peers: Peers::alone(),
            backend,
            config,
            shard,
            stride,
            layers,
            head,
        };
        progress(1.0);
        Ok(decoder)
    }

    /// Exchanges with the other ranks of the group over `collective` from now on.
    pub fn join(&mut self, collective: Arc<dyn Collective>) {
        self.peers.join(&self.backend, collective);
    }

    /// The other ranks, as this decoder talks to them.
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// For each piece of the last step a digest of what the last layer left at its last row: the
    /// same on every rank of a group. Empty for a rank that is alone, which has nobody to compare
    /// with.
    pub fn state_digests(&self) -> &[u64] {
        &self.state_digests
    }

    /// A fault for tests: the next step starts from hidden states that no other rank has, as a
    /// damaged memory or another kernel would have it.
    pub fn perturb_next_step(&mut self) {
        self.perturbed = true;
    }

    /// The part of the model that is here.
    pub fn shard(&self) -> &Shard {
        &self.shard
    }

    /// Makes trained scorers and memories available to the policies and contracts that name them.
    ///
    /// # Errors
    /// [`Error::Indexer`] when they were made for another model.
    pub fn set_indexer(&mut self, indexer: &Indexer) -> Result<()> {
        let (hidden, kv_heads) = (self.config.hidden, &self.shard.part.kv_heads);
        indexer.check(
            self.config.layers,
            self.config.kv_heads,
            (hidden, self.config.head_dim),
        )?;
        let b = &self.backend;
        self.scorer = Some(DeviceScorer::load(
            b,
            &indexer.retention,
            hidden,
            kv_heads.clone(),
        )?);
        let query = indexer
            .query
            .clone()
            .map(|query| DevicePairwise::load(b, query, hidden, kv_heads.clone()));
        self.query = query.transpose()?;
        let associative = indexer.associative.as_ref();
        let associative =
            associative.map(|weights| DeviceAssociative::load(b, weights, kv_heads.clone()));
        self.associative = associative.transpose()?;
        Ok(())
    }

    /// Trained features of the memory `associative`, `F`.
    pub fn features(&self) -> Option<usize> {
        self.associative.as_ref().map(DeviceAssociative::count)
    }

    /// Calls `capture` in every layer with what scorers and memories are trained on. `None` stops
    /// it.
    pub fn set_capture(&mut self, capture: Option<Capture>) {
        self.capture = capture;
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The device.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Tokens between two boundaries.
    pub fn stride(&self) -> u64 {
        self.stride
    }

    /// Device bytes of all matrices.
    pub fn weight_bytes(&self) -> usize {
        let ends = self.backend.matrix_bytes(&self.embedding)
            + self
                .head
                .as_ref()
                .map_or(0, |head| self.backend.matrix_bytes(head));
        ends + self
            .layers
            .iter()
            .map(|l| l.bytes(&self.backend))
            .sum::<usize>()
    }

    /// Bytes of matrices that every step reads whole: all but an embedding that is not the head
    /// too.
    pub fn step_weight_bytes(&self) -> usize {
        let looked_up = if self.head.is_some() {
            self.backend.matrix_bytes(&self.embedding)
        } else {
            0
        };
        self.weight_bytes() - looked_up
    }

    /// Reads the tokens of all pieces in one pass and evicts where a piece ends at a boundary.
    /// Returns the logits of each piece, `[rows, V]` flattened.
    ///
    /// # Errors
    /// [`Error::Plan`] or [`Error::PagesExhausted`] before anything changed; kernel errors leave
    /// the sequences unusable.
    pub fn forward(
        &mut self,
        arena: &mut Arena<B>,
        pieces: &mut [Piece<'_>],
    ) -> Result<Vec<Vec<f32>>> {
        let answers = self.step(arena, pieces, &vec![None; pieces.len()])?;
        let logits = |answer| match answer {
            Answer::Logits(logits) => logits,
            Answer::Token(_) => unreachable!("no choice was asked for"),
        };
        Ok(answers.into_iter().map(logits).collect())
    }

    /// The same, but for the pieces that bring a choice: it is made where the logits are, and only
    /// the token comes back. Such a piece asks for [`Logits::Last`]; the row of its choice is
    /// filled in here.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn step(
        &mut self,
        arena: &mut Arena<B>,
        pieces: &mut [Piece<'_>],
        choices: &[Option<SampleItem<'_>>],
    ) -> Result<Vec<Answer>> {
        let rows = self.check(arena, pieces)?;
        self.peers.begin_step();
        let logit_rows = pieces.iter().map(|p| wanted_rows(p, 0).len()).sum();
        let Some(padded) = self.begin_decode(pieces) else {
            self.reserve(StepSize { rows, logit_rows })?;
            return self.carry_out(arena, pieces, choices, rows);
        };
        let reserved = self.reserve(StepSize {
            rows: padded,
            logit_rows: padded,
        });
        let answers = reserved.and_then(|()| self.carry_out(arena, pieces, choices, padded));
        match &answers {
            Ok(_) => self.backend.end_decode()?,
            Err(_) => self.backend.cancel_decode(),
        }
        answers
    }

    /// The step itself, with `rows` rows: more than the pieces have where the device pads them.
    fn carry_out(
        &mut self,
        arena: &mut Arena<B>,
        pieces: &mut [Piece<'_>],
        choices: &[Option<SampleItem<'_>>],
        rows: usize,
    ) -> Result<Vec<Answer>> {
        let mut spans = Vec::with_capacity(pieces.len());
        let mut ids = Vec::with_capacity(rows);
        for piece in pieces.iter_mut() {
            piece.cache.grow(piece.tokens.len(), &mut arena.pool)?;
            spans.push(Span {
                cache: piece.cache,
                rows: ids.len()..ids.len() + piece.tokens.len(),
            });
            ids.extend_from_slice(piece.tokens);
        }
        // Rows beyond are computed like the others and read by nobody. Their token is any, at any
        // position.
        ids.resize(rows, 0);
        self.rotary(&spans, rows)?;
        self.embed(&ids)?;
        if std::mem::take(&mut self.perturbed) {
            self.perturb(rows)?;
        }
        for layer in 0..self.layers.len() {
            self.layer(layer, rows, &mut spans, arena)?;
        }
        drop(spans);
        // The device is given all its work before the host waits for any of it.
        self.multiply_wanted(pieces, rows)?;
        self.digest_states(pieces)?;
        if pieces
            .iter()
            .any(|piece| piece.cache.seen.is_multiple_of(self.stride))
        {
            // What a boundary does depends on the sequence, not on the bucket.
            self.backend.end_decode()?;
        }
        let kept: Vec<_> = pieces
            .iter_mut()
            .map(|p| boundary::begin(p.cache, &mut self.at_boundary(arena)))
            .collect::<Result<_>>()?;
        let answers = self.answers(pieces, choices)?;
        for (piece, kept) in pieces.iter_mut().zip(kept) {
            boundary::finish(piece.cache, &mut self.at_boundary(arena), kept)?;
        }
        Ok(answers)
    }

    /// Everything that can be refused, before anything changes. Returns the rows of the step.
    fn check(&self, arena: &Arena<B>, pieces: &[Piece<'_>]) -> Result<usize> {
        let mut needed = 0;
        for piece in pieces {
            let (seen, count) = (piece.cache.seen, piece.tokens.len() as u64);
            let room = self.stride - seen % self.stride;
            if count == 0 || count > room {
                let what = format!(
                    "{count} tokens at position {seen}; a piece has 1 to {room} (stride {})",
                    self.stride
                );
                return Err(Error::Plan { sequence: 0, what });
            }
            if let Some(bad) = piece
                .tokens
                .iter()
                .find(|&&t| t as usize >= self.config.vocabulary)
            {
                let what = format!(
                    "token {bad} is outside the vocabulary of {}",
                    self.config.vocabulary
                );
                return Err(Error::Plan { sequence: 0, what });
            }
            let pages = |len: usize| (len + piece.tokens.len()).div_ceil(PageShape::SLOTS);
            needed += piece
                .cache
                .heads
                .iter()
                .map(|h| pages(h.len()) - h.pages.len())
                .sum::<usize>();
        }
        if needed > arena.pool.free() {
            return Err(Error::PagesExhausted {
                needed,
                free: arena.pool.free(),
            });
        }
        Ok(pieces.iter().map(|p| p.tokens.len()).sum())
    }

    /// Makes room for the activations of a step of this size. A larger step makes more.
    ///
    /// # Errors
    /// Those of [`Backend::alloc`].
    pub fn reserve(&mut self, step: StepSize) -> Result<()> {
        let size = self.scratch.size.max(step);
        if size != self.scratch.size {
            self.scratch = Scratch::new(&self.backend, &self.config, &self.shard, size)?;
        }
        Ok(())
    }

    /// Embeds the step's tokens. Each rank knows the rows of its own part of the vocabulary; the
    /// sum has them all.
    fn embed(&mut self, ids: &[u32]) -> Result<()> {
        let x = &mut self.scratch.x;
        if self.shard.is_whole() {
            return Ok(self.backend.embed(&self.embedding, ids, x)?);
        }
        let own = &self.shard.part.vocabulary;
        let is_own = |id: u32| own.contains(&(id as usize));
        let local: Vec<Option<u32>> = ids
            .iter()
            .map(|&id| is_own(id).then(|| (id as usize - own.start) as u32))
            .collect();
        self.peers.embed(
            &self.backend,
            &self.embedding,
            &local,
            self.config.hidden,
            x,
        )
    }

    /// Changes one value of each row, after the sum that makes them the same on all ranks. What it
    /// asks the device for, other ranks do not; where the step is put off, it stays one list all
    /// the same.
    fn perturb(&mut self, rows: usize) -> Result<()> {
        let mut values = vec![0.0; rows * self.config.hidden];
        values
            .chunks_exact_mut(self.config.hidden)
            .for_each(|row| row[0] = 0.25);
        let mut change = self.backend.alloc(values.len())?;
        self.backend.upload(&values, &mut change, 0)?;
        Ok(self
            .backend
            .add(&mut self.scratch.x, &change, values.len())?)
    }

    fn rotary(&mut self, spans: &[Span<'_>], rows: usize) -> Result<()> {
        let positions = spans
            .iter()
            .flat_map(|s| s.cache.next_rotary - s.rows.len() as u64..s.cache.next_rotary);
        let positions = positions.chain(std::iter::repeat(0)).take(rows);
        let angles = &mut self.scratch.angles;
        angles.fill(positions, &self.inv_freq);
        self.backend.upload(&angles.cos, &mut self.scratch.cos, 0)?;
        self.backend.upload(&angles.sin, &mut self.scratch.sin, 0)?;
        Ok(())
    }

    fn layer(
        &mut self,
        index: usize,
        rows: usize,
        spans: &mut [Span<'_>],
        arena: &mut Arena<B>,
    ) -> Result<()> {
        let (b, layer, s) = (&self.backend, &self.layers[index], &mut self.scratch);
        let eps = self.config.rms_eps;
        b.rms_norm(&s.x, &layer.attention_norm, eps, rows, &mut s.h)?;
        if let Some(scorer) = &mut self.scorer {
            scorer.ingest(b, index, (&s.h, rows), spans, &mut arena.pages)?;
        }
        if let Some(query) = &mut self.query {
            query.ingest(b, index, &s.h, rows, spans)?;
        }
        let mut hidden = Vec::new();
        if self.capture.is_some() {
            hidden.resize(rows * self.config.hidden, 0.0);
            b.download(&s.h, 0, &mut hidden)?;
        }
        let attention = &layer.attention;
        b.matmul(
            &attention.qkv,
            &s.h,
            rows,
            attention.qkv_bias.as_ref(),
            &mut s.qkv,
        )?;
        let args = AttentionArgs {
            layer: index,
            shape: qkv_shape(&self.shard),
            rows,
            qkv: &s.qkv,
            cos: &s.cos,
            sin: &s.sin,
            qk_norm: attention
                .qk_norm
                .as_ref()
                .map(|norm| (&norm.q, &norm.k, eps)),
            sliding_window: self.config.sliding_window,
            stride: self.stride,
            associative: self
                .associative
                .as_ref()
                .map(|memory| memory.layer(index, qkv_shape(&self.shard))),
        };
        attend(b, &args, spans, &mut arena.pages, &mut s.q, &mut s.attended)?;
        let queries = QueryRows {
            layer: index,
            shape: qkv_shape(&self.shard),
            rows,
            queries: &s.q,
            angles: &s.angles,
        };
        query_moments::add(b, &queries, spans)?;
        if let Some(capture) = &mut self.capture {
            let mut queries = vec![0.0; rows * self.shard.part.heads() * self.config.head_dim];
            b.download(&s.q, 0, &mut queries)?;
            capture(Captured {
                layer: index,
                hidden: &hidden,
                queries: &queries,
            });
        }
        let product = RowParallel {
            matrix: &attention.output,
            x: &s.attended,
            rows,
            width: self.config.hidden,
            units: &self.shard.query_units,
        };
        self.peers.row_parallel(b, &product, &mut s.h)?;
        b.add(&mut s.x, &s.h, rows * self.config.hidden)?;
        b.rms_norm(&s.x, &layer.ffn_norm, eps, rows, &mut s.h)?;
        b.matmul(&layer.gate_up, &s.h, rows, None, &mut s.gate_up)?;
        b.silu_mul(&s.gate_up, rows, self.shard.part.ffn.len(), &mut s.act)?;
        let product = RowParallel {
            matrix: &layer.down,
            x: &s.act,
            rows,
            width: self.config.hidden,
            units: &self.shard.ffn_units,
        };
        self.peers.row_parallel(b, &product, &mut s.h)?;
        b.add(&mut s.x, &s.h, rows * self.config.hidden)?;
        Ok(())
    }

    fn digest_states(&mut self, pieces: &[Piece<'_>]) -> Result<()> {
        self.state_digests.clear();
        if self.shard.is_whole() {
            return Ok(());
        }
        let hidden = self.config.hidden;
        let mut rows = 0;
        // The last rows of single tokens lie side by side: the host waits once for all of them.
        for pieces in pieces.chunk_by(|_, next| next.tokens.len() == 1) {
            rows += pieces[0].tokens.len();
            let mut states = vec![0.0; pieces.len() * hidden];
            self.backend
                .download(&self.scratch.x, (rows - 1) * hidden, &mut states)?;
            self.state_digests.extend(
                states
                    .chunks_exact(hidden)
                    .map(|state| xxh3_64(bytemuck::cast_slice(state))),
            );
            rows += pieces.len() - 1;
        }
        Ok(())
    }

    fn at_boundary<'a>(&'a mut self, arena: &'a mut Arena<B>) -> BoundaryContext<'a, B> {
        BoundaryContext {
            backend: &self.backend,
            pages: &mut arena.pages,
            pool: &mut arena.pool,
            head_dim: self.config.head_dim,
            stride: self.stride,
            trained_length: self.config.context_length as u64,
            inv_freq: &self.inv_freq,
            features: self.associative.as_ref().map(DeviceAssociative::features),
            scores: &mut self.scores,
            peers: &mut self.peers,
        }
    }
}

fn qkv_shape(shard: &Shard) -> QkvShape {
    QkvShape {
        heads: shard.part.heads(),
        kv_heads: shard.part.kv_heads.len(),
        head_dim: shard.part.head_dim,
    }
}

/// Rows of a piece whose logits are wanted, when the piece starts at row `first`.
fn wanted_rows(piece: &Piece<'_>, first: usize) -> std::ops::Range<usize> {
    let end = first + piece.tokens.len();
    match piece.logits {
        Logits::None => end..end,
        Logits::Last => end - 1..end,
        Logits::All => first..end,
    }
}
