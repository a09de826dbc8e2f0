//! The thread that owns the device: one command at a time, in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use palimpsest_collective::Collective;
use palimpsest_engine::runner::Runner;
use palimpsest_kernels::Backend;
use palimpsest_proto::internal::v1::{StepOutput, StepPlan};
use tokio::sync::{mpsc, oneshot};

enum Command {
    Join {
        epoch: u64,
        collective: Option<Arc<dyn Collective>>,
        done: oneshot::Sender<()>,
    },
    Execute {
        plan: Box<StepPlan>,
        done: oneshot::Sender<StepOutput>,
    },
}

/// A handle on a device thread, which ends with its last handle.
#[derive(Clone)]
pub struct Device {
    commands: mpsc::Sender<Command>,
    activity: Arc<Activity>,
}

/// What a device thread is doing, for those who watch it.
#[derive(Debug, Default)]
pub struct Activity {
    steps: AtomicU64,
    busy: AtomicBool,
}

impl Activity {
    /// Steps done, and whether one is under way.
    pub fn now(&self) -> (u64, bool) {
        (
            self.steps.load(Ordering::Relaxed),
            self.busy.load(Ordering::Relaxed),
        )
    }
}

/// The device thread has ended: it panicked, and the log says where.
#[derive(Debug, thiserror::Error)]
#[error("the device thread has ended; the log says why")]
pub struct DeviceGone;

/// Commands that may wait: a plan, and a join that overtakes it nowhere but in time.
const WAITING: usize = 2;

impl Device {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn spawn<B: Backend>(name: String, mut runner: Runner<B>) -> std::io::Result<Self> {
        let (commands, mut inbox) = mpsc::channel(WAITING);
        let activity = Arc::new(Activity::default());
        let seen = activity.clone();
        std::thread::Builder::new().name(name).spawn(move || {
            while let Some(command) = inbox.blocking_recv() {
                // Whoever asked may have gone; the work is done all the same.
                match command {
                    // The step in which the device failed has been answered and its epoch is over;
                    // this process cannot be part of another one.
                    Command::Join { epoch, .. } if runner.is_lost() => {
                        tracing::error!(
                            epoch,
                            "the device failed in an earlier step: ending, to be started anew"
                        );
                        std::process::exit(super::STALLED);
                    }
                    Command::Join {
                        epoch,
                        collective,
                        done,
                    } => {
                        runner.join(epoch, collective);
                        let _ = done.send(());
                    }
                    Command::Execute { plan, done } => {
                        seen.busy.store(true, Ordering::Relaxed);
                        let output = runner.execute(&plan);
                        seen.steps.fetch_add(1, Ordering::Relaxed);
                        seen.busy.store(false, Ordering::Relaxed);
                        let _ = done.send(output);
                    }
                }
            }
        })?;
        Ok(Self { commands, activity })
    }

    /// See [`Runner::join`].
    ///
    /// # Errors
    /// [`DeviceGone`].
    pub async fn join(
        &self,
        epoch: u64,
        collective: Option<Arc<dyn Collective>>,
    ) -> Result<(), DeviceGone> {
        let (done, answer) = oneshot::channel();
        self.commands
            .send(Command::Join {
                epoch,
                collective,
                done,
            })
            .await
            .map_err(|_| DeviceGone)?;
        answer.await.map_err(|_| DeviceGone)
    }

    /// See [`Runner::execute`].
    ///
    /// # Errors
    /// [`DeviceGone`].
    pub async fn execute(&self, plan: StepPlan) -> Result<StepOutput, DeviceGone> {
        let (done, answer) = oneshot::channel();
        self.commands
            .send(Command::Execute {
                plan: Box::new(plan),
                done,
            })
            .await
            .map_err(|_| DeviceGone)?;
        answer.await.map_err(|_| DeviceGone)
    }

    /// What the thread is doing.
    pub fn activity(&self) -> &Activity {
        &self.activity
    }
}
