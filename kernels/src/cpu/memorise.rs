//! Slots that go are merged into latent memories, one task for each head.

use std::sync::Mutex;

use super::exec::Exec;
use super::pages::CpuPages;
use super::slots::read_slots;
use crate::backend::{Features, HeadPages};
use crate::error::{Error, Result};
use crate::latent::{FeatureSize, LatentId, LatentState, check_features};
use crate::select::KeptLists;

/// See [`LatentMemory::memorise`](crate::backend::LatentMemory::memorise).
pub(crate) fn memorise(
    exec: Exec<'_>,
    pages: &mut CpuPages,
    id: LatentId,
    features: Option<Features<'_, [f32]>>,
    heads: &[HeadPages<'_>],
    kept: &KeptLists,
) -> Result<()> {
    let (op, dim) = ("memorise", pages.head_dim());
    kept.check(op, heads)?;
    heads
        .iter()
        .try_for_each(|head| pages.check(op, head, head.len))?;
    let latent = pages.latents_mut().get_mut(op, id)?;
    let (kind, want) = (latent.kind, latent.heads.len());
    if heads.len() != want {
        return Err(Error::Shape {
            op,
            what: "heads",
            got: heads.len(),
            want,
        });
    }
    let values = features.map_or(&[][..], |features| features.values);
    let size = features.map(|features| FeatureSize {
        len: values.len(),
        count: features.count,
    });
    let layout = check_features(kind, want, size, dim)?;
    // Pages are read while states are written.
    let mut states = std::mem::take(&mut latent.heads);
    let lost: Vec<Vec<u32>> = (0..heads.len()).map(|head| kept.lost(head)).collect();
    let work = lost.iter().map(Vec::len).sum::<usize>() * kind.head_values(dim);
    let tasks: Vec<Mutex<&mut LatentState>> = states.iter_mut().map(Mutex::new).collect();
    let reader = &*pages;
    exec.run(tasks.len(), work, &|index| {
        if lost[index].is_empty() {
            return;
        }
        let (mut keys, mut values_of) = (
            vec![0.0; lost[index].len() * dim],
            vec![0.0; lost[index].len() * dim],
        );
        read_slots(
            exec,
            reader,
            heads[index],
            &lost[index],
            &mut keys,
            &mut values_of,
        )
        .expect("slots of a table that was checked");
        let features =
            &values[(index / layout.layer_heads) * layout.layer_values..][..layout.layer_values];
        tasks[index]
            .lock()
            .expect("no task panics")
            .absorb(kind, features, &keys, &values_of, dim);
    });
    drop(tasks);
    pages.latents_mut().get_mut(op, id)?.heads = states;
    Ok(())
}
