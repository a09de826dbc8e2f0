//! One rank's part of a state out of parts that other ranks held.

use palimpsest_kernels::StoredParts;

use super::error::{possible, same};
use super::{Extent, HeadState, Snapshot, SnapshotError};

impl Snapshot {
    /// The state of the heads of `extent`, out of parts of one state that cover them. They may
    /// overlap: of what several have, all have the same.
    ///
    /// # Errors
    /// [`SnapshotError::Missing`] where no part has a head; [`SnapshotError::Foreign`] for parts
    /// that are not of one state or not of this model.
    pub fn join(mut parts: Vec<Self>, extent: &Extent) -> Result<Self, SnapshotError> {
        if let Some(whole) = parts.iter().position(|part| part.extent == *extent) {
            return Ok(parts.swap_remove(whole));
        }
        let missing = SnapshotError::Missing {
            kv_head: extent.kv_heads.start,
            query_head: extent.queries.start,
        };
        let first = parts.first().ok_or(missing)?;
        parts.iter().try_for_each(|part| first.check_one(part))?;
        let model = |extent: &Extent| (extent.layers, extent.total_kv_heads, extent.group);
        same("model", &model(&first.extent), &model(extent), |model| {
            format!("{model:?}")
        })?;
        let (mut heads, mut slots) = (Vec::new(), Vec::new());
        for layer in 0..extent.layers {
            for kv_head in extent.kv_heads.clone() {
                heads.push(head(&parts, extent, (layer, kv_head), &mut slots)?);
            }
        }
        Ok(Self {
            extent: extent.clone(),
            heads,
            slots,
            contract: first.contract.clone(),
            policy: first.policy.clone(),
            ..*first
        })
    }

    /// Checks that another part is of the same state.
    fn check_one(&self, other: &Self) -> Result<(), SnapshotError> {
        let of = |part: &Self| {
            let Extent {
                layers,
                total_kv_heads,
                group,
                ..
            } = part.extent;
            let shape = (part.shape, layers, total_kv_heads, group);
            let policy = (&part.contract, &part.policy, part.per_query_head);
            let place = (part.position, part.next_rotary, part.memory);
            format!("{shape:?} {policy:?} {place:?}")
        };
        same("state", &of(other), &of(self), String::clone)
    }

    /// The state of a head, and its slots, if they are here.
    fn head(&self, layer: usize, kv_head: usize) -> Option<HeadPart<'_>> {
        let kv_heads = &self.extent.kv_heads;
        if !kv_heads.contains(&kv_head) {
            return None;
        }
        let index = layer * kv_heads.len() + kv_head - kv_heads.start;
        let bytes = |head: &HeadState| StoredParts::of(self.shape, head.len()).bytes();
        let first = self.heads[..index].iter().map(bytes).sum();
        let state = &self.heads[index];
        Some(HeadPart {
            state,
            slots: &self.slots[first..][..bytes(state)],
            queries: self.extent.queries.clone(),
        })
    }
}

/// A head in one of the parts.
struct HeadPart<'a> {
    state: &'a HeadState,
    slots: &'a [u8],
    /// Query heads whose numbers are there.
    queries: std::ops::Range<usize>,
}

/// One KV head of a layer, out of the parts that have it.
fn head(
    parts: &[Snapshot],
    extent: &Extent,
    (layer, kv_head): (usize, usize),
    slots: &mut Vec<u8>,
) -> Result<HeadState, SnapshotError> {
    let found: Vec<HeadPart<'_>> = parts
        .iter()
        .filter_map(|part| part.head(layer, kv_head))
        .collect();
    let missing = |query_head| SnapshotError::Missing {
        kv_head,
        query_head,
    };
    let first = found.first().ok_or_else(|| missing(extent.queries.start))?;
    slots.extend_from_slice(first.slots);
    if !parts[0].per_query_head {
        return Ok(first.state.clone());
    }
    let (mut mass, mut sums) = (Vec::new(), Vec::new());
    for query in extent.queries.clone() {
        let part = found.iter().find(|part| part.queries.contains(&query));
        let HeadPart { state, queries, .. } = part.ok_or_else(|| missing(query))?;
        possible(state.positions == first.state.positions, || {
            format!("parts hold other entries of KV head {kv_head} in layer {layer}")
        })?;
        let line = query - queries.start;
        mass.extend(state.mass.get(line).cloned());
        let width = state.sums.len() / queries.len();
        sums.extend_from_slice(&state.sums[line * width..][..width]);
    }
    let (lines, most) = (mass.len(), extent.queries.len());
    let width = sums.len() / most;
    possible(
        (lines == 0 || lines == most) && sums.len() == width * most,
        || format!("parts of KV head {kv_head} in layer {layer} do not go together"),
    )?;
    Ok(HeadState {
        mass,
        sums,
        ..first.state.clone()
    })
}
