//! The one loop that owns all sequences of a group.
//!
//! ```text
//! mailbox ─▶ ┌──────────────── driver task ────────────────┐
//!            │ tend (readers, deadlines) ▸ scheduler.plan  │ ─ StepPlan ─▶ executor ─▶ ranks
//! readers ─▶ │ ▸ rings ◂ scheduler.on_output ◂─────────────│ ◂ StepOutput
//!            └─────────────────────────────────────────────┘
//! ```
//! While a step is under way the loop goes on taking requests, cancellations and deadlines; only
//! the plan waits. Detokenisation is not done here but by each request's reader.

mod live;
mod message;
mod moves;
mod moving;
mod state;
mod warm_up;

use std::pin::pin;
use std::sync::Arc;

use palimpsest_proto::error::{Reason, RequestError};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;

pub use self::message::Readiness;
use self::message::{Loss, Message, Outlook, Replacement, Submission};
use self::moves::Moving;
pub use self::moves::{Move, MoveError, Moved};
use self::state::{Outlets, State};
pub use self::warm_up::check_room;
use crate::admission::{Admission, Gate};
use crate::config::Config;
use crate::executor::Executor;
use crate::ids::Epoch;
use crate::metrics::Metrics;
use crate::model::ServedModel;
use crate::request::ValidRequest;
use crate::snapshots::Chain;
use crate::stream::{Reader, ring};

/// A handle on a driver; cheap to clone.
#[derive(Debug, Clone)]
pub struct DriverHandle {
    mailbox: mpsc::Sender<Message>,
    wake: Arc<Notify>,
    readiness: watch::Receiver<Readiness>,
    admission: Admission,
    ring_tokens: usize,
}

impl DriverHandle {
    /// Hands a request to the driver and returns the reader of its tokens. Dropping the reader
    /// cancels the request.
    ///
    /// # Errors
    /// As [`Admission::admit`].
    pub fn submit(&self, request: ValidRequest) -> Result<Reader, RequestError> {
        let permit = self.admission.admit(&request)?;
        let (writer, reader) = ring(self.ring_tokens, self.wake.clone());
        let message = Message::Submit(Box::new(Submission {
            request,
            permit,
            writer,
        }));
        self.mailbox
            .try_send(message)
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => RequestError::new(
                    Reason::QueueFull,
                    "the service's mailbox is full: try again later",
                ),
                mpsc::error::TrySendError::Closed(_) => {
                    RequestError::new(Reason::Draining, "the service has shut down: ask another")
                }
            })?;
        Ok(reader)
    }

    /// Gives the driver another group, in place of a lost one or of the present one. It goes on
    /// with the requests of the former, where `Config::regroup_limit` lets them wait. Returns when
    /// the driver has turned to this group: from then on its readiness speaks of this one, also if
    /// it has been lost again already.
    pub async fn replace(&self, executor: Box<dyn Executor>, epoch: Epoch) {
        let (taken, turned) = oneshot::channel();
        // A closed mailbox or a dropped sender means that the driver has ended: there is nothing to
        // replace.
        let _ = self
            .mailbox
            .send(Message::Replace(Replacement {
                executor,
                epoch,
                taken,
            }))
            .await;
        let _ = turned.await;
    }

    /// Tells the driver that its group is lost, and why: a group at rest has no step that would
    /// fail. Nothing changes where it has none.
    pub async fn lose(&self, why: String) {
        let outlook = Outlook::Open;
        // A closed mailbox means that the driver has ended.
        let _ = self
            .mailbox
            .send(Message::Lose(Loss { why, outlook }))
            .await;
    }

    /// As [`Self::lose`], where no other group will come: all requests end now, with a reason that
    /// says so.
    pub async fn lose_for_good(&self, why: String) {
        let outlook = Outlook::Final;
        // A closed mailbox means that the driver has ended.
        let _ = self
            .mailbox
            .send(Message::Lose(Loss { why, outlook }))
            .await;
    }

    /// Stops admission; what was admitted finishes, within the drain limit. Returns when the driver
    /// has ended.
    pub async fn drain(&self) {
        self.admission.set_gate(Gate::Draining);
        let _ = self.mailbox.send(Message::Drain).await;
        let mut readiness = self.readiness.clone();
        // An error means that the driver is gone, which is what we wait for.
        let _ = readiness
            .wait_for(|readiness| *readiness == Readiness::Ended)
            .await;
    }

    /// Brings the last kept state of a chain to another tier.
    ///
    /// # Errors
    /// [`MoveError`]. The tokens can be read again in any case.
    pub async fn move_state(&self, chain: Arc<Chain>, what: Move) -> Result<Moved, MoveError> {
        let (done, end) = oneshot::channel();
        let moving = Message::Move(Moving { chain, what, done });
        // A closed mailbox means that the driver has ended.
        let sent = self.mailbox.send(moving).await;
        sent.map_err(|_| MoveError::Ended)?;
        end.await.unwrap_or(Err(MoveError::Ended))
    }

    /// Follows the driver's readiness.
    pub fn readiness(&self) -> watch::Receiver<Readiness> {
        self.readiness.clone()
    }

    /// The queue in front of the driver.
    pub fn admission(&self) -> &Admission {
        &self.admission
    }
}

/// Starts a driver as a task of the current runtime. It ends when drained, or when the last handle
/// is dropped and its requests are done.
pub fn start(
    config: &Config,
    model: &ServedModel,
    executor: Box<dyn Executor>,
    metrics: Metrics,
) -> DriverHandle {
    // Room for every request that admission lets wait, and for commands.
    let (mailbox, inbox) = mpsc::channel(config.max_queued + 16);
    let (readiness, follow) = watch::channel(Readiness::Starting);
    let admission = Admission::new(config);
    let wake = Arc::new(Notify::new());
    let outlets = Outlets {
        readiness,
        admission: admission.clone(),
        wake: wake.clone(),
        metrics,
    };
    let state = State::new(config, model, outlets);
    tokio::spawn(run(state, inbox, executor));
    DriverHandle {
        mailbox,
        wake,
        readiness: follow,
        admission,
        ring_tokens: config.ring_tokens,
    }
}

async fn run(mut state: State, mut inbox: mpsc::Receiver<Message>, executor: Box<dyn Executor>) {
    state.warm_up();
    let mut group = Some(executor);
    loop {
        if let Some(Loss { why, outlook }) = state.told_lost.take() {
            if group.take().is_some() {
                state.lose_group(&why);
            }
            if outlook == Outlook::Final {
                state.close(&why);
            }
        }
        if let Some(Replacement {
            executor,
            epoch,
            taken,
        }) = state.replacement.take()
        {
            if group.is_some() {
                state.lose_group("another group was given");
            }
            state.join(epoch);
            state.warm_up();
            group = Some(executor);
            // Whoever gave it may have gone.
            let _ = taken.send(());
        }
        state.tend();
        if state.is_drained_in_time() {
            break;
        }
        let plan = if group.is_some() { state.plan() } else { None };
        let (Some(executor), Some(plan)) = (&mut group, plan) else {
            if state.drained(group.is_some()) {
                break;
            }
            event(&mut state, &mut inbox).await;
            continue;
        };
        let begun = Instant::now();
        let output = {
            let mut step = pin!(executor.execute(plan));
            loop {
                tokio::select! {
                    biased;
                    output = &mut step => break output,
                    () = event(&mut state, &mut inbox) => state.tend(),
                }
            }
        };
        match output {
            Ok(mut output) => {
                // The limit of a step counts the way to the ranks and back, so these seconds do.
                output.seconds = begun.elapsed().as_secs_f64();
                if !state.absorb(output) {
                    group = None;
                }
            }
            Err(error) => {
                tracing::error!(%error, "the worker group failed");
                group = None;
                state.lose_group(&error.to_string());
            }
        }
    }
}

/// Waits for one thing to happen and takes it in. May be dropped while it waits.
async fn event(state: &mut State, inbox: &mut mpsc::Receiver<Message>) {
    let wake = state.wake.clone();
    let alarm = state.next_alarm();
    let alarm = async {
        match alarm {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        message = inbox.recv(), if !state.orphaned => state.take(message),
        () = wake.notified() => {}
        () = alarm => {}
    }
}

#[cfg(test)]
mod tests;
