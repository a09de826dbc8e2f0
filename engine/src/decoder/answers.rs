//! The end of a step: logits of the rows that were asked for, or the tokens that are chosen by
//! them.

use palimpsest_collective::even;
use palimpsest_kernels::Backend;
use palimpsest_kernels::sample::{self, SampleItem};

use super::Decoder;
use super::choices::Choices;
use super::step::{Answer, Piece};
use crate::error::Result;

impl<B: Backend> Decoder<B> {
    /// Starts the product that logits come from. A step of `rows` rows, more than the pieces have,
    /// wants as many, as all steps of its bucket do.
    pub(super) fn multiply_wanted(&mut self, pieces: &[Piece<'_>], rows: usize) -> Result<()> {
        let (mut first, mut wanted) = (0, Vec::new());
        for piece in pieces {
            wanted.extend(piece.wanted_rows(first));
            first += piece.tokens.len();
        }
        if rows > first {
            wanted.resize(rows, 0);
        }
        if wanted.is_empty() {
            Ok(())
        } else {
            self.multiply_head(&wanted)
        }
    }

    /// What each piece gets of the logits, which were computed: waits for it, and for what guides
    /// say of the choices. Where that is late, the piece gets its logits.
    pub(super) fn answers(
        &mut self,
        pieces: &[Piece<'_>],
        choices: &mut Choices<'_>,
    ) -> Result<Vec<Answer>> {
        choices.wait(&self.cancel, &mut self.peers)?;
        let choices = choices.items();
        let (mut rows, mut ranges) = (0, Vec::with_capacity(pieces.len()));
        for piece in pieces {
            let first = rows;
            rows += piece.wanted_rows(0).len();
            ranges.push(first..rows);
        }
        let vocabulary = self.config.vocabulary;
        if !self.shard.is_whole() {
            let mut all = if rows == 0 {
                Vec::new()
            } else {
                self.gather_logits(rows)?
            };
            let answer = |(range, choice): (&std::ops::Range<usize>, &Option<SampleItem<'_>>)| {
                let own = &mut all[range.start * vocabulary..range.end * vocabulary];
                match choice {
                    Some(item) => Answer::Token(sample::choose(own, item)),
                    None => Answer::Logits(own.to_vec()),
                }
            };
            return Ok(ranges.iter().zip(&choices).map(answer).collect());
        }
        let items: Vec<SampleItem<'_>> = choices
            .iter()
            .zip(&ranges)
            .filter_map(|(choice, range)| {
                choice.map(|item| SampleItem {
                    row: range.start,
                    ..item
                })
            })
            .collect();
        let (b, logits) = (&self.backend, &mut self.scratch.logits);
        let mut tokens = if items.is_empty() {
            Vec::new()
        } else {
            b.sample(logits, vocabulary, &items)?
        }
        .into_iter();
        let mut answers = Vec::with_capacity(pieces.len());
        for (range, choice) in ranges.iter().zip(&choices) {
            if choice.is_some() {
                answers.push(Answer::Token(tokens.next().flatten()));
                continue;
            }
            let mut own = vec![0.0; range.len() * vocabulary];
            if !own.is_empty() {
                b.download(logits, range.start * vocabulary, &mut own)?;
            }
            answers.push(Answer::Logits(own));
        }
        Ok(answers)
    }

    /// Logits after the given rows, of this rank's part of the vocabulary, on the device.
    pub(super) fn multiply_head(&mut self, wanted: &[usize]) -> Result<()> {
        self.normalise(wanted)?;
        let (b, s) = (&self.backend, &mut self.scratch);
        let head = self.head.as_ref().unwrap_or(&self.embedding);
        Ok(b.matmul(head, &s.h, wanted.len(), None, &mut s.logits)?)
    }

    /// Puts the given rows into `scratch.h`, normalised as the head takes them.
    pub(super) fn normalise(&mut self, rows: &[usize]) -> Result<()> {
        let (b, s, config) = (&self.backend, &mut self.scratch, &self.config);
        b.gather_rows(&s.x, config.hidden, rows, &mut s.last)?;
        let (norm, eps) = (&self.final_norm, config.rms_eps);
        Ok(b.rms_norm(&s.last, norm, eps, rows.len(), &mut s.h)?)
    }

    /// Logits `[rows, V]` of all ranks' parts of the vocabulary.
    pub(super) fn gather_logits(&mut self, rows: usize) -> Result<Vec<f32>> {
        let (vocabulary, world_size) = (self.config.vocabulary, self.shard.place.world_size);
        let mut own = vec![0.0; rows * self.shard.part.vocabulary.len()];
        self.backend.download(&self.scratch.logits, 0, &mut own)?;
        let longest = rows * vocabulary.div_ceil(world_size);
        let parts = self.peers.gather(&own, longest)?;
        let mut all = vec![0.0; rows * vocabulary];
        for (rank, part) in parts.chunks_exact(longest).enumerate() {
            let columns = even(vocabulary, rank, world_size);
            for (row, values) in all
                .chunks_exact_mut(vocabulary)
                .zip(part.chunks_exact(columns.len()))
            {
                row[columns.clone()].copy_from_slice(values);
            }
        }
        Ok(all)
    }
}
