//! The thread that owns a device: one command at a time, in order. It is the same one in a rank
//! that is a process and in ranks that are threads of one process.

mod fault;
mod mailbox;
#[cfg(test)]
mod schedules;
mod sync;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use palimpsest_collective::Collective;
use palimpsest_engine::cancel::Cancel;
use palimpsest_engine::runner::Runner;
use palimpsest_kernels::Backend;
use palimpsest_proto::internal::v1::{StepOutput, StepPlan};

pub use self::fault::{Fault, FaultKind};
pub use self::mailbox::DeviceGone;
use self::mailbox::{Mailbox, mailbox};
use self::sync::oneshot;
use crate::shelf::Shelf;

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
    mailbox: Mailbox<Command, DeviceEnd>,
    activity: Arc<Activity>,
    cancel: Cancel,
}

/// What a device thread is doing, for those who watch it.
#[derive(Debug, Default)]
pub struct Activity {
    steps: AtomicU64,
    busy: AtomicBool,
}

/// One look at an [`Activity`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// Steps done.
    pub steps: u64,
    /// Whether one is under way.
    pub busy: bool,
}

impl Activity {
    /// What the thread is doing now.
    pub fn now(&self) -> Seen {
        Seen {
            steps: self.steps.load(Ordering::Relaxed),
            busy: self.busy.load(Ordering::Relaxed),
        }
    }
}

/// Why a device cannot be used again by this process. Its supervisor starts another one: the
/// process ends with [`EXIT_CODE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DeviceEnd {
    /// What was on the device is gone, the weights too.
    #[error("the device failed in a step, which the log names")]
    Failed,
    /// A bug: the panic's message is on standard error.
    #[error("the device thread panicked; standard error says where")]
    Panicked,
    /// The thread waits in a step for something that never comes.
    #[error("the device thread does not come out of an aborted step")]
    Stalled,
}

/// Exit code that tells a supervisor that the process gave itself up and should be started anew
/// (EX_TEMPFAIL of sysexits.h).
pub const EXIT_CODE: u8 = 75;

impl Device {
    /// Starts the thread, with a fault where a test asks for one. `shelf` has the snapshots of
    /// `runner`.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn spawn<B: Backend>(
        name: String,
        runner: Runner<B>,
        shelf: Shelf,
        fault: Option<Fault>,
    ) -> std::io::Result<Self> {
        let (mailbox, inbox) = mailbox();
        let activity = Arc::new(Activity::default());
        let cancel = runner.cancel();
        let mut thread = Thread {
            runner,
            shelf,
            activity: activity.clone(),
            cancel: cancel.clone(),
            fault,
        };
        std::thread::Builder::new().name(name).spawn(move || {
            inbox.serve(DeviceEnd::Panicked, move |command| {
                thread.carry_out(command)
            });
        })?;
        Ok(Self {
            mailbox,
            activity,
            cancel,
        })
    }

    /// Abandons the step under way, and every later one until [`Self::join`]. Returns at once; the
    /// thread comes back within the time of one layer. A thread that waits for other ranks does
    /// not: abort its communicator as well.
    pub fn cancel(&self) {
        self.cancel.cancel();
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
        let join = |done| Command::Join {
            epoch,
            collective,
            done,
        };
        self.mailbox.ask(join).await
    }

    /// See [`Runner::execute`].
    ///
    /// # Errors
    /// [`DeviceGone`].
    pub async fn execute(&self, plan: StepPlan) -> Result<StepOutput, DeviceGone> {
        let plan = Box::new(plan);
        self.mailbox
            .ask(|done| Command::Execute { plan, done })
            .await
    }

    /// What the thread is doing.
    pub fn activity(&self) -> &Activity {
        &self.activity
    }

    /// Waits until the device can be used no more, and says why. The last step has been answered
    /// by then, unless the thread panicked in it.
    pub async fn ended(&self) -> DeviceEnd {
        self.mailbox.ended().await
    }
}

/// What the thread owns.
struct Thread<B: Backend> {
    runner: Runner<B>,
    shelf: Shelf,
    activity: Arc<Activity>,
    cancel: Cancel,
    fault: Option<Fault>,
}

impl<B: Backend> Thread<B> {
    /// Carries a command out and says whether the device can be used no more after it.
    fn carry_out(&mut self, command: Command) -> Option<DeviceEnd> {
        // Whoever asked may have gone; the work is done all the same.
        match command {
            Command::Join {
                epoch,
                collective,
                done,
            } => {
                self.runner.join(epoch, collective);
                let _ = done.send(());
                None
            }
            Command::Execute { plan, done } => {
                let (output, lost) = self.execute(&plan);
                let _ = done.send(output);
                lost.then(|| {
                    let (epoch, step) = (plan.epoch, plan.step);
                    tracing::error!(epoch, step, "the device failed in this step");
                    DeviceEnd::Failed
                })
            }
        }
    }

    /// The step's output, and whether the device is lost.
    fn execute(&mut self, plan: &StepPlan) -> (StepOutput, bool) {
        let fault = self.fault_now();
        self.activity.busy.store(true, Ordering::Relaxed);
        let output = match fault {
            Some(FaultKind::Panic) => panic!("the device thread panics, as was asked"),
            Some(FaultKind::Loss) => StepOutput {
                epoch: plan.epoch,
                step: plan.step,
                error: "the device fails, as was asked".into(),
                ..StepOutput::default()
            },
            Some(FaultKind::Stall) => {
                self.stall();
                self.step(plan)
            }
            Some(FaultKind::Hang) => loop {
                std::thread::park();
            },
            None => self.step(plan),
        };
        self.activity.steps.fetch_add(1, Ordering::Relaxed);
        self.activity.busy.store(false, Ordering::Relaxed);

        let is_lost = fault == Some(FaultKind::Loss) || self.runner.is_lost();
        (output, is_lost)
    }

    /// The step itself, with what the plan says of snapshots.
    fn step(&mut self, plan: &StepPlan) -> StepOutput {
        if !self.runner.is_in(plan.epoch) {
            // Nobody reads what it is told: the reports are for the present epoch.
            return self.runner.execute(plan);
        }
        if let Some(orders) = &plan.snapshots {
            self.shelf.obey(orders);
        }
        let mut output = self.runner.execute(plan);
        if plan.sequences.is_empty() {
            self.shelf.wait();
        }
        output.snapshots = self.shelf.reports();
        output
    }

    /// Takes as long as a step on a machine that is far too slow.
    fn stall(&self) {
        while !self.cancel.is_cancelled() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The fault that a test asked for in this step.
    fn fault_now(&self) -> Option<FaultKind> {
        let step = self.activity.steps.load(Ordering::Relaxed) + 1;
        self.fault
            .filter(|fault| fault.step == step)
            .map(|fault| fault.kind)
    }
}
