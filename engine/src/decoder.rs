//! ONE decoder for every supported architecture and every backend.
//!
//! ```text
//! embed ▸ layers ▸ norm ▸ head
//!         layer:    norm ▸ qkv ▸ norm, rotate, store ▸ attention ▸ output ▸ + ▸ feed-forward
//!                   feed-forward: norm ▸ gate·up ▸ down ▸ +
//!         boundary: score ▸ rank ▸ evict ▸ memorise ▸ compact, after the last layer
//! ```

mod answers;
mod arena;
mod choices;
mod decode;
mod faults;
mod feed_forward;
mod hooks;
mod install;
mod layer;
mod likelihood;
mod offers;
mod scratch;
mod states;
mod step;

use std::sync::Arc;

pub use arena::Arena;
pub use choices::Choices;
pub use likelihood::log_probability;
use palimpsest_collective::Collective;
use palimpsest_kernels::{Backend, PageShape};
use palimpsest_models::config::ModelConfig;
use palimpsest_models::weights::Weights;
use palimpsest_proto::v1::TokenLogprob;
pub use step::{Answer, Capture, Captured, Known, Logits, Piece};
use xxhash_rust::xxh3::xxh3_64;

use self::hooks::Hooks;
use self::scratch::Scratch;
use crate::cancel::Cancel;
use crate::device_memory::StepSize;
use crate::error::{Error, Result};
use crate::kv::boundary::{self, BoundaryContext, Scores};
use crate::layers::Layer;
use crate::layers::attention::Span;
use crate::memory::Memories;
use crate::peers::Peers;
use crate::rope::RotaryTables;
use crate::shard::Shard;
use crate::upload::{stack, vector};

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
    rotary: RotaryTables,
    /// What the installed policies compute for new tokens.
    hooks: Hooks<B>,
    memories: Memories<B>,
    capture: Option<Capture>,
    state_digests: Vec<u64>,
    known: Vec<Vec<TokenLogprob>>,
    states: Vec<Vec<f32>>,
    perturbed: bool,
    cancel: Cancel,
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
        offers::check(&backend, &config)?;
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
        let rotary = RotaryTables::of(&config);
        let tables = rotary.tables().len();
        let decoder = Self {
            embedding: stack(&backend, &[&weights.embedding(&shard.part)?])?,
            final_norm: vector(&backend, &weights.final_norm()?)?,
            rotary,
            hooks: Hooks::none(),
            memories: Memories::untrained(),
            capture: None,
            state_digests: Vec::new(),
            known: Vec::new(),
            states: Vec::new(),
            perturbed: false,
            cancel: Cancel::default(),
            scores: Scores::new(&backend)?,
            scratch: Scratch::new(&backend, &config, &shard, StepSize::ONE, tables)?,
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

    /// Abandons steps of this decoder.
    pub fn cancel(&self) -> &Cancel {
        &self.cancel
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

    /// For each piece of the last step the log-probabilities that its [`Known`] asked for: taken
    /// once.
    pub fn take_known(&mut self) -> Vec<Vec<TokenLogprob>> {
        std::mem::take(&mut self.known)
    }

    /// For each piece of the last step the final states of the rows that it asked for, `[rows, E]`
    /// flattened: taken once.
    pub fn take_states(&mut self) -> Vec<Vec<f32>> {
        std::mem::take(&mut self.states)
    }

    /// The part of the model that is here.
    pub fn shard(&self) -> &Shard {
        &self.shard
    }

    /// What was trained for memories.
    pub fn memories(&self) -> &Memories<B> {
        &self.memories
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

    /// Bytes of matrices that a step of one token reads whole: all but an embedding that is not the
    /// head too, and experts that the token does not go to.
    pub fn step_weight_bytes(&self) -> usize {
        let looked_up = if self.head.is_some() {
            self.backend.matrix_bytes(&self.embedding)
        } else {
            0
        };
        self.weight_bytes() - looked_up - self.idle_bytes()
    }

    /// Reads the tokens of all pieces in one pass and evicts where a piece ends at a boundary.
    /// Returns the logits of each piece, `[rows, V]` flattened.
    ///
    /// # Errors
    /// [`Error::Plan`] or [`Error::PagesExhausted`] before anything changed; kernel errors and
    /// [`Error::Cancelled`] leave the sequences unusable.
    pub fn forward(
        &mut self,
        arena: &mut Arena<B>,
        pieces: &mut [Piece<'_>],
    ) -> Result<Vec<Vec<f32>>> {
        let answers = self.step(arena, pieces, &mut Choices::none(pieces.len()))?;
        let logits = |answer| match answer {
            Answer::Logits(logits) => logits,
            Answer::Token(_) => unreachable!("no choice was asked for"),
        };
        Ok(answers.into_iter().map(logits).collect())
    }

    /// Does what [`Self::forward`] does, and chooses tokens for the pieces that bring a choice. A
    /// choice is made where the logits are, and only the token comes back. Such a piece asks for
    /// [`Logits::Last`]; this function fills in the row of its choice. Masks are waited for when
    /// the device has its work, and not for long: see [`Choices::take_late`].
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn step(
        &mut self,
        arena: &mut Arena<B>,
        pieces: &mut [Piece<'_>],
        choices: &mut Choices<'_>,
    ) -> Result<Vec<Answer>> {
        let rows = self.check(arena, pieces)?;
        self.peers.begin_step();
        let wanted: usize = pieces.iter().map(|p| p.wanted_rows(0).len()).sum();
        let more = pieces.iter().any(Piece::wants_more);
        let logit_rows = if more { wanted.max(step::ROWS) } else { wanted };
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

    /// A step in which no piece is read: `choices` are those that earlier steps left out.
    ///
    /// # Errors
    /// [`Error::Cancelled`], and those of the collective.
    pub fn settle(&mut self, choices: &mut Choices<'_>) -> Result<()> {
        self.peers.begin_step();
        self.state_digests.clear();
        choices.wait(&self.cancel, &mut self.peers)
    }

    /// The step itself, with `rows` rows: more than the pieces have where the device pads them.
    fn carry_out(
        &mut self,
        arena: &mut Arena<B>,
        pieces: &mut [Piece<'_>],
        choices: &mut Choices<'_>,
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
        self.scale_embeddings(rows)?;
        self.perturb(rows)?;
        for layer in 0..self.layers.len() {
            self.cancel.check()?;
            self.layer(layer, rows, &mut spans, arena)?;
        }
        drop(spans);
        self.cancel.check()?;
        self.final_states(pieces)?;
        self.score_known(pieces)?;
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
    /// Those of [`palimpsest_kernels::Buffers::alloc`].
    pub fn reserve(&mut self, step: StepSize) -> Result<()> {
        let size = self.scratch.size.max(step);
        if size != self.scratch.size {
            let tables = self.rotary.tables().len();
            self.scratch = Scratch::new(&self.backend, &self.config, &self.shard, size, tables)?;
        }
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
            rotary: &self.rotary,
            features: self.memories.writer(),
            scores: &mut self.scores,
            peers: &mut self.peers,
        }
    }
}
