//! The hooks of the installed policies, called in every layer of a step.

use palimpsest_kernels::Backend;

use crate::error::Result;
use crate::layers::attention::Span;
use crate::policy::{Hook, Installed, LayerStep, NewTokens};
use crate::rope::Angles;

/// Computations for new tokens, each for the sequences of one policy.
pub(super) struct Hooks<B: Backend>(Vec<PolicyHook<B>>);

struct PolicyHook<B: Backend> {
    /// Name of the policy.
    policy: &'static str,
    hook: Box<dyn Hook<B>>,
}

impl<B: Backend> PolicyHook<B> {
    /// New tokens in a layer of the sequences that the policy ranks.
    fn tokens<'s>(&self, layer: usize, spans: &'s mut [Span<'_>]) -> Vec<NewTokens<'s>> {
        spans
            .iter_mut()
            .filter(|span| span.cache.policy.name() == self.policy)
            .map(|span| {
                let first_position = span.first_position();
                let heads = span.cache.layout.of_layer(layer);
                NewTokens {
                    rows: span.rows.clone(),
                    first_position,
                    heads: &mut span.cache.heads[heads],
                }
            })
            .collect()
    }
}

impl<B: Backend> Hooks<B> {
    /// None.
    pub(super) const fn none() -> Self {
        Self(Vec::new())
    }

    /// Takes the hooks of installed policies.
    pub(super) fn of(policies: Vec<Installed<B>>) -> Self {
        let hooks = policies.into_iter().filter_map(|installed| {
            Some(PolicyHook {
                policy: installed.policy.name(),
                hook: installed.hook?,
            })
        });
        Self(hooks.collect())
    }

    /// See [`Hook::before_attention`].
    pub(super) fn before_attention(
        &mut self,
        step: &LayerStep<'_, B>,
        hidden: &B::Buffer,
        pages: &mut B::Pages,
        spans: &mut [Span<'_>],
    ) -> Result<()> {
        for installed in &mut self.0 {
            let mut tokens = installed.tokens(step.layer, spans);
            if !tokens.is_empty() {
                let hook = &mut installed.hook;
                hook.before_attention(step, hidden, pages, &mut tokens)?;
            }
        }
        Ok(())
    }

    /// See [`Hook::after_attention`].
    pub(super) fn after_attention(
        &mut self,
        step: &LayerStep<'_, B>,
        queries: &B::Buffer,
        angles: &Angles,
        spans: &mut [Span<'_>],
    ) -> Result<()> {
        for installed in &mut self.0 {
            let mut tokens = installed.tokens(step.layer, spans);
            if !tokens.is_empty() {
                let hook = &mut installed.hook;
                hook.after_attention(step, queries, angles, &mut tokens)?;
            }
        }
        Ok(())
    }
}
