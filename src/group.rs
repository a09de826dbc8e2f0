//! A coordinator and its ranks in this process. The path is the one of a cluster; only the
//! transport of plans differs.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use palimpsest_collective::local::LocalGroup;
use palimpsest_coordinator::executor::{ChannelExecutor, RankChannel};
use palimpsest_coordinator::{Config, Coordinator};
use palimpsest_engine::rank::Rank;
use palimpsest_kernels::Backend;
use palimpsest_proto::internal::v1::{StepOutput, StepPlan};
use palimpsest_worker::device::{Device, DeviceEnd, DeviceGone, Fault};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::model::Ranks;

/// Plans that may wait for the device thread. The engine sends the next one when it has the last
/// one's output.
const PLANS_IN_FLIGHT: usize = 1;

/// Number of the only epoch of ranks that are threads: they fail together or not at all.
const EPOCH: u64 = 1;

/// Time in which a device thread that has ended tells so.
const DEVICE_WORD: Duration = Duration::from_millis(100);

/// A running group.
pub struct Group {
    /// Takes requests.
    pub coordinator: Coordinator,
    ranks: JoinSet<Option<DeviceEnd>>,
}

impl Group {
    /// Starts the device threads of the opened ranks of a group, in rank order, and a coordinator
    /// over them. Needs a tokio runtime. A `fault` for tests is rank 0's.
    pub fn start(ranks: Ranks, config: Config, fault: Option<Fault>) -> anyhow::Result<Self> {
        match ranks {
            Ranks::Cpu(ranks) => Self::start_on(ranks, config, fault),
            Ranks::Cuda(ranks) => Self::start_on(ranks, config, fault),
        }
    }

    fn start_on<B: Backend>(
        ranks: Vec<Rank<B>>,
        config: Config,
        mut fault: Option<Fault>,
    ) -> anyhow::Result<Self> {
        let mut channels = Vec::with_capacity(ranks.len());
        let mut infos = Vec::with_capacity(ranks.len());
        let mut carriers = JoinSet::new();
        let is_group = ranks.len() > 1;
        let collectives = LocalGroup::new(ranks.len());
        for ((index, rank), collective) in ranks.into_iter().enumerate().zip(collectives) {
            let Rank { info, mut runner } = rank;
            if is_group {
                runner.join(EPOCH, Some(Arc::new(collective)));
            }
            let device = Device::spawn(format!("rank-{index}"), runner, fault.take())?;
            let (plans, inbox) = mpsc::channel(PLANS_IN_FLIGHT);
            carriers.spawn(carry(device, inbox));
            channels.push(RankChannel { plans });
            infos.push(info);
        }
        let config = Config {
            first_epoch: EPOCH,
            ..config
        };
        let executor = ChannelExecutor::new(channels, config.step_limit);
        Ok(Self {
            coordinator: Coordinator::build(config, Box::new(executor), infos)?,
            ranks: carriers,
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
    pub async fn lost(&mut self) -> DeviceEnd {
        while let Some(ended) = self.ranks.join_next().await {
            if let Ok(Some(end)) = ended {
                return end;
            }
        }
        // The coordinator has gone, and nobody needs the devices.
        std::future::pending().await
    }
}

/// Carries plans to a device thread until that ends, or until no more plans can come (`None`).
async fn carry(
    device: Device,
    mut plans: mpsc::Receiver<(StepPlan, oneshot::Sender<StepOutput>)>,
) -> Option<DeviceEnd> {
    loop {
        let (plan, reply) = tokio::select! {
            end = device.ended() => return Some(end),
            next = plans.recv() => next?,
        };
        match device.execute(plan).await {
            // A coordinator that stopped waiting has ended the epoch already.
            Ok(output) => drop(reply.send(output)),
            Err(DeviceGone) => return Some(device.ended().await),
        }
    }
}
