//! Sessions: a tenant's token logs, each under a name and with one KV contract.
//!
//! ```text
//!  request that names a session
//!     │ begin: one at a time, the record is read          ─▶ session_busy, session_unknown
//!     ▼
//!  Turn ─extend: the log and what is new make the prompt─▶ an ordinary request, which forks from
//!     │                                                    the longest snapshot that is kept
//!     ▼ the answer has ended
//!  commit: the log with prompt and answer is written      ─▶ store_unavailable: it is as before
//!     ▼
//!  the client reads that it has finished
//! ```
//! - A record is written under a key of its own version, and only then does the session point at
//!   it. So a write that fails, is late or is cut off leaves the session as it was.
//! - Logs are in the store alone. In memory a session takes some hundred bytes, and eight for
//!   each stride of its log (`index`).
//! - A request that fails, or whose client goes away, leaves the log as it was before.
//! - State is never kept here: ranks keep snapshots, and [`pins`] moves those of a session.

mod error;
mod id;
mod index;
mod limits;
mod log;
pub mod pins;
mod record;
mod records;
mod sweep;
#[cfg(test)]
mod tests;
mod turn;

use std::sync::Arc;

use palimpsest_proto::contract::Contract;
use palimpsest_proto::error::RequestError;
use palimpsest_proto::v1;
use tokio::sync::OnceCell;

use self::error::{bad, gone};
pub use self::id::TenantName;
use self::id::{SessionId, TenantKey};
use self::index::{Hold, Key, check_page_token};
pub use self::limits::Limits;
use self::log::Log;
pub use self::log::Opening;
use self::pins::Pins;
use self::record::Record;
use self::records::Records;
pub use self::turn::Turn;
use crate::metrics::Metrics;
use crate::model::ServedModel;

/// Sessions on a page when a client does not say, and at most.
const PAGE: usize = 100;
const MOST_PAGE: usize = 1000;

/// All sessions of a service; cheap to clone.
#[derive(Debug, Clone)]
pub struct Sessions {
    records: Records,
    opened: Arc<OnceCell<()>>,
}

/// What a client asks of a new session.
#[derive(Debug, Clone)]
pub struct NewSession {
    /// Its name; empty: one is drawn.
    pub id: String,
    /// Its contract, with every default filled in.
    pub contract: Contract,
    /// Seconds without use until it is forgotten; 0: the default.
    pub ttl_seconds: u64,
}

/// A page of sessions.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Page {
    /// In the order of their names.
    pub sessions: Vec<v1::Session>,
    /// Name of the last one, if more follow.
    pub next: Option<String>,
}

impl Sessions {
    /// The sessions that the store of `limits` holds. They are read when they are first asked for:
    /// see [`Self::open`].
    pub fn new(limits: Limits, model: &ServedModel, pins: Arc<dyn Pins>, metrics: Metrics) -> Self {
        Self {
            records: Records::new(limits, model, pins, metrics),
            opened: Arc::default(),
        }
    }

    /// Lists the records that the store holds, once. Which of them are over is found out in the
    /// background, one record at a time, so that no more than one is in memory.
    ///
    /// # Errors
    /// `StoreUnavailable`; the next call tries again.
    pub async fn open(&self) -> Result<(), RequestError> {
        let load = async || {
            self.records.load().await?;
            sweep::start(&self.records);
            Ok(())
        };
        self.opened.get_or_try_init(load).await.copied()
    }

    /// Gives the place of the records back, when nothing is written any more.
    pub async fn close(&self) {
        self.records.limits().place.release("sessions").await;
    }

    /// Makes an empty session.
    ///
    /// # Errors
    /// `BadSession`, `SessionExists`, `SessionLimit`, `StoreUnavailable`.
    pub async fn create(
        &self,
        tenant: TenantName<'_>,
        asked: NewSession,
    ) -> Result<v1::Session, RequestError> {
        self.open().await?;
        let id = SessionId::new_or_drawn(&asked.id, "session_id")?;
        let (ttl, most) = (asked.ttl_seconds, self.records.limits().max_ttl.as_secs());
        if ttl > most {
            let message = format!("ttl_seconds is {ttl}, the most is {most}");
            return Err(bad("ttl_seconds", message));
        }
        let ttl_seconds = match ttl {
            0 => self.records.limits().ttl.as_secs(),
            ttl => ttl,
        };
        let now = self.records.now();
        let record = Record {
            tenant: tenant.map_or_else(String::new, |name| name.to_string()),
            id: id.as_str().into(),
            model: *self.records.model(),
            contract: asked.contract,
            created: now,
            used: now,
            ttl_seconds,
            log: Log::default(),
        };
        let key = Key::new(TenantKey::of(tenant), id);
        self.records.clear(&key).await?;
        let hold = self.records.index().add(key)?;
        self.detached(|records| async move { records.write(hold, record).await })
            .await
    }

    /// What is known of a session.
    ///
    /// # Errors
    /// `SessionUnknown`, `SessionDamaged`, `StoreUnavailable`.
    pub async fn show(
        &self,
        tenant: TenantName<'_>,
        id: &str,
    ) -> Result<v1::Session, RequestError> {
        let key = self.find(tenant, id).await?;
        self.records.learn(&key).await?;
        self.records.index().view(&key).ok_or_else(|| gone(id))
    }

    /// The sessions of a tenant whose names come behind `after`.
    ///
    /// # Errors
    /// `BadSession` for a page that is too long, `StoreUnavailable`.
    pub async fn list(
        &self,
        tenant: TenantName<'_>,
        after: &str,
        page: usize,
    ) -> Result<Page, RequestError> {
        self.open().await?;
        if page > MOST_PAGE {
            let message = format!("a page of {page} sessions, the most is {MOST_PAGE}");
            return Err(bad("page_size", message));
        }
        check_page_token(after)?;
        let page = if page == 0 { PAGE } else { page };
        let tenant = TenantKey::of(tenant);
        let mut keys = self.records.index().behind(&tenant, after, page + 1);
        let more = keys.len() > page;
        keys.truncate(page);
        let next = keys.last().filter(|_| more).map(|key| key.id().to_owned());
        let mut sessions = Vec::with_capacity(keys.len());
        for key in keys {
            // One that cannot be read is listed as damaged, and one that is gone is not listed.
            match self.records.learn(&key).await {
                Err(error) if error.reason == error::STORE => return Err(error),
                _ => sessions.extend(
                    self.records
                        .index()
                        .view(&key)
                        .filter(|one| !self.records.is_over(one)),
                ),
            }
        }
        Ok(Page { sessions, next })
    }

    /// Makes a second session with the log of the first.
    ///
    /// # Errors
    /// As [`Self::create`] and [`Self::show`], and `SessionBusy`: only one at rest can be copied.
    pub async fn fork(
        &self,
        tenant: TenantName<'_>,
        id: &str,
        copy: &str,
    ) -> Result<v1::Session, RequestError> {
        let from = self.hold(tenant, id).await?;
        let copy = SessionId::new_or_drawn(copy, "new_session_id")?;
        let to = Key::new(TenantKey::of(tenant), copy.clone());
        self.records.clear(&to).await?;
        let to = self.records.index().add(to)?;
        self.detached(|records| async move {
            let record = records.read(&from).await?;
            let now = records.now();
            let copied = Record {
                id: copy.as_str().into(),
                created: now,
                used: now,
                ..record
            };
            records.write(to, copied).await
        })
        .await
    }

    /// Moves what is kept of a session's state out of memory, and returns the bytes that moved.
    ///
    /// # Errors
    /// As [`Self::show`], and `SessionBusy`.
    pub async fn suspend(
        &self,
        tenant: TenantName<'_>,
        id: &str,
    ) -> Result<v1::MovedResponse, RequestError> {
        let hold = self.hold(tenant, id).await?;
        self.detached(|records| async move { records.suspend(hold).await })
            .await
    }

    /// Fetches the state of a session before it is needed.
    ///
    /// # Errors
    /// As [`Self::suspend`].
    pub async fn resume(
        &self,
        tenant: TenantName<'_>,
        id: &str,
    ) -> Result<v1::MovedResponse, RequestError> {
        let hold = self.hold(tenant, id).await?;
        self.detached(|records| async move { records.resume(hold).await })
            .await
    }

    /// Forgets a session.
    ///
    /// # Errors
    /// `SessionUnknown`, `SessionBusy`, `StoreUnavailable`.
    pub async fn delete(&self, tenant: TenantName<'_>, id: &str) -> Result<(), RequestError> {
        let hold = self.hold(tenant, id).await?;
        self.detached(|records| async move { records.remove(hold).await })
            .await
    }

    /// Begins a request on a session, alone until the turn is dropped or committed.
    ///
    /// # Errors
    /// `SessionUnknown`, `SessionBusy`, `SessionModel`, `SessionDamaged`, `StoreUnavailable`.
    pub async fn begin(&self, tenant: TenantName<'_>, id: &str) -> Result<Turn, RequestError> {
        let hold = self.hold(tenant, id).await?;
        let record = self.records.read(&hold).await?;
        record.check_model(self.records.model())?;
        Ok(Turn::new(self.records.clone(), hold, record))
    }

    async fn find(&self, tenant: TenantName<'_>, id: &str) -> Result<Key, RequestError> {
        self.open().await?;
        self.records.find(tenant, id)
    }

    /// A session, alone.
    async fn hold(&self, tenant: TenantName<'_>, id: &str) -> Result<Hold, RequestError> {
        self.open().await?;
        self.records.hold(tenant, id).await
    }

    /// Does what must not stop in the middle when its client goes away.
    async fn detached<T, F>(&self, work: impl FnOnce(Records) -> F) -> Result<T, RequestError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, RequestError>> + Send + 'static,
    {
        let done = tokio::spawn(work(self.records.clone())).await;
        done.unwrap_or_else(|_| Err(error::broken()))
    }
}
