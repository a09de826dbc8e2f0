//! The upper bound: scores read off a repetition of the context, two passes before the measured
//! one. Cheating on purpose.

use std::sync::{Arc, RwLock};

use palimpsest_engine::offline::oracle::{Oracle, ScoreTable};
use palimpsest_engine::offline::reconstruction::{INSTRUCTION, Reconstruction, Target};
use palimpsest_kernels::Backend;

use crate::prompt::Prompt;
use crate::{Error, Result, Subject};

/// Fills the oracle's table, once per prompt.
pub struct Foresight {
    table: Arc<RwLock<ScoreTable>>,
    context: Vec<u32>,
    reconstruction: Reconstruction,
}

impl Foresight {
    /// Makes the policy [`Oracle`] known to the runner, when it is among `policies`.
    ///
    /// # Errors
    /// [`Error::Text`].
    pub fn prepare<'a, B: Backend>(
        subject: &mut Subject<'_, B>,
        mut policies: impl Iterator<Item = &'a str>,
    ) -> Result<Option<Self>> {
        if !policies.any(|p| p == Oracle::NAME) {
            return Ok(None);
        }
        let reconstruction = Reconstruction::new(
            subject.runner,
            subject.side.encode(INSTRUCTION)?,
            Target::default(),
        );
        let oracle = Oracle::default();
        let table = oracle.table();
        subject.runner.add_policy(Arc::new(oracle));
        Ok(Some(Self {
            table,
            context: Vec::new(),
            reconstruction,
        }))
    }

    /// Looks ahead for `prompt`, unless it did so last.
    ///
    /// # Errors
    /// Those of the rank; [`Error::Spec`] when the context does not fit the cache twice.
    pub fn look<B: Backend>(
        &mut self,
        subject: &mut Subject<'_, B>,
        prompt: &Prompt,
    ) -> Result<()> {
        let runner = &mut *subject.runner;
        if self.context == prompt.context {
            return Ok(());
        }
        let needed = runner.full_cache_bytes(self.reconstruction.positions(prompt.context.len()));
        if needed > runner.arena_bytes() {
            let mib = needed.div_ceil(1 << 20);
            return Err(Error::Spec(format!(
                "the oracle reads a context twice: raise --kv-memory-mib to {mib}"
            )));
        }
        let mut sequence = self.reconstruction.open(runner)?;
        let weights = self.reconstruction.read(&mut sequence, &prompt.context)?;
        let found = self
            .reconstruction
            .repeat(&mut sequence, &prompt.context, weights)?;
        sequence.close();
        *self.table.write().expect("no reader panics") = found;
        self.context.clone_from(&prompt.context);
        Ok(())
    }
}
