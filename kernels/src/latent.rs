//! Latent memories: what remains of slots that go at a boundary. Their state lies with the pages of
//! an arena, on the device; here is what it looks like from the host, and how the CPU merges slots
//! into it.
//!
//! Centroids: IndexMem++ compressed memory pool, online form. Each of the
//! first entries is a centroid; a later one moves the nearest centroid, by squared Euclidean
//! distance of keys, to the mean of all that it stands for. A centroid of `n` entries is read with
//! `ln n` added to its logit.
//!
//! Associative: IndexMem (arXiv 2605.25475), latent memory. `phi(z) = features * z`; `A += phi(k)
//! v^T`, `b += phi(k)^2`, read by `LatentMemory::readout`.
//!
//! Entries are taken in position order, so merging them in one call or in several gives the same
//! bits. All sums have one order: eight running sums over the dimensions, then those in order. The
//! CUDA kernels (`kernels/cu/memorise.cu`) add alike.

pub use crate::centroids::CentroidState;
use crate::error::{Error, Result};

/// Index of a latent memory in a backend's `Pages`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LatentId(pub u32);

/// One KV head's part of a latent memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LatentHead {
    /// The memory.
    pub id: LatentId,
    /// Which of its heads.
    pub head: usize,
}

/// What a latent memory holds of each KV head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LatentKind {
    /// Weighted means of entries, read inside the softmax of attention.
    Centroids {
        /// `R`, at least 1.
        most: usize,
    },
    /// A matrix of linear features, read as a residual of attention.
    Associative {
        /// `f`, at least 1: the first ones of the trained features.
        features: usize,
    },
}

impl LatentKind {
    /// f32 values of one KV head: keys, values and counts, or `A` and `b`.
    pub const fn head_values(self, head_dim: usize) -> usize {
        match self {
            Self::Centroids { most } => most * (2 * head_dim + 1),
            Self::Associative { features } => features * (head_dim + 1),
        }
    }

    pub(crate) fn check(self, op: &'static str) -> Result<()> {
        match self {
            Self::Centroids { most: 0 } => Err(Error::Shape {
                op,
                what: "centroids",
                got: 0,
                want: 1,
            }),
            Self::Associative { features: 0 } => Err(Error::Shape {
                op,
                what: "features",
                got: 0,
                want: 1,
            }),
            _ => Ok(()),
        }
    }
}

/// Associative memory of one KV head; empty before its first entry.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AssociativeState {
    /// `A = sum phi(k) v^T`, `[f, D]`.
    pub sums: Vec<f32>,
    /// `b = sum phi(k)^2`, `[f]`.
    pub norms: Vec<f32>,
}

impl AssociativeState {
    /// `features`: at least `[f, D]`.
    fn absorb(&mut self, features: &[f32], key: &[f32], value: &[f32]) {
        let rows = self.sums.chunks_exact_mut(key.len()).zip(&mut self.norms);
        for (feature, (row, norm)) in features.chunks_exact(key.len()).zip(rows) {
            // Eight running sums let the compiler use vector lanes in a fixed order.
            let mut lanes = [0.0f32; 8];
            for (f, k) in feature.chunks(8).zip(key.chunks(8)) {
                lanes
                    .iter_mut()
                    .zip(f.iter().zip(k))
                    .for_each(|(lane, (f, k))| *lane += f * k);
            }
            let phi: f32 = lanes.iter().sum();
            row.iter_mut()
                .zip(value)
                .for_each(|(sum, v)| *sum += phi * v);
            *norm += phi * phi;
        }
    }
}

/// State of one KV head, on the host.
#[derive(Debug, Clone, PartialEq)]
pub enum LatentState {
    /// Of [`LatentKind::Centroids`].
    Centroids(CentroidState),
    /// Of [`LatentKind::Associative`].
    Associative(AssociativeState),
}

impl LatentState {
    /// Before the first entry.
    pub fn empty(kind: LatentKind) -> Self {
        match kind {
            LatentKind::Centroids { .. } => Self::Centroids(CentroidState::default()),
            LatentKind::Associative { .. } => Self::Associative(AssociativeState::default()),
        }
    }

    /// All values, in a fixed order: what digests hash.
    pub fn all(&self) -> Vec<f32> {
        match self {
            Self::Centroids(state) => [&state.keys()[..], &state.values(), state.counts()].concat(),
            Self::Associative(AssociativeState { sums, norms }) => [&sums[..], norms].concat(),
        }
    }

    /// Takes in entries `[n, D]` each, in position order. `features`: at least `[f, D]` for
    /// associative memories.
    pub(crate) fn absorb(
        &mut self,
        kind: LatentKind,
        features: &[f32],
        keys: &[f32],
        values: &[f32],
        dim: usize,
    ) {
        if let (Self::Associative(state), LatentKind::Associative { features }) = (&mut *self, kind)
        {
            state.sums.resize(features * dim, 0.0);
            state.norms.resize(features, 0.0);
        }
        for (key, value) in keys.chunks_exact(dim).zip(values.chunks_exact(dim)) {
            match (&mut *self, kind) {
                (Self::Centroids(state), LatentKind::Centroids { most }) => {
                    state.absorb(most, key, value)
                }
                (Self::Associative(state), _) => state.absorb(features, key, value),
                (Self::Centroids(_), LatentKind::Associative { .. }) => {
                    unreachable!("checked when it was written")
                }
            }
        }
    }

    /// Checks that it fits a memory of `kind`.
    pub(crate) fn check(&self, op: &'static str, kind: LatentKind, dim: usize) -> Result<()> {
        let shape = |what, got, want| {
            if got == want {
                Ok(())
            } else {
                Err(Error::Shape {
                    op,
                    what,
                    got,
                    want,
                })
            }
        };
        match (self, kind) {
            (Self::Centroids(state), LatentKind::Centroids { most }) => {
                let count = state.counts().len();
                shape(
                    "dimension of centroids",
                    state.dim(),
                    if count == 0 { 0 } else { dim },
                )?;
                if count > most {
                    Err(Error::Shape {
                        op,
                        what: "centroids",
                        got: count,
                        want: most,
                    })
                } else {
                    Ok(())
                }
            }
            (Self::Associative(state), LatentKind::Associative { features }) => {
                let want = if state.norms.is_empty() { 0 } else { features };
                shape("norms", state.norms.len(), want)?;
                shape("sums", state.sums.len(), want * dim)
            }
            (Self::Centroids(_), _) => Err(wrong_kind(op, "features of centroids")),
            (Self::Associative(_), _) => Err(wrong_kind(op, "centroids of an associative memory")),
        }
    }
}

fn wrong_kind(op: &'static str, what: &'static str) -> Error {
    Error::Index {
        op,
        what,
        index: 0,
        len: 0,
    }
}

/// Memory of one sequence on the host.
pub(crate) struct HostLatent {
    pub(crate) kind: LatentKind,
    pub(crate) heads: Vec<LatentState>,
}

/// Latent memories of an arena by their id, which is used again once it is free.
pub(crate) struct Latents<T>(Vec<Option<T>>);

impl<T> Default for Latents<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Latents<T> {
    pub(crate) fn insert(&mut self, latent: T) -> LatentId {
        let free = self
            .0
            .iter()
            .position(Option::is_none)
            .unwrap_or(self.0.len());
        if free == self.0.len() {
            self.0.push(None);
        }
        self.0[free] = Some(latent);
        LatentId(free as u32)
    }

    /// An id that is not in use changes nothing.
    pub(crate) fn remove(&mut self, id: LatentId) -> Option<T> {
        self.0.get_mut(id.0 as usize).and_then(Option::take)
    }

    /// All of them.
    pub(crate) fn all_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.iter_mut().flatten()
    }

    pub(crate) fn get(&self, op: &'static str, id: LatentId) -> Result<&T> {
        let (index, len) = (id.0 as usize, self.0.len());
        self.0
            .get(index)
            .and_then(Option::as_ref)
            .ok_or(Error::Index {
                op,
                what: "latent memory",
                index,
                len,
            })
    }

    pub(crate) fn get_mut(&mut self, op: &'static str, id: LatentId) -> Result<&mut T> {
        let (index, len) = (id.0 as usize, self.0.len());
        self.0
            .get_mut(index)
            .and_then(Option::as_mut)
            .ok_or(Error::Index {
                op,
                what: "latent memory",
                index,
                len,
            })
    }
}

impl Latents<HostLatent> {
    /// An empty memory.
    pub(crate) fn create(&mut self, kind: LatentKind, heads: usize) -> Result<LatentId> {
        kind.check("alloc_latent")?;
        Ok(self.insert(HostLatent {
            kind,
            heads: vec![LatentState::empty(kind); heads],
        }))
    }

    pub(crate) fn head(&self, op: &'static str, head: LatentHead) -> Result<&LatentState> {
        let heads = &self.get(op, head.id)?.heads;
        heads.get(head.head).ok_or(Error::Index {
            op,
            what: "latent head",
            index: head.head,
            len: heads.len(),
        })
    }

    /// What attention reads; `None` while there is nothing.
    pub(crate) fn centroids(
        &self,
        op: &'static str,
        head: Option<LatentHead>,
    ) -> Result<Option<&CentroidState>> {
        let Some(head) = head else { return Ok(None) };
        match self.head(op, head)? {
            LatentState::Centroids(state) => Ok((!state.counts().is_empty()).then_some(state)),
            LatentState::Associative(_) => {
                Err(wrong_kind(op, "centroids of an associative memory"))
            }
        }
    }

    /// What a readout reads.
    pub(crate) fn associative(
        &self,
        op: &'static str,
        head: LatentHead,
    ) -> Result<&AssociativeState> {
        match self.head(op, head)? {
            LatentState::Associative(state) => Ok(state),
            LatentState::Centroids(_) => Err(wrong_kind(op, "features of centroids")),
        }
    }

    /// Replaces the state of a head.
    pub(crate) fn write(
        &mut self,
        head: LatentHead,
        state: &LatentState,
        dim: usize,
    ) -> Result<()> {
        let op = "write_latent";
        self.head(op, head)?;
        let latent = self.get_mut(op, head.id)?;
        state.check(op, latent.kind, dim)?;
        latent.heads[head.head] = state.clone();
        Ok(())
    }
}

/// Size of an array of trained features.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct FeatureSize {
    /// Values of all layers.
    pub(crate) len: usize,
    /// `F`.
    pub(crate) count: usize,
}

/// How the heads of a memory share the layers of trained features.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FeatureLayout {
    /// Heads of a layer.
    pub(crate) layer_heads: usize,
    /// Values of a layer's features, 0 without any.
    pub(crate) layer_values: usize,
}

/// What `LatentMemory::memorise` checks of its features, `[layers, F, D]` in
/// an array of the device, for a memory of `heads` heads.
pub(crate) fn check_features(
    kind: LatentKind,
    heads: usize,
    features: Option<FeatureSize>,
    dim: usize,
) -> Result<FeatureLayout> {
    let op = "memorise";
    let LatentKind::Associative { features: used } = kind else {
        return Ok(FeatureLayout {
            layer_heads: heads.max(1),
            layer_values: 0,
        });
    };
    let FeatureSize { len, count } = features.unwrap_or_default();
    if count < used {
        return Err(Error::Shape {
            op,
            what: "features",
            got: count,
            want: used,
        });
    }
    let layer = count * dim;
    let layers = len / layer;
    if layers == 0 || !len.is_multiple_of(layer) {
        return Err(Error::Multiple {
            op,
            what: "values of features",
            got: len,
            multiple: layer,
        });
    }
    if !heads.is_multiple_of(layers) {
        return Err(Error::Multiple {
            op,
            what: "heads",
            got: heads,
            multiple: layers,
        });
    }
    Ok(FeatureLayout {
        layer_heads: (heads / layers).max(1),
        layer_values: layer,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_centroid_is_the_mean_of_what_it_absorbed_and_counts_are_kept() {
        let kind = LatentKind::Centroids { most: 2 };
        let mut state = LatentState::empty(kind);
        let keys = [0.0, 0.0, 10.0, 0.0, 1.0, 0.0, 0.0, 1.0];
        state.absorb(
            kind,
            &[],
            &keys,
            &[1.0, 0.0, 0.0, 2.0, 4.0, 0.0, 1.0, 3.0],
            2,
        );
        let LatentState::Centroids(state) = state else {
            panic!("centroids")
        };
        assert_eq!(state.counts(), &[3.0, 1.0]);
        assert_eq!(state.bias(), &[3f32.ln(), 0.0]);
        for (got, want) in state.keys().iter().zip([1.0 / 3.0, 1.0 / 3.0, 10.0, 0.0]) {
            assert!((got - want).abs() < 1e-6);
        }
        for (got, want) in state.values().iter().zip([2.0, 1.0, 0.0, 2.0]) {
            assert!((got - want).abs() < 1e-6);
        }
    }

    #[test]
    fn absorbing_in_one_call_or_several_gives_the_same_bits() {
        let entries: Vec<f32> = (0..64u16).map(|i| f32::from(i * 37 % 101) / 7.0).collect();
        for kind in [
            LatentKind::Centroids { most: 3 },
            LatentKind::Associative { features: 2 },
        ] {
            let (mut whole, mut parts) = (LatentState::empty(kind), LatentState::empty(kind));
            whole.absorb(kind, &entries[..8], &entries, &entries, 4);
            entries
                .chunks(4)
                .for_each(|e| parts.absorb(kind, &entries[..8], e, e, 4));
            assert_eq!(whole, parts);
        }
    }

    #[test]
    fn what_is_absorbed_is_summed_with_its_features() {
        let kind = LatentKind::Associative { features: 2 };
        let mut state = LatentState::empty(kind);
        // The third feature is not in use.
        let features = [2.0, 0.0, 0.0, 2.0, 9.0, 9.0];
        state.absorb(
            kind,
            &features,
            &[1.0, 0.0, 0.0, 3.0],
            &[5.0, 7.0, 1.0, 2.0],
            2,
        );
        // phi of the keys: (2, 0) and (0, 6).
        let want = AssociativeState {
            sums: vec![10.0, 14.0, 6.0, 12.0],
            norms: vec![4.0, 36.0],
        };
        assert_eq!(state, LatentState::Associative(want));
    }

    #[test]
    fn ids_are_used_again_and_unknown_ones_refused() {
        let mut latents = Latents::default();
        let kind = LatentKind::Centroids { most: 1 };
        let first = latents.create(kind, 2).expect("a memory");
        let second = latents.create(kind, 2).expect("a memory");
        assert_ne!(first, second);
        latents.remove(first);
        assert!(
            latents
                .head("test", LatentHead { id: first, head: 0 })
                .is_err()
        );
        assert_eq!(latents.create(kind, 1).expect("a memory"), first);
        assert!(
            latents
                .head("test", LatentHead { id: first, head: 1 })
                .is_err()
        );
        latents
            .create(LatentKind::Centroids { most: 0 }, 1)
            .expect_err("no centroid at all");
    }
}
