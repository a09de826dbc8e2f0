//! Replacing a group that was lost, for as long as the service runs.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{FormError, Formed, Members, Watchers, form};
use crate::{Coordinator, config::Config, engine::Readiness};

/// Waits between attempts to form a group.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(50), Duration::from_millis(200), Duration::from_millis(500), Duration::from_secs(1)];

/// Watches over the group that `coordinator` was given and replaces it whenever it is lost, until the engine ends.
pub async fn keep(coordinator: Coordinator, members: Arc<dyn Members>, config: Config, watchers: Watchers) {
    let mut ended = coordinator.service().engine.readiness();
    tokio::select! {
        () = replace_lost(&coordinator, &*members, &config, watchers) => {}
        _ = ended.wait_for(|readiness| *readiness == Readiness::Ended) => {}
    }
}

async fn replace_lost(coordinator: &Coordinator, members: &dyn Members, config: &Config, mut watchers: Watchers) {
    let mut readiness = coordinator.service().engine.readiness();
    loop {
        let why = lost(&mut watchers, &mut readiness).await;
        let since = Instant::now();
        tracing::warn!(%why, "the worker group is lost; forming another");
        let Formed { epoch, executor, ranks, watchers: next } = form_again(members, config).await;
        // From its return on the engine's readiness is that of the new group. To wait until it says something else than "lost" would
        // be to wait for ever for a group that was lost again before anyone looked.
        if let Err(error) = coordinator.replace(Box::new(executor), ranks, epoch.0).await {
            tracing::error!(%epoch, %error, "the new group cannot take over");
            sleep(PAUSES[PAUSES.len() - 1]).await;
            continue;
        }
        watchers = next;
        tracing::warn!(%epoch, seconds = since.elapsed().as_secs_f64(), "another worker group has taken over");
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

/// Forms a group, however often it takes. The reason of a failure is logged when it changes.
async fn form_again(members: &dyn Members, config: &Config) -> Formed {
    let mut last = String::new();
    for attempt in 0.. {
        match form(members, config).await {
            Ok(formed) => return formed,
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
