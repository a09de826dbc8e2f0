//! One request in the hands of the driver, and what can end it early.

use std::time::Duration;

use palimpsest_proto::error::{Reason, RequestError};
use palimpsest_proto::v1::TokenLogprob;
use tokio::time::Instant;

use crate::admission::Permit;
use crate::ids::RequestId;
use crate::stream::{ReaderState, Writer};

/// A request whose sequence waits or runs.
pub(super) struct Live {
    /// For logs.
    pub(super) request: RequestId,
    /// Where its tokens go.
    pub(super) writer: Writer,
    /// Held while the request waits.
    pub(super) permit: Option<Permit>,
    /// When it is given up.
    pub(super) deadline: Instant,
    /// When its reader fell behind, if it has not caught up.
    pub(super) paused: Option<Instant>,
    /// Log-probabilities of the prompt, as far as it was read; `None` once they were handed out.
    pub(super) prompt_logprobs: Option<Vec<TokenLogprob>>,
    /// It came while no group was ready: how long it waits for one.
    pub(super) group_by: Option<Instant>,
}

impl Live {
    /// Why this request must end now, if it must.
    pub(super) fn verdict(
        &self,
        now: Instant,
        slow: Duration,
        drain_until: Option<Instant>,
    ) -> Option<RequestError> {
        if self.writer.reader() == ReaderState::Gone {
            return Some(RequestError::new(
                Reason::ClientGone,
                "the client dropped the stream",
            ));
        }
        if self.group_by.is_some_and(|by| by <= now) {
            let message = "no worker group became ready while the request waited: try again later";
            return Some(RequestError::new(Reason::NoReadyGroup, message));
        }
        if self.permit.as_ref().is_some_and(Permit::is_lost) {
            let message = "the queue is full, and this client has more requests in it than others: \
                           try again later";
            return Some(RequestError::new(Reason::QueueFull, message));
        }
        if self.deadline <= now {
            return Some(self.out_of_time());
        }
        if self.paused.is_some_and(|since| since + slow <= now) && !self.writer.has_room() {
            let message = format!(
                "the stream was not read for {} s: read faster or ask for less",
                slow.as_secs_f64()
            );
            return Some(RequestError::new(Reason::SlowReader, message));
        }
        if let Some(error) = self.too_slow(now, slow) {
            return Some(error);
        }
        let message = "the service is shutting down and the time to finish is over: ask another";
        drain_until
            .filter(|until| *until <= now)
            .map(|_| RequestError::new(Reason::Draining, message))
    }

    /// A reader that is behind must take as much as its ring holds in each such time, or it would
    /// keep a running sequence for ever by a little reading now and then.
    fn too_slow(&self, now: Instant, slow: Duration) -> Option<RequestError> {
        let lag = self.writer.lag().filter(|lag| lag.since + slow <= now)?;
        let least = self.writer.capacity();
        // Nobody looks while the sequence is paused, so more time may have passed.
        let rings = (now - lag.since).as_secs_f64() / slow.as_secs_f64();
        if lag.taken as f64 >= least as f64 * rings {
            self.writer.restart_lag(now);
            return None;
        }
        let message = format!(
            "fewer than {least} tokens of the stream were read in {} s: read faster or ask for less",
            slow.as_secs_f64()
        );
        Some(RequestError::new(Reason::SlowReader, message))
    }

    /// The deadline has passed; where depends on whether the request still waits.
    fn out_of_time(&self) -> RequestError {
        if self.permit.is_some() {
            let message = "the deadline passed before the request started: ask for less or later";
            return RequestError::new(Reason::DeadlineInQueue, message);
        }
        let message = "the deadline passed while tokens were made: allow more time or fewer tokens";
        RequestError::new(Reason::DeadlineInExecution, message)
    }

    /// Every group that ran this request was lost, `losses` of them, the last one with nothing else
    /// in its step. What the client has seen makes no difference: it is not to ask again.
    pub(super) fn breaks_groups(losses: u32, why: &str) -> RequestError {
        let message = format!(
            "the worker group was lost {losses} times while it ran this request, the last time \
             with this request alone ({why}): do not ask the same again, and report it"
        );
        RequestError::new(Reason::GroupLost, message)
    }

    /// The group failed; what that means depends on whether the client has seen a token.
    pub(super) fn failure(&self, why: &str) -> RequestError {
        let count = self.writer.pushed();
        match count {
            0 if self.group_by.is_some() => RequestError::new(
                Reason::NoReadyGroup,
                format!("no worker group is ready ({why}): try again later"),
            ),
            0 => RequestError::new(
                Reason::RankFailed,
                format!("the worker group failed before the first token ({why}): try again"),
            ),
            _ => RequestError::new(
                Reason::GroupLost,
                format!("the worker group failed after {count} tokens ({why}): start again"),
            ),
        }
    }
}
