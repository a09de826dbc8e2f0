//! What a policy computes for every new token, on the device or on the host, and how a rank
//! installs a policy with it.

use std::ops::Range;
use std::sync::Arc;

use palimpsest_kernels::{Backend, QkvShape};

use super::interface::Policy;
use crate::error::Result;
use crate::indexer::Reader;
use crate::rope::Angles;
use crate::slots::HeadSlots;

/// A policy's computation for new tokens. The decoder calls it in every layer, for the sequences
/// that the policy ranks, and in no step without any.
pub trait Hook<B: Backend>: Send {
    /// Before a layer's attention. `hidden` `[T, E]`: the normalised hidden states that enter it.
    /// Pages have room for the new slots, with nothing in them yet.
    ///
    /// # Errors
    /// Those of the kernels.
    fn before_attention(
        &mut self,
        step: &LayerStep<'_, B>,
        hidden: &B::Buffer,
        pages: &mut B::Pages,
        tokens: &mut [NewTokens<'_>],
    ) -> Result<()> {
        let _ = (step, hidden, pages, tokens);
        Ok(())
    }

    /// After a layer's attention. `queries` `[T, H, D]`: rotated by `angles`.
    ///
    /// # Errors
    /// Those of the kernels.
    fn after_attention(
        &mut self,
        step: &LayerStep<'_, B>,
        queries: &B::Buffer,
        angles: &Angles,
        tokens: &mut [NewTokens<'_>],
    ) -> Result<()> {
        let _ = (step, queries, angles, tokens);
        Ok(())
    }
}

/// A decoder layer in a step.
pub struct LayerStep<'a, B: Backend> {
    /// The device.
    pub backend: &'a B,
    /// Decoder layer.
    pub layer: usize,
    /// Rows of the step, `T`.
    pub rows: usize,
    /// Heads of this rank.
    pub shape: QkvShape,
}

/// New tokens of one sequence in a layer.
pub struct NewTokens<'a> {
    /// Their rows in the step.
    pub rows: Range<usize>,
    /// Absolute position of the first of them.
    pub first_position: u64,
    /// The sequence's KV heads in the layer, on this rank. The last slots of each are those of the
    /// new tokens.
    pub heads: &'a mut [HeadSlots],
}

/// Where policies are installed: one rank's device, and its part of the model.
pub struct Site<'a, 'f, B: Backend> {
    /// The device.
    pub backend: &'a B,
    /// KV heads of this rank, among those of the model.
    pub kv_heads: Range<usize>,
    /// What was trained for the model.
    pub trained: Option<&'a mut Reader<'f>>,
}

/// A policy on a rank.
pub struct Installed<B: Backend> {
    /// Ranks slots.
    pub policy: Arc<dyn Policy>,
    /// What it computes for new tokens.
    pub hook: Option<Box<dyn Hook<B>>>,
}

/// Installs a policy, if the rank has what was trained for it.
pub(super) type Install<B> = fn(&mut Site<'_, '_, B>) -> Result<Option<Installed<B>>>;

/// Installs a policy that has nothing trained and computes nothing for new tokens.
pub(super) fn plain<P, B>(_: &mut Site<'_, '_, B>) -> Result<Option<Installed<B>>>
where
    P: Policy + Default + 'static,
    B: Backend,
{
    Ok(Some(Installed {
        policy: Arc::new(P::default()),
        hook: None,
    }))
}
