//! Pinned memory that uploads go through. From pageable memory the driver may wait for the stream
//! before it copies; from pinned memory it never does, but what was put there has to stay until it
//! was copied. So room is handed out from the start to the end, and is free again once the stream
//! was waited for, as each step does at its end.

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::result as cuda;

use super::context::{Context, failed};
use crate::error::{Error, Result};

/// Pinned bytes: more than the descriptors of a step of 64 sequences with 4096 slots in each of 8
/// KV heads and 32 layers.
const BYTES: usize = 32 << 20;

/// Pinned memory of the host.
pub(super) struct Staging {
    start: *mut u8,
    room: Room,
    context: Arc<Context>,
}

// SAFETY: plain memory, reached through `&mut` only.
unsafe impl Send for Staging {}

impl Staging {
    /// Pins it.
    pub(super) fn new(context: &Arc<Context>) -> Result<Self> {
        context.enter("pinned memory")?;
        // SAFETY: freed when dropped.
        let start = unsafe { cuda::malloc_host(BYTES, 0) }.map_err(|error| {
            match failed("pinned memory")(error) {
                Error::Device { .. } => Error::OutOfMemory {
                    what: "pinned memory",
                    bytes: BYTES,
                },
                other => other,
            }
        })?;
        Ok(Self {
            start: start.cast(),
            room: Room {
                bytes: BYTES,
                used: 0,
            },
            context: context.clone(),
        })
    }

    /// Starts the copy of `src` to `address`, where so many bytes were allocated.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub(super) fn upload(&mut self, src: &[u8], address: u64) -> Result<()> {
        let stream = self.context.stream;
        // Weights are larger than this at a time; they are loaded before anybody waits for a step.
        let mut pinned = src;
        if src.len() <= BYTES {
            if !self.room.has(src.len()) {
                self.context.wait("upload")?;
                self.waited();
            }
            let part = self.room.take(src.len());
            // SAFETY: inside the allocation; nothing that the stream still reads lies there, by
            // `Room`.
            let room =
                unsafe { std::slice::from_raw_parts_mut(self.start.add(part.start), part.len()) };
            room.copy_from_slice(src);
            pinned = room;
        }
        // SAFETY: by the caller's promise. A pinned source stays until the stream was waited for; a
        // pageable one was copied when this returns.
        unsafe { cuda::memcpy_htod_async(address, pinned, stream) }.map_err(failed("upload"))
    }

    /// The stream was waited for: all that was put here has been copied.
    pub(super) fn waited(&mut self) {
        self.room.used = 0;
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.context.enter("close").is_ok() {
            // SAFETY: made in `new`; the stream is waited for, so nothing is read from it any more.
            unsafe {
                let _ = cuda::stream::synchronize(self.context.stream);
                let _ = cuda::free_host(self.start.cast());
            }
        }
    }
}

/// What of a piece of memory is handed out.
struct Room {
    bytes: usize,
    used: usize,
}

impl Room {
    fn has(&self, len: usize) -> bool {
        self.bytes - self.used >= len
    }

    /// The next `len` bytes, which there are; the following ones begin at a multiple of 64.
    fn take(&mut self, len: usize) -> Range<usize> {
        let part = self.used..self.used + len;
        self.used = part.end.next_multiple_of(64).min(self.bytes);
        part
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_handed_out_once_until_it_is_free_again() {
        let mut room = Room {
            bytes: 200,
            used: 0,
        };
        assert_eq!((room.take(1), room.take(100)), (0..1, 64..164));
        assert!(room.has(8) && !room.has(9));
        assert_eq!(room.take(8), 192..200);
        assert!(room.has(0) && !room.has(1));
        room.used = 0;
        assert_eq!(room.take(200), 0..200);
    }
}
