//! Fits of all layers at once, a thread for each processor.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use crate::Result;

/// What `work` gives for every layer, in order. `progress` receives how many layers are done.
///
/// # Errors
/// The first one of `work`, after which no further layer is begun.
pub fn per_layer<T: Send>(
    layers: usize,
    progress: &mut dyn FnMut(usize),
    work: &(dyn Fn(usize) -> Result<T> + Sync),
) -> Result<Vec<T>> {
    let threads = std::thread::available_parallelism()
        .map_or(1, std::num::NonZero::get)
        .min(layers.max(1));
    let next = AtomicUsize::new(0);
    let mut found: Vec<Option<T>> = (0..layers).map(|_| None).collect();
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                loop {
                    let layer = next.fetch_add(1, Ordering::Relaxed);
                    if layer >= layers || sender.send((layer, work(layer))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        for (done, (layer, result)) in receiver.into_iter().enumerate() {
            match result {
                Ok(value) => found[layer] = Some(value),
                Err(error) => {
                    next.store(layers, Ordering::Relaxed);
                    return Err(error);
                }
            }
            progress(done + 1);
        }
        Ok(())
    })?;
    Ok(found.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn layers_come_back_in_order_and_the_first_error_ends_it() {
        let mut seen = 0;
        let squares = per_layer(7, &mut |done| seen = done, &|layer| Ok(layer * layer))
            .expect("nothing fails");
        assert_eq!((squares, seen), (vec![0, 1, 4, 9, 16, 25, 36], 7));
        let failed = per_layer(7, &mut |_| {}, &|layer| {
            if layer == 3 {
                Err(Error::Singular { layer })
            } else {
                Ok(layer)
            }
        });
        assert!(matches!(failed, Err(Error::Singular { layer: 3 })));
    }
}
