//! How a device thread is asked, and how everybody learns that it has ended.
//!
//! What holds, whatever order threads run in: a command is answered, or whoever gave it is told
//! that the thread has gone, and can learn why. Nobody learns of an end before the commands that
//! were carried out by then are answered. The thread ends with the last handle.

use super::sync::{catch_panic, mpsc, oneshot, watch};

/// Commands that may wait: a plan, and a join that overtakes it nowhere but in time.
const WAITING: usize = 2;

/// The thread takes no commands any more: the device has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the device thread has ended; the log says why")]
pub struct DeviceGone;

/// A handle on a thread that carries out commands `C` and may end for a reason `E`.
#[derive(Debug)]
pub struct Mailbox<C: 'static, E: 'static> {
    commands: mpsc::Sender<C>,
    end: watch::Receiver<Option<E>>,
}

impl<C: 'static, E: 'static> Clone for Mailbox<C, E> {
    fn clone(&self) -> Self {
        Self {
            commands: self.commands.clone(),
            end: self.end.clone(),
        }
    }
}

/// The thread's side.
#[derive(Debug)]
pub struct Inbox<C: 'static, E: 'static> {
    commands: mpsc::Receiver<C>,
    end: watch::Sender<Option<E>>,
}

/// Both sides.
pub fn mailbox<C: 'static, E: 'static>() -> (Mailbox<C, E>, Inbox<C, E>) {
    let (commands, inbox) = mpsc::channel(WAITING);
    let (ended, end) = watch::channel(None);
    let inbox = Inbox {
        commands: inbox,
        end: ended,
    };
    (Mailbox { commands, end }, inbox)
}

impl<C: 'static, E: Copy + 'static> Mailbox<C, E> {
    /// Gives a command and waits for its answer. A caller that goes away meanwhile takes nothing
    /// back.
    ///
    /// # Errors
    /// [`DeviceGone`].
    pub async fn ask<A: 'static>(
        &self,
        command: impl FnOnce(oneshot::Sender<A>) -> C,
    ) -> Result<A, DeviceGone> {
        let (done, answer) = oneshot::channel();
        let sent = self.commands.send(command(done)).await;
        sent.map_err(|_| DeviceGone)?;
        answer.await.map_err(|_| DeviceGone)
    }

    /// Waits until no command is taken any more, and says why.
    pub async fn ended(&self) -> E {
        let mut end = self.end.clone();
        loop {
            if let Some(end) = *end.borrow_and_update() {
                return end;
            }
            if end.changed().await.is_err() {
                // The thread ends without a reason only when no handle is left.
                return std::future::pending().await;
            }
        }
    }
}

impl<C: 'static, E: 'static> Inbox<C, E> {
    /// Carries commands out, one at a time and in order, until `work` says why that is over, or
    /// panics, or nobody is left to give one. What `work` owns is gone by the time that the end is
    /// told.
    pub fn serve(self, panicked: E, mut work: impl FnMut(C) -> Option<E>) {
        let Self { mut commands, end } = self;
        let ended = loop {
            let Some(command) = commands.blocking_recv() else {
                break None;
            };
            match catch_panic(|| work(command)) {
                Some(None) => {}
                Some(ended) => break ended,
                None => break Some(panicked),
            }
        };
        drop((commands, work));
        end.send_replace(ended);
    }
}
