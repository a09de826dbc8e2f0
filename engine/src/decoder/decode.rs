//! Which steps a device may put off and start as one, and what it is told of them before.

use palimpsest_kernels::{Backend, DecodeStep};

use super::Decoder;
use super::step::{Logits, Piece};

impl<B: Backend> Decoder<B> {
    /// Begins a step of decoding, where the host has nothing to look at before its end. Returns the
    /// rows that it is padded to; `None`: the step goes call by call, as steps do that read
    /// prompts, whose policies work on the host in every layer, or whose sums over ranks go through
    /// the host. All ranks of a group decide alike.
    pub(super) fn begin_decode(&self, pieces: &[Piece<'_>]) -> Option<usize> {
        let on_device = |piece: &Piece<'_>| {
            let needs = piece.cache.policy.needs();
            piece.tokens.len() == 1
                && piece.logits != Logits::None
                && !piece.wants_more()
                && needs.attention.observed().is_none()
                && !needs.host
        };
        let alone = self.shard.is_whole() && self.peers.collective().is_none();
        if !(alone || self.peers.sums_on_device())
            || self.capture.is_some()
            || !pieces.iter().all(on_device)
        {
            return None;
        }
        let kv_heads = self.shard.part.kv_heads.len();
        let slots: Vec<Vec<usize>> = (0..self.layers.len())
            .map(|layer| {
                pieces
                    .iter()
                    .flat_map(|piece| self.slots_at_boundary(piece, layer * kv_heads))
                    .collect()
            })
            .collect();
        self.backend.begin_decode(&DecodeStep {
            rows: pieces.len(),
            kv_heads,
            slots: &slots,
        })
    }

    /// Slots that the heads of a layer, from `first` on, have at the sequence's next boundary,
    /// before it evicts: as many in all steps until then, so that these are alike.
    fn slots_at_boundary(&self, piece: &Piece<'_>, first: usize) -> impl Iterator<Item = usize> {
        let more = (self.stride - piece.cache.seen % self.stride) as usize;
        let heads = &piece.cache.heads[first..first + self.shard.part.kv_heads.len()];
        heads.iter().map(move |head| head.len() + more)
    }
}
