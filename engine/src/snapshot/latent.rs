//! The latent memory of one KV head as plain arrays, without the room that a device sets aside.

use palimpsest_kernels::LatentState;
use palimpsest_kernels::latent::{AssociativeState, CentroidState};

/// What a latent memory holds of one KV head: see [`palimpsest_kernels::latent`].
#[derive(Debug, Clone, PartialEq)]
pub(super) enum LatentArrays {
    /// Weighted means of entries.
    Centroids {
        /// `[r, D]`.
        keys: Vec<f32>,
        /// `[r, D]`.
        values: Vec<f32>,
        /// `[r]`.
        counts: Vec<f32>,
    },
    /// Sums of linear features; empty before the first entry.
    Associative {
        /// `A`, `[f, D]`.
        sums: Vec<f32>,
        /// `b`, `[f]`.
        norms: Vec<f32>,
    },
}

impl LatentArrays {
    /// Bytes of the arrays.
    pub(super) fn bytes(&self) -> usize {
        let values = match self {
            Self::Centroids {
                keys,
                values,
                counts,
            } => keys.len() + values.len() + counts.len(),
            Self::Associative { sums, norms } => sums.len() + norms.len(),
        };
        values * size_of::<f32>()
    }

    /// The state that devices take.
    pub(super) fn to_state(&self) -> LatentState {
        match self {
            Self::Centroids {
                keys,
                values,
                counts,
            } => LatentState::Centroids(CentroidState::new(keys, values, counts.clone())),
            Self::Associative { sums, norms } => LatentState::Associative(AssociativeState {
                sums: sums.clone(),
                norms: norms.clone(),
            }),
        }
    }
}

impl From<LatentState> for LatentArrays {
    fn from(state: LatentState) -> Self {
        match state {
            LatentState::Centroids(state) => Self::Centroids {
                keys: state.keys(),
                values: state.values(),
                counts: state.counts().to_vec(),
            },
            LatentState::Associative(AssociativeState { sums, norms }) => {
                Self::Associative { sums, norms }
            }
        }
    }
}
