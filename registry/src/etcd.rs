//! A registry in etcd.

mod follow;

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, PutOptions, Txn, TxnOp, TxnOpResponse,
};
use palimpsest_tls::{ClientTls, Connector, explain};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Endpoint;

use crate::{
    ANSWER_LIMIT, Claim, GroupRecord, LEASE, RankRecord, RankWatch, Registry, RegistryError,
    check_group,
};

/// A user of etcd.
#[derive(Clone, PartialEq, Eq)]
pub struct EtcdUser {
    /// Name.
    pub name: String,
    /// Password.
    pub password: String,
}

impl std::fmt::Debug for EtcdUser {
    /// Without the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdUser")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// How etcd is reached.
#[derive(Debug, Clone)]
pub struct EtcdOptions {
    /// `http://host:2379`, several for a cluster; `https://` for all of them with TLS.
    pub endpoints: Vec<String>,
    /// Who this is, where etcd asks.
    pub user: Option<EtcdUser>,
    /// Whom to trust and what to show, for endpoints of `https://`.
    pub tls: Option<ClientTls>,
    /// Prefix of all keys.
    pub root: String,
    /// Time after which the rank of a process that died without a word is free again; whole
    /// seconds, at least one.
    pub lease: Duration,
}

impl Default for EtcdOptions {
    fn default() -> Self {
        Self {
            endpoints: vec!["http://127.0.0.1:2379".into()],
            user: None,
            tls: None,
            root: "/palimpsest/v1".into(),
            lease: LEASE,
        }
    }
}

/// A registry in etcd. Clones share the connection, which is made anew when it breaks.
#[derive(Clone)]
pub struct EtcdRegistry {
    options: EtcdOptions,
    client: Client,
}

impl std::fmt::Debug for EtcdRegistry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdRegistry")
            .field("endpoints", &self.options.endpoints)
            .finish_non_exhaustive()
    }
}

impl EtcdRegistry {
    /// Connects and asks once, so that a wrong address or password is found at once.
    ///
    /// # Errors
    /// [`RegistryError::Unreachable`], [`RegistryError::Denied`].
    pub async fn connect(options: EtcdOptions) -> Result<Self, RegistryError> {
        let mut connect = ConnectOptions::new()
            .with_connect_timeout(ANSWER_LIMIT)
            .with_timeout(ANSWER_LIMIT);
        if let Some(EtcdUser { name, password }) = &options.user {
            // etcd forgets a token that was not used for some minutes, and all of them when it is
            // started anew.
            connect = connect
                .with_user(name, password)
                .with_auto_token_refresh(true);
        }
        let client = match &options.tls {
            None => within(&options, Client::connect(&options.endpoints, Some(connect))).await?,
            Some(tls) => {
                let channel = encrypted(&options.endpoints, tls)?;
                within(&options, Client::from_channel(channel, Some(connect))).await?
            }
        };
        let registry = Self { options, client };
        registry.holder(&registry.key("probe", 0)).await?;
        Ok(registry)
    }

    fn prefix(&self, group: &str) -> String {
        format!("{}/groups/{group}/ranks/", self.options.root)
    }

    fn key(&self, group: &str, rank: u32) -> String {
        // Padded, so that etcd's order is that of the ranks.
        format!("{}{rank:05}", self.prefix(group))
    }

    fn epoch_key(&self, group: &str) -> String {
        format!("{}/groups/{group}/epoch", self.options.root)
    }

    /// What was announced of a group, and the revision of its key: 0 where nothing was.
    async fn announced(&self, key: &str) -> Result<(Option<GroupRecord>, i64), RegistryError> {
        let mut client = self.client.kv_client();
        let answer = within(&self.options, client.get(key, None)).await?;
        let Some(kv) = answer.kvs().first() else {
            return Ok((None, 0));
        };
        Ok((Some(parse(kv.key(), kv.value())?), kv.mod_revision()))
    }

    /// Who has a rank.
    async fn holder(&self, key: &str) -> Result<Option<RankRecord>, RegistryError> {
        let mut client = self.client.kv_client();
        let answer = within(&self.options, client.get(key, None)).await?;
        answer
            .kvs()
            .first()
            .map(|kv| parse(kv.key(), kv.value()))
            .transpose()
    }

    /// Takes a rank under a new lease, if nobody else has it. Returns the lease, or who has the
    /// rank.
    async fn take(
        &self,
        key: &str,
        record: &RankRecord,
    ) -> Result<Result<i64, RankRecord>, RegistryError> {
        let mut client = self.client.clone();
        let lease = within(
            &self.options,
            client.lease_grant(self.options.lease.as_secs().max(1) as i64, None),
        )
        .await?
        .id();
        let value = serde_json::to_vec(record).unwrap_or_default();
        let put = TxnOp::put(
            key,
            value.clone(),
            Some(PutOptions::new().with_lease(lease)),
        );
        let get = TxnOp::get(key, None);
        let free = Compare::create_revision(key, CompareOp::Equal, 0);
        let taken = within(
            &self.options,
            client.txn(
                Txn::new()
                    .when([free])
                    .and_then([put.clone()])
                    .or_else([get]),
            ),
        )
        .await?;
        if taken.succeeded() {
            return Ok(Ok(lease));
        }
        // Our own record under a lease that we lost track of while etcd was away: it goes under the
        // new one.
        let own = Compare::value(key, CompareOp::Equal, value);
        let moved = within(
            &self.options,
            client.txn(Txn::new().when([own]).and_then([put])),
        )
        .await?;
        if moved.succeeded() {
            return Ok(Ok(lease));
        }
        self.revoke(lease).await;
        let found = taken
            .op_responses()
            .into_iter()
            .find_map(|response| match response {
                TxnOpResponse::Get(found) => {
                    found.kvs().first().map(|kv| parse(kv.key(), kv.value()))
                }
                _ => None,
            });
        match found {
            Some(holder) => Ok(Err(holder?)),
            // Freed between the two: the caller tries again.
            None => Ok(Err(record.clone())),
        }
    }

    /// Gives a lease back. One that cannot be reached runs out by itself.
    async fn revoke(&self, lease: i64) {
        let mut client = self.client.lease_client();
        let _ = timeout(ANSWER_LIMIT, client.revoke(lease)).await;
    }

    /// Keeps the lease alive until it cannot be kept.
    async fn keep_alive(&self, lease: i64) -> Result<(), RegistryError> {
        let mut client = self.client.lease_client();
        let (mut keeper, mut answers) = within(&self.options, client.keep_alive(lease)).await?;
        loop {
            within(&self.options, keeper.keep_alive()).await?;
            let answer = within(&self.options, answers.message()).await?;
            if answer.is_none_or(|answer| answer.ttl() <= 0) {
                return Ok(());
            }
            sleep(self.options.lease / 4).await;
        }
    }

    /// Holds a claim, and takes it again whenever it was lost, until another process has it: that
    /// one is returned.
    async fn hold(&self, key: &str, record: &RankRecord, held: &AtomicI64) -> RankRecord {
        loop {
            if let Err(error) = self.keep_alive(held.load(Ordering::SeqCst)).await {
                tracing::warn!(%key, %error, "the registry is away; this rank serves on");
            }
            loop {
                match self.take(key, record).await {
                    Ok(Ok(lease)) => {
                        tracing::info!(%key, "claimed again");
                        held.store(lease, Ordering::SeqCst);
                        break;
                    }
                    // Freed while we asked: once more.
                    Ok(Err(holder)) if holder.session == record.session => {}
                    Ok(Err(holder)) => return holder,
                    Err(error) => tracing::debug!(%key, %error, "still away"),
                }
                sleep(self.options.lease / 10).await;
            }
        }
    }
}

#[async_trait]
impl Registry for EtcdRegistry {
    async fn claim(
        &self,
        group: &str,
        record: RankRecord,
        limit: Duration,
    ) -> Result<Claim, RegistryError> {
        check_group(group)?;
        let key = self.key(group, record.rank);
        let deadline = Instant::now() + limit;
        let lease = loop {
            match self.take(&key, &record).await? {
                Ok(lease) => break lease,
                Err(holder) if Instant::now() >= deadline => {
                    let (group, rank) = (group.to_owned(), record.rank);
                    return Err(RegistryError::RankTaken {
                        group,
                        rank,
                        address: holder.address,
                    });
                }
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        };
        let (end, ended) = oneshot::channel::<()>();
        let (lost, loss) = watch::channel(None);
        let (registry, group) = (self.clone(), group.to_owned());
        let keeper = tokio::spawn(async move {
            let held = AtomicI64::new(lease);
            let taken = async {
                let RankRecord { rank, address, .. } = registry.hold(&key, &record, &held).await;
                lost.send_replace(Some(RegistryError::RankTaken {
                    group,
                    rank,
                    address,
                }));
            };
            tokio::select! {
                () = taken => return,
                // Either way the claim is over.
                _ = ended => {}
            }
            registry.revoke(held.load(Ordering::SeqCst)).await;
        });
        Ok(Claim::new(keeper, end, loss))
    }

    async fn ranks(&self, group: &str) -> Result<Vec<RankRecord>, RegistryError> {
        check_group(group)?;
        Ok(self.listed(&self.prefix(group)).await?.0)
    }

    async fn watch(&self, group: &str) -> Result<RankWatch, RegistryError> {
        check_group(group)?;
        let (events, watch) = RankWatch::new();
        let (registry, prefix) = (self.clone(), self.prefix(group));
        tokio::spawn(async move { registry.follow(&prefix, &events).await });
        Ok(watch)
    }

    async fn announce(&self, group: &str, record: GroupRecord) -> Result<(), RegistryError> {
        check_group(group)?;
        let (key, value) = (
            self.epoch_key(group),
            serde_json::to_vec(&record).unwrap_or_default(),
        );
        loop {
            let (found, revision) = self.announced(&key).await?;
            match found {
                // It arrived after all when we took etcd to be away.
                Some(found) if found == record => return Ok(()),
                Some(GroupRecord { epoch: found, .. }) if found >= record.epoch => {
                    return Err(RegistryError::StaleEpoch {
                        group: group.to_owned(),
                        epoch: record.epoch,
                        found,
                    });
                }
                _ => {}
            }
            let unchanged = Compare::mod_revision(key.as_str(), CompareOp::Equal, revision);
            let put = TxnOp::put(key.as_str(), value.clone(), None);
            let mut client = self.client.kv_client();
            if within(
                &self.options,
                client.txn(Txn::new().when([unchanged]).and_then([put])),
            )
            .await?
            .succeeded()
            {
                return Ok(());
            }
        }
    }

    async fn group(&self, group: &str) -> Result<Option<GroupRecord>, RegistryError> {
        check_group(group)?;
        Ok(self.announced(&self.epoch_key(group)).await?.0)
    }
}

/// A connection to the first endpoint that answers, made anew to another one when it breaks. etcd's
/// client has no TLS whose certificates can change.
fn encrypted(endpoints: &[String], tls: &ClientTls) -> Result<etcd_client::Channel, RegistryError> {
    let mut addresses = Vec::new();
    for endpoint in endpoints {
        let bad = || RegistryError::Unreachable {
            endpoints: endpoint.clone(),
            why: "it is no https:// address".into(),
        };
        let uri: tonic::transport::Uri = endpoint.parse().map_err(|_| bad())?;
        let host = uri
            .host()
            .filter(|_| uri.scheme_str() == Some("https"))
            .ok_or_else(bad)?;
        addresses.push((
            host.trim_matches(['[', ']']).to_owned(),
            uri.port_u16().unwrap_or(443),
        ));
    }
    let channel = Endpoint::from_static("http://etcd")
        .connect_timeout(ANSWER_LIMIT)
        // An endpoint that hangs is left for another one.
        .http2_keep_alive_interval(ANSWER_LIMIT)
        .keep_alive_timeout(ANSWER_LIMIT)
        .keep_alive_while_idle(true)
        .connect_with_connector_lazy(Connector::to_any_of(addresses, Some(tls.clone())));
    Ok(etcd_client::Channel::Tonic(channel))
}

/// What etcd's refusals have in common.
const DENIALS: [&str; 5] = [
    "authentication",
    "user name",
    "permission denied",
    "auth token",
    "auth not enabled",
];

fn parse<T: serde::de::DeserializeOwned>(key: &[u8], value: &[u8]) -> Result<T, RegistryError> {
    serde_json::from_slice(value).map_err(|error| RegistryError::Corrupt {
        key: String::from_utf8_lossy(key).into_owned(),
        why: error.to_string(),
    })
}

/// The innermost cause, which says more than the transport's own words.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    if let Some(why) = explain(error) {
        return why;
    }
    if let Some(etcd_client::Error::GRpcStatus(status)) = error.downcast_ref() {
        return explain(status).unwrap_or_else(|| status.message().to_owned());
    }
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// Waits for an answer, no longer than [`ANSWER_LIMIT`], and says what its absence means.
async fn within<T>(
    options: &EtcdOptions,
    answer: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, RegistryError> {
    let unreachable = |why: String| RegistryError::Unreachable {
        endpoints: options.endpoints.join(", "),
        why,
    };
    match timeout(ANSWER_LIMIT, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        // etcd says so in words: its codes for wrong names, passwords and rights are those of any
        // bad request.
        Ok(Err(etcd_client::Error::GRpcStatus(status)))
            if DENIALS.iter().any(|d| status.message().contains(d)) =>
        {
            Err(RegistryError::Denied(status.message().to_owned()))
        }
        Ok(Err(error)) => Err(unreachable(innermost(&error))),
        Err(_) => Err(unreachable(format!(
            "nothing within {} s",
            ANSWER_LIMIT.as_secs()
        ))),
    }
}

#[cfg(test)]
mod tests;
