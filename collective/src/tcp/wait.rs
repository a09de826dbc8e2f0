//! Waiting for sockets that do not block.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, Timespec, poll};

/// Time until `deadline`, never none.
pub(super) fn left(deadline: Instant) -> Duration {
    deadline
        .saturating_duration_since(Instant::now())
        .max(Duration::from_millis(1))
}

/// Sleeps until one of them is ready or `deadline` has passed.
pub(super) fn wait(fds: &mut [PollFd<'_>], deadline: Instant) -> std::io::Result<()> {
    let limit = Timespec::try_from(left(deadline)).map_err(|_| ErrorKind::InvalidInput)?;
    match poll(fds, Some(&limit)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Goes on from byte `done` to byte `end` as far as a socket that does not block lets it. `step`
/// moves bytes from one on and says how many; none at all means `over`.
pub(super) fn go_on(
    done: &mut usize,
    end: usize,
    over: ErrorKind,
    mut step: impl FnMut(usize) -> std::io::Result<usize>,
) -> std::io::Result<()> {
    while *done < end {
        match step(*done) {
            Ok(0) => return Err(over.into()),
            Ok(count) => *done += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
