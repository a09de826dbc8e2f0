//! What the implementations check and add alike.

use crate::communicator::CollectiveError;

/// Adds another rank's part, as it came over a wire, to a sum, element by element.
pub(crate) fn add_bytes<T: bytemuck::Pod>(sum: &mut [T], part: &[u8], add: impl Fn(T, T) -> T) {
    for (sum, part) in sum.iter_mut().zip(part.chunks_exact(size_of::<T>())) {
        *sum = add(*sum, bytemuck::pod_read_unaligned(part));
    }
}

/// Refuses a gather whose lengths do not fit.
pub(crate) fn check_gather(
    world_size: usize,
    mine: &[u8],
    all: &[u8],
) -> Result<(), CollectiveError> {
    if all.len() == world_size * mine.len() {
        return Ok(());
    }
    let what = format!(
        "gathering {} bytes of {world_size} ranks into {}",
        mine.len(),
        all.len()
    );
    Err(CollectiveError::Misuse(what))
}

/// Refuses a root that is no rank.
pub(crate) fn check_root(world_size: usize, root: usize) -> Result<(), CollectiveError> {
    if root < world_size {
        return Ok(());
    }
    Err(CollectiveError::Misuse(format!(
        "root {root} of a group of {world_size}"
    )))
}
