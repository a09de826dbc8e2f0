//! What is told to a driver, and what it tells of itself.

use tokio::sync::oneshot;

use super::moves::Moving;
use crate::admission::Permit;
use crate::executor::Executor;
use crate::ids::Epoch;
use crate::request::ValidRequest;
use crate::stream::Writer;

/// Whether a driver serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// The first step of a group has not passed yet.
    Starting,
    /// Steps pass.
    Ready,
    /// The group failed; another must be given.
    Lost,
    /// Shutting down: running requests finish, new ones are refused.
    Draining,
    /// The driver has ended.
    Ended,
}

/// What its handles tell a driver.
pub(super) enum Message {
    /// A request that was admitted.
    Submit(Box<Submission>),
    /// Another group.
    Replace(Replacement),
    /// The group is lost, and why.
    Lose(Loss),
    /// A state is to be in another tier.
    Move(Moving),
    /// Finish what runs and end.
    Drain,
}

/// A loss that somebody else found out.
pub(super) struct Loss {
    pub(super) why: String,
    /// Whether another group may come.
    pub(super) outlook: Outlook,
}

/// What follows a loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outlook {
    /// Another group may come.
    Open,
    /// None will.
    Final,
}

/// A group in place of another.
pub(super) struct Replacement {
    pub(super) executor: Box<dyn Executor>,
    pub(super) epoch: Epoch,
    /// Told, or dropped, when the driver has turned to it.
    pub(super) taken: oneshot::Sender<()>,
}

/// A request on its way in.
pub(super) struct Submission {
    pub(super) request: ValidRequest,
    pub(super) permit: Permit,
    pub(super) writer: Writer,
}
