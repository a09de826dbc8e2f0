//! Replacing a group that was lost, for as long as the service runs.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::{FormError, Formed, Lead, Members, Watchers, form};
use crate::Coordinator;
use crate::config::Config;
use crate::driver::Readiness;

/// Waits between attempts to form a group.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
];

/// A group to watch over.
pub struct Kept {
    /// Who is in it.
    pub members: Arc<dyn Members>,
    /// The lead under which it formed.
    pub lead: Lead,
    /// Listens to its ranks.
    pub watchers: Watchers,
}

/// Watches over the group that `coordinator` was given and replaces it whenever it is lost, until
/// the driver ends.
///
/// # Errors
/// [`FormError::Superseded`] when another coordinator leads the ranks. This one has no group then
/// and will get none.
pub async fn keep(coordinator: Coordinator, config: Config, group: Kept) -> Result<(), FormError> {
    let mut ended = coordinator.service().driver.readiness();
    tokio::select! {
        superseded = replace_lost(&coordinator, &config, group) => Err(superseded),
        _ = ended.wait_for(|readiness| *readiness == Readiness::Ended) => Ok(()),
    }
}

async fn replace_lost(coordinator: &Coordinator, config: &Config, group: Kept) -> FormError {
    let Kept {
        members,
        mut lead,
        mut watchers,
    } = group;
    let driver = &coordinator.service().driver;
    let mut readiness = driver.readiness();
    loop {
        let why = lost(&mut watchers, &mut readiness).await;
        let since = Instant::now();
        tracing::warn!(%why, "the worker group is lost; forming another");
        // A group at rest does not find out by itself, and would be called ready until the next one
        // comes.
        driver.lose(why).await;
        let Formed {
            epoch,
            executor,
            ranks,
            watchers: next,
        } = match form_again(&*members, config, &mut lead).await {
            Ok(formed) => formed,
            Err(superseded) => return superseded,
        };
        // From its return on the driver's readiness is that of the new group. To wait until it says
        // something else than "lost" would be to wait for ever for a group that was lost again
        // before anyone looked.
        if let Err(error) = coordinator
            .replace(Box::new(executor), ranks, epoch.0)
            .await
        {
            tracing::error!(%epoch, %error, "the new group cannot take over");
            sleep(PAUSES[PAUSES.len() - 1]).await;
            continue;
        }
        watchers = next;
        let seconds = since.elapsed().as_secs_f64();
        tracing::warn!(%epoch, seconds, "another worker group has taken over");
    }
}

/// Waits until the group is lost, and says why.
async fn lost(watchers: &mut Watchers, readiness: &mut watch::Receiver<Readiness>) -> String {
    tokio::select! {
        found = watchers.failure.wait_for(Option::is_some) => {
            let found = found.ok().and_then(|found| found.clone());
            found.map_or_else(|| "nobody watches it".into(), |error| error.to_string())
        }
        _ = readiness.wait_for(|readiness| *readiness == Readiness::Lost) => "a step failed".into(),
    }
}

/// Forms a group, however often it takes, unless the ranks follow another coordinator. The reason
/// of a failure is logged when it changes.
async fn form_again(
    members: &dyn Members,
    config: &Config,
    lead: &mut Lead,
) -> Result<Formed, FormError> {
    let mut last = String::new();
    for attempt in 0.. {
        match form(members, config, lead).await {
            Ok(formed) => return Ok(formed),
            Err(superseded @ FormError::Superseded { .. }) => return Err(superseded),
            Err(error) => report(&error, &mut last),
        }
        sleep(PAUSES[attempt.min(PAUSES.len() - 1)]).await;
    }
    unreachable!("the loop goes on until a group is formed")
}

fn report(error: &FormError, last: &mut String) {
    let message = error.to_string();
    if message != *last {
        tracing::warn!("{message}");
        *last = message;
    }
}
