//! A coordinator and its ranks in this process. The path is the one of a cluster; only the
//! transport of plans differs.

mod threads;

use std::time::Duration;

use anyhow::{Context, bail};
use palimpsest_coordinator::driver::Readiness;
use palimpsest_coordinator::{Config, Coordinator};
use palimpsest_engine::rank::Rank;
use palimpsest_kernels::Backend;
use palimpsest_store::Store;
use palimpsest_worker::device::{DeviceEnd, Fault};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use self::threads::Threads;
use crate::model::Ranks;

/// Time in which a device thread that has ended tells so.
const DEVICE_WORD: Duration = Duration::from_millis(100);
/// Time that requests of a group that failed wait for the next one.
const REGROUP_LIMIT: Duration = Duration::from_secs(120);
/// Waits before a group is formed of the same threads, the longer one where the last group failed
/// at once.
const PAUSES: [Duration; 2] = [Duration::from_millis(20), Duration::from_secs(1)];

/// A running group.
pub struct Group {
    /// Takes requests.
    pub coordinator: Coordinator,
    /// Its only task ends with the devices.
    keeper: JoinSet<DeviceEnd>,
}

impl Group {
    /// Starts the device threads of the opened ranks of a group, in rank order, and a coordinator
    /// over them. A group that fails in a step is formed anew of the same threads. Needs a tokio
    /// runtime. Snapshots outlive the process in `store`. A `fault` for tests is rank 0's.
    pub fn start(
        ranks: Ranks,
        config: Config,
        store: Option<&Store>,
        fault: Option<Fault>,
    ) -> anyhow::Result<Self> {
        match ranks {
            Ranks::Cpu(ranks) => Self::start_on(ranks, config, store, fault),
            Ranks::Cuda(ranks) => Self::start_on(ranks, config, store, fault),
        }
    }

    fn start_on<B: Backend>(
        ranks: Vec<Rank<B>>,
        config: Config,
        store: Option<&Store>,
        fault: Option<Fault>,
    ) -> anyhow::Result<Self> {
        let mut threads = Threads::start(ranks, store, fault)?;
        let config = Config {
            first_epoch: threads.epoch(),
            regroup_limit: REGROUP_LIMIT,
            ..config
        };
        let step_limit = config.step_limit;
        let executor = Box::new(threads.executor(step_limit));
        let coordinator = Coordinator::build(config, executor, threads.infos().to_vec())?;
        let mut keeper = JoinSet::new();
        keeper.spawn({
            let coordinator = coordinator.clone();
            async move {
                let end = keep(&coordinator, threads, step_limit).await;
                // No other group can come: what runs ends with this reason, and not with a
                // connection that breaks.
                let driver = &coordinator.service().driver;
                driver.lose_for_good(end.to_string()).await;
                end
            }
        });
        Ok(Self {
            coordinator,
            keeper,
        })
    }

    /// Waits until the group has passed its first step.
    ///
    /// # Errors
    /// If it failed it, with the reason where the device is why.
    pub async fn ready(&mut self) -> anyhow::Result<()> {
        let coordinator = self.coordinator.clone();
        if coordinator.ready().await {
            return Ok(());
        }
        let failed = "the first step failed; run with --log info for the reason";
        // A device that has ended says so at once.
        match tokio::time::timeout(DEVICE_WORD, self.lost()).await {
            Ok(end) => Err(end).context(failed),
            Err(_) => bail!(failed),
        }
    }

    /// Waits until the device of a rank can be used no more, and says why. Its group is lost then,
    /// and this process cannot form another.
    ///
    /// # Panics
    /// If the task that keeps the group panicked.
    pub async fn lost(&mut self) -> DeviceEnd {
        match self.keeper.join_next().await {
            Some(Ok(end)) => end,
            Some(Err(error)) => match error.try_into_panic() {
                // Nobody keeps the group any more: better to end than to serve until it fails.
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => std::future::pending().await,
            },
            // It was told already.
            None => std::future::pending().await,
        }
    }
}

/// Forms the group anew of the same threads whenever it is lost, until one of these can be used no
/// more.
async fn keep(coordinator: &Coordinator, mut threads: Threads, step_limit: Duration) -> DeviceEnd {
    let driver = &coordinator.service().driver;
    let mut readiness = driver.readiness();
    let mut formed = Instant::now();
    loop {
        tokio::select! {
            end = threads.ended() => return end,
            // Where the driver has ended nothing is lost any more.
            Ok(_) = readiness.wait_for(|readiness| *readiness == Readiness::Lost) => {}
        }
        tracing::warn!("the ranks of this process are to form their group anew");
        let lasted = formed.elapsed() > PAUSES[1];
        // A device that has ended says so just after the step that it failed.
        tokio::select! {
            end = threads.ended() => return end,
            () = sleep(PAUSES[usize::from(!lasted)]) => {}
        }
        if let Err(end) = threads.rejoin().await {
            return end;
        }
        formed = Instant::now();
        let (executor, epoch) = (Box::new(threads.executor(step_limit)), threads.epoch());
        // From its return on the driver's readiness is that of the new group.
        let infos = threads.infos().to_vec();
        match coordinator.replace(executor, infos, epoch).await {
            Ok(()) => tracing::warn!(epoch, "the group has formed anew"),
            Err(error) => tracing::error!(epoch, %error, "the new group cannot take over"),
        }
    }
}
