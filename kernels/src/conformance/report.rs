//! What a suite allows, measures and finds wrong.

use crate::error::Error;

/// Largest accepted differences. A difference is divided by the larger of 1 and the largest
/// reference value of its array, for `matmul` by the root mean square of the reference values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// Norms, activations, rotations.
    pub elementwise: f32,
    /// Rows of an embedding table, which a backend may keep in a narrower type.
    pub embed: f32,
    /// Attention outputs and probabilities.
    pub attention: f32,
    /// Matrix products of float weights, and of quantised weights with f32 activations.
    pub matmul: f32,
    /// Matrix products of quantised weights, where the backend may round activations to 8 bits.
    pub matmul_quantised: f32,
}

impl Default for Tolerance {
    fn default() -> Self {
        Self {
            elementwise: 2e-6,
            embed: 2e-6,
            attention: 4e-6,
            matmul: 1e-5,
            matmul_quantised: 1e-5,
        }
    }
}

/// What a case measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Operation and shape.
    pub case: String,
    /// Largest difference, as [`Tolerance`] counts it.
    pub difference: f32,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:>9.2e}  {}", self.difference, self.case)
    }
}

/// Why a backend does not conform.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A value is too far off.
    #[error(
        "{case}: value {index} is {got}, the reference says {want}; difference {difference:.2e} > \
         {allowed:.2e}"
    )]
    Differs {
        /// Operation and shape.
        case: String,
        /// Position in the array.
        index: usize,
        /// The backend's value.
        got: f32,
        /// The reference's value.
        want: f32,
        /// As [`Tolerance`] counts it.
        difference: f32,
        /// What the tolerance allows.
        allowed: f32,
    },
    /// Arrays have different lengths.
    #[error("{case}: {got} values, the reference has {want}")]
    Length {
        /// Operation and shape.
        case: String,
        /// The backend's.
        got: usize,
        /// The reference's.
        want: usize,
    },
    /// A note is another.
    #[error("{case}: note {slot} is {got:#010x}, the reference has {want:#010x}")]
    Note {
        /// Operation and shape.
        case: String,
        /// Slot of the head.
        slot: usize,
        /// The backend's.
        got: u32,
        /// The reference's.
        want: u32,
    },
    /// A bad argument was accepted.
    #[error("{case}: accepted, but it has to be refused")]
    Accepted {
        /// Operation and mistake.
        case: String,
    },
    /// A valid call was refused.
    #[error("{case}: {error}")]
    Refused {
        /// Operation and shape.
        case: String,
        /// The backend's answer.
        error: Error,
    },
}

/// All that failed, at least one thing.
#[derive(Debug)]
pub struct Failures(pub Vec<Failure>);

impl std::fmt::Display for Failures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} cases failed:", self.0.len())?;
        self.0
            .iter()
            .try_for_each(|failure| write!(f, "\n  {failure}"))
    }
}

impl std::error::Error for Failures {}
