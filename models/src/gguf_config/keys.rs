//! Keys of an architecture in GGUF metadata.

use crate::config::ConfigError;
use crate::gguf::{Gguf, GgufError};

/// What can be wrong: the file, or the model in it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GgufConfigError {
    /// Metadata is missing or mistyped.
    #[error(transparent)]
    Metadata(#[from] GgufError),
    /// The model is not one that can run.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

pub(super) struct Keys<'a> {
    pub(super) gguf: &'a Gguf,
    pub(super) architecture: &'a str,
}

impl Keys<'_> {
    pub(super) fn key(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.architecture)
    }

    pub(super) fn size(&self, suffix: &str) -> Result<Option<usize>, GgufError> {
        let number = self.gguf.unsigned(&self.key(suffix))?;
        Ok(number.map(|number| usize::try_from(number).unwrap_or(usize::MAX)))
    }

    pub(super) fn needed(&self, suffix: &str) -> Result<usize, GgufError> {
        self.size(suffix)?
            .ok_or_else(|| GgufError::MissingKey(self.key(suffix)))
    }
}
