//! Whether a device offers what a model's family needs.

use palimpsest_kernels::{Backend, RowOperation};
use palimpsest_models::config::{Activation, ModelConfig};

use crate::error::{Error, Result};

/// Checks that the device offers what the model's family needs.
///
/// # Errors
/// [`Error::Family`] with the first operation that is missing.
pub(super) fn check<B: Backend>(backend: &B, config: &ModelConfig) -> Result<()> {
    let own = &config.differences;
    let needed = [
        (
            own.activation == Activation::GeluTanh,
            RowOperation::GeluMul,
        ),
        (
            own.activation == Activation::Clamped,
            RowOperation::ClampedMul,
        ),
        (
            own.experts.is_some() || own.embedding_scale != 1.0,
            RowOperation::ScaleRows,
        ),
    ];
    let lacks = |(needed, operation): (bool, RowOperation)| {
        (needed && !backend.offers(operation)).then(|| operation.name())
    };
    let lacks_sinks = own.sinks && !backend.offers_sinks();
    let missing = needed.into_iter().find_map(lacks);
    match missing.or(lacks_sinks.then_some("attention sinks")) {
        Some(operation) => Err(Error::Family {
            architecture: config.architecture.name(),
            device: backend.name(),
            operation,
        }),
        None => Ok(()),
    }
}
