//! Following the ranks of a group in etcd.

use etcd_client::{EventType, GetOptions, WatchOptions};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{self};
use tokio::time::{sleep, timeout};

use super::{EtcdRegistry, parse, within};
use crate::{RankEvent, RankRecord, RegistryError};

impl EtcdRegistry {
    /// The ranks below `prefix`, and the revision at which they were so.
    pub(super) async fn listed(
        &self,
        prefix: &str,
    ) -> Result<(Vec<RankRecord>, i64), RegistryError> {
        let mut client = self.client.kv_client();
        let answer = within(
            &self.options,
            client.get(prefix, Some(GetOptions::new().with_prefix())),
        )
        .await?;
        let ranks = answer
            .kvs()
            .iter()
            .map(|kv| parse(kv.key(), kv.value()))
            .collect::<Result<_, _>>()?;
        Ok((
            ranks,
            answer
                .header()
                .map_or(0, etcd_client::ResponseHeader::revision),
        ))
    }

    /// Tells `events` of the ranks below `prefix` until nobody listens. Whatever breaks, it begins
    /// anew with what is there.
    pub(super) async fn follow(&self, prefix: &str, events: &mpsc::Sender<RankEvent>) {
        while !events.is_closed() {
            if let Err(error) = self.follow_on(prefix, events).await {
                tracing::debug!(%prefix, %error, "cannot follow the ranks; trying again");
                sleep(self.options.lease / 10).await;
            }
        }
    }

    async fn follow_on(
        &self,
        prefix: &str,
        events: &mpsc::Sender<RankEvent>,
    ) -> Result<(), RegistryError> {
        // Room first, so that what is told is what is there now.
        let Ok(room) = events.reserve().await else {
            return Ok(());
        };
        let (ranks, revision) = self.listed(prefix).await?;
        room.send(RankEvent::All(ranks));
        self.follow_from(prefix, revision + 1, events).await
    }

    /// Tells of what happened since `revision`. Returns when all must be told anew: the reader is
    /// behind, or etcd has forgotten what happened since.
    pub(super) async fn follow_from(
        &self,
        prefix: &str,
        revision: i64,
        events: &mpsc::Sender<RankEvent>,
    ) -> Result<(), RegistryError> {
        let options = WatchOptions::new()
            .with_prefix()
            .with_start_revision(revision);
        let mut client = self.client.watch_client();
        let mut stream = within(&self.options, client.watch(prefix, Some(options))).await?;
        loop {
            let quiet = self.options.lease;
            let answer = tokio::select! {
                answer = timeout(quiet, stream.message()) => answer,
                () = events.closed() => return Ok(()),
            };
            let answer = match answer {
                Ok(answer) => within(&self.options, std::future::ready(answer)).await?,
                Err(_) => {
                    // Nothing happens, or the connection is dead: an answer of any kind tells.
                    within(&self.options, stream.request_progress()).await?;
                    within(&self.options, stream.message()).await?
                }
            };
            let Some(answer) = answer else { return Ok(()) };
            if answer.compact_revision() > 0 {
                return Ok(());
            }
            if answer.canceled() {
                return Err(RegistryError::Denied(answer.cancel_reason().to_owned()));
            }
            for event in answer.events() {
                let Some(kv) = event.kv() else { continue };
                let told = match event.event_type() {
                    EventType::Put => RankEvent::Claimed(parse(kv.key(), kv.value())?),
                    EventType::Delete => match rank_of(kv.key(), prefix) {
                        Some(rank) => RankEvent::Freed(rank),
                        None => continue,
                    },
                };
                if let Err(TrySendError::Full(_) | TrySendError::Closed(_)) = events.try_send(told)
                {
                    return Ok(());
                }
            }
        }
    }
}

/// The rank that a key below `prefix` stands for.
fn rank_of(key: &[u8], prefix: &str) -> Option<u32> {
    std::str::from_utf8(key.strip_prefix(prefix.as_bytes())?)
        .ok()?
        .parse()
        .ok()
}
