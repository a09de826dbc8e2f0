//! Ranks that are threads of this process, and the epochs of their group.

use std::sync::Arc;
use std::time::Duration;

use palimpsest_collective::Collective;
use palimpsest_collective::local::LocalGroup;
use palimpsest_coordinator::executor::{ChannelExecutor, RankChannel};
use palimpsest_engine::rank::Rank;
use palimpsest_kernels::Backend;
use palimpsest_proto::internal::v1::{RankInfo, StepOutput, StepPlan};
use palimpsest_store::Store;
use palimpsest_worker::device::{Device, DeviceEnd, DeviceGone, Fault};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::shelf;

/// Plans that may wait for the device thread. The engine sends the next one when it has the last
/// one's output.
const PLANS_IN_FLIGHT: usize = 1;
/// Time that all device threads have to come out of a step that is abandoned.
const RETURN_LIMIT: Duration = Duration::from_secs(5);
/// The first epoch.
const FIRST: u64 = 1;

/// The device threads of a group, in rank order.
pub struct Threads {
    devices: Vec<Device>,
    infos: Vec<RankInfo>,
    collectives: Vec<Option<Arc<dyn Collective>>>,
    epoch: u64,
    /// Carry plans to the devices.
    carriers: JoinSet<()>,
    /// Each waits for the end of a device.
    ends: JoinSet<DeviceEnd>,
}

impl Threads {
    /// Starts the threads of opened ranks, in rank order, which have met then. Needs a tokio
    /// runtime. Their snapshots outlive the process in `store`. A `fault` for tests is rank 0's.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start<B: Backend>(
        ranks: Vec<Rank<B>>,
        store: Option<&Store>,
        mut fault: Option<Fault>,
    ) -> std::io::Result<Self> {
        let collectives = communicators(ranks.len());
        let mut threads = Self {
            devices: Vec::with_capacity(ranks.len()),
            infos: Vec::with_capacity(ranks.len()),
            collectives,
            epoch: FIRST,
            carriers: JoinSet::new(),
            ends: JoinSet::new(),
        };
        for (index, mut rank) in ranks.into_iter().enumerate() {
            let shelf = shelf::open(&mut rank, store)?;
            let Rank { info, mut runner } = rank;
            // Also where a rank is alone: from here on it refuses plans of other epochs.
            runner.join(FIRST, threads.collectives[index].clone());
            let name = format!("rank-{index}");
            let device = Device::spawn(name, runner, shelf, fault.take())?;
            threads.ends.spawn({
                let device = device.clone();
                async move { device.ended().await }
            });
            threads.devices.push(device);
            threads.infos.push(info);
        }
        Ok(threads)
    }

    /// The epoch that the ranks are in.
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// What the ranks report, in rank order.
    pub fn infos(&self) -> &[RankInfo] {
        &self.infos
    }

    /// Carries out plans of the present epoch on the ranks. One made before is of no more use.
    pub fn executor(&mut self, step_limit: Duration) -> ChannelExecutor {
        self.carriers = JoinSet::new();
        let mut channels = Vec::with_capacity(self.devices.len());
        for device in &self.devices {
            let (plans, inbox) = mpsc::channel(PLANS_IN_FLIGHT);
            self.carriers.spawn(carry(device.clone(), inbox));
            channels.push(RankChannel { plans });
        }
        ChannelExecutor::new(channels, step_limit)
    }

    /// Ends what the ranks do, and has them meet in the next epoch.
    ///
    /// # Errors
    /// [`DeviceEnd::Stalled`] if a thread does not come back within [`RETURN_LIMIT`], or what else
    /// has ended it.
    pub async fn rejoin(&mut self) -> Result<(), DeviceEnd> {
        let deadline = Instant::now() + RETURN_LIMIT;
        for (device, collective) in self.devices.iter().zip(&self.collectives) {
            device.cancel();
            if let Some(collective) = collective {
                collective.abort();
            }
        }
        // Nothing else counts here: 2^64 groups do not fail.
        self.epoch = self.epoch.saturating_add(1);
        self.collectives = communicators(self.devices.len());
        for (device, collective) in self.devices.iter().zip(&self.collectives) {
            match timeout_at(deadline, device.join(self.epoch, collective.clone())).await {
                Ok(Ok(())) => {}
                Ok(Err(DeviceGone)) => return Err(device.ended().await),
                Err(_) => return Err(DeviceEnd::Stalled),
            }
        }
        Ok(())
    }

    /// Waits until the device of a rank can be used no more, and says why.
    pub async fn ended(&mut self) -> DeviceEnd {
        while let Some(ended) = self.ends.join_next().await {
            if let Ok(end) = ended {
                return end;
            }
        }
        std::future::pending().await
    }
}

/// What the ranks of one epoch exchange tensors over; nothing where one is alone.
fn communicators(ranks: usize) -> Vec<Option<Arc<dyn Collective>>> {
    if ranks == 1 {
        return vec![None];
    }
    let ends = LocalGroup::new(ranks).into_iter();
    ends.map(|end| Some(Arc::new(end) as Arc<dyn Collective>))
        .collect()
}

/// Carries plans to a device thread until that ends, or until no more plans can come.
async fn carry(device: Device, mut plans: mpsc::Receiver<(StepPlan, oneshot::Sender<StepOutput>)>) {
    while let Some((plan, reply)) = plans.recv().await {
        match device.execute(plan).await {
            // A coordinator that stopped waiting has ended the epoch already.
            Ok(output) => drop(reply.send(output)),
            Err(DeviceGone) => return,
        }
    }
}
