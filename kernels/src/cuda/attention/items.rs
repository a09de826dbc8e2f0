//! Items of attention calls.

use crate::backend::AttentionItem;
use crate::cuda::cache::Pages;
use crate::cuda::checks::{at_least, exactly, within};
use crate::cuda::descriptors::Items;
use crate::cuda::device::Device;
use crate::cuda::launch::Item;
use crate::error::{Error, Result};
use crate::latent::LatentKind;
use crate::shapes::QkvShape;

/// Adds an item of an attention call after checking it. Its `extra` is the state of its centroids,
/// and `count` how many these are at most.
pub(super) fn add_item<'a, D: Device>(
    op: &'static str,
    all: &mut Items<'a>,
    shape: QkvShape,
    pages: &Pages<D>,
    attend: &AttentionItem<'a>,
) -> Result<()> {
    let (rows, len) = (attend.rows.len(), attend.slots.len);
    within(op, "KV head", attend.kv_head, shape.kv_heads)?;
    if attend.sinks.is_some() {
        return Err(Error::Unavailable(
            "CUDA does not offer attention sinks".into(),
        ));
    }
    at_least(op, "slots of an item", len, rows)?;
    pages.check(op, &attend.slots, len)?;
    let mut item = Item {
        len: len as u32,
        ..Item::new(&attend.rows, attend.kv_head)
    };
    if let Some(first) = attend.first_visible {
        exactly(op, "first_visible", first.len(), rows)?;
        for (row, &first) in first.iter().enumerate() {
            // A row sees one slot at least, its own.
            let slots = len - rows + row + 1;
            within(op, "first visible slot", first as usize, slots)?;
        }
        item.first = all.first_visible.len() as u32;
        all.first_visible.extend_from_slice(first);
    }
    if let Some(head) = attend.centroids {
        let state = pages.latents.state(op, head)?;
        let LatentKind::Centroids { most } = state.kind else {
            return Err(Error::Index {
                op,
                what: "centroids of an associative memory",
                index: 0,
                len: 0,
            });
        };
        (item.extra, item.count) = (all.states.len() as u32, most as u32);
        all.states.push(state.ptr());
    }
    item.table = all.known_table(&attend.slots, 0, len).index;
    all.items.push(item);
    Ok(())
}
