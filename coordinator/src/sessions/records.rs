//! Records of sessions in their store, and the index that points at them.

use std::sync::Arc;

use palimpsest_proto::error::RequestError;
use palimpsest_proto::v1;
use palimpsest_store::Store;

use super::error::{self, gone, stored};
use super::id::{SessionId, TenantKey, TenantName};
use super::index::{By, FOLDER, Found, Hold, Index, Key, Seen};
use super::limits::Limits;
use super::pins::{Pinned, Pins};
use super::record::{Record, model_digest};
use crate::metrics::Metrics;
use crate::model::ServedModel;
use crate::place::watch;

/// All records of a service; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Records(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limits: Limits,
    /// What the model of a record must be.
    model: [u8; 32],
    /// Tokens of a log at most.
    max_tokens: u64,
    index: Arc<Index>,
    pins: Arc<dyn Pins>,
    metrics: Metrics,
}

impl Records {
    pub(super) fn new(
        limits: Limits,
        model: &ServedModel,
        pins: Arc<dyn Pins>,
        metrics: Metrics,
    ) -> Self {
        let max_tokens = match limits.max_tokens {
            0 => model.info.context_length.max(1),
            most => most,
        };
        Self(Arc::new(Inner {
            index: Arc::new(Index::new(&limits)),
            limits,
            model: model_digest(&model.info),
            max_tokens,
            pins,
            metrics,
        }))
    }

    /// Has `look` look at all records from now on, until the service is gone.
    pub(super) fn watch<F>(&self, look: impl Fn(Self) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        watch(&self.0, move |inner| look(Self(inner)));
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.0.limits
    }

    fn store(&self) -> &Store {
        self.0.limits.place.store()
    }

    pub(super) fn index(&self) -> &Arc<Index> {
        &self.0.index
    }

    /// Seconds since 1970.
    pub(super) fn now(&self) -> u64 {
        self.0.limits.clock.now()
    }

    /// Of the model that is served.
    pub(super) fn model(&self) -> &[u8; 32] {
        &self.0.model
    }

    /// Tokens that a log may have when a request begins.
    pub(super) fn max_tokens(&self) -> u64 {
        self.0.max_tokens
    }

    /// Whether a session's time is over, as far as that is known.
    pub(super) fn is_over(&self, session: &v1::Session) -> bool {
        session.expires > 0 && session.expires <= self.now()
    }

    /// Lists the records that the store holds. They are not read.
    pub(super) async fn load(&self) -> Result<(), RequestError> {
        let store = self.store().clone();
        let listed = store.list(FOLDER).await.map_err(|error| stored(&error))?;
        let found = listed.iter().filter_map(|entry| {
            let found = Found::parse(&entry.key, entry.bytes);
            if found.is_none() {
                tracing::warn!(
                    key = entry.key,
                    "the store holds what is no session's record"
                );
            }
            found
        });
        let replaced = self.0.index.load(found.collect());
        let (sessions, bytes) = self.0.index.totals();
        self.count();
        tracing::info!(sessions, bytes, store = store.name(), "sessions are open");
        for found in replaced {
            self.discard(found.place());
        }
        Ok(())
    }

    /// Where a session is, if it is there and not over.
    pub(super) fn find(&self, tenant: TenantName<'_>, id: &str) -> Result<Key, RequestError> {
        // A name that cannot be is one that nobody made.
        let session = SessionId::parse(id).ok_or_else(|| gone(id))?;
        let key = Key::new(TenantKey::of(tenant), session);
        let view = self.0.index.view(&key).ok_or_else(|| gone(id))?;
        if self.is_over(&view) {
            return Err(gone(id));
        }
        Ok(key)
    }

    /// The same, and alone on it.
    pub(super) async fn hold(
        &self,
        tenant: TenantName<'_>,
        id: &str,
    ) -> Result<Hold, RequestError> {
        let key = self.find(tenant, id)?;
        let hold = self.0.index.hold(&key, By::Client).await?;
        if !hold.is_known() {
            // Only its record says whether its time is over. What is wrong with the record is for
            // those to say who need it.
            if let Ok(record) = self.read(&hold).await
                && record.expires() <= self.0.limits.clock.now()
            {
                return Err(gone(id));
            }
        }
        Ok(hold)
    }

    /// Reads the record of a session that was found in the store and not yet looked into.
    pub(super) async fn learn(&self, key: &Key) -> Result<(), RequestError> {
        if self.0.index.is_known(key) {
            return Ok(());
        }
        // A client who works on it reads it anyway.
        let Ok(hold) = self.0.index.hold(key, By::Service).await else {
            return Ok(());
        };
        if self.0.index.is_known(key) {
            return Ok(());
        }
        let record = self.read(&hold).await?;
        if record.expires() <= self.0.limits.clock.now() {
            return Err(gone(key.id()));
        }
        Ok(())
    }

    /// Removes a session whose time is over, so that another one can have its name.
    pub(super) async fn clear(&self, key: &Key) -> Result<(), RequestError> {
        // What cannot be read is there, and says so to who asks for it.
        let _ = self.learn(key).await;
        let is_over = || {
            let view = self.0.index.view(key);
            view.is_some_and(|view| self.is_over(&view))
        };
        if is_over()
            && let Ok(hold) = self.0.index.hold(key, By::Service).await
            && is_over()
        {
            self.remove(hold).await?;
        }
        Ok(())
    }

    /// Reads the record of a held session.
    pub(super) async fn read(&self, hold: &Hold) -> Result<Record, RequestError> {
        let (key, place) = (hold.key(), hold.place());
        let limit = self.0.limits.max_record_bytes;
        let read = self.store().get_sealed(&place, limit).await;
        let record = read.map_err(|error| stored(&error)).and_then(|payload| {
            let record = Record::decode(&payload)?;
            record.check_owner(key)?;
            Ok(record)
        });
        match &record {
            Ok(record) => {
                // The links were found when the record was written, if that was here.
                let known = self.0.index.links(key);
                let seen = known.map(|links| Seen {
                    view: record.view(),
                    links,
                });
                let seen = seen.unwrap_or_else(|| self.seen(record));
                self.0.index.learnt(key, seen);
            }
            Err(error) if error.reason == error::DAMAGED => {
                tracing::error!(session = key.id(), "a session's record is damaged");
                self.0.index.damaged(key);
            }
            Err(_) => {}
        }
        record
    }

    /// Writes the record of a held session and lets the session point at it.
    pub(super) async fn write(
        &self,
        hold: Hold,
        record: Record,
    ) -> Result<v1::Session, RequestError> {
        let payload = record.encode();
        let (bytes, most) = (payload.len() as u64, self.0.limits.max_record_bytes);
        if bytes > most {
            return Err(error::record_too_long(bytes, most));
        }
        let room = self.0.index.reserve(hold.key(), bytes)?;
        if !self.0.limits.place.is_ours() {
            return Err(error::lost_place());
        }
        let (version, place) = hold.next_place();
        let old = hold.place();
        let store = self.store();
        let put = store.put_sealed(&place, &payload).await;
        if let Err(error) = put {
            // It may come to be there later. Nothing points at it, and a later version goes before
            // it.
            self.discard(place);
            return Err(stored(&error));
        }
        let had_old = hold.version() > 0;
        self.0
            .index
            .written(hold.key(), version, room, self.seen(&record));
        self.count();
        let key = hold.key().clone();
        drop(hold);
        let name = key.id();
        tracing::debug!(
            session = name,
            version,
            bytes,
            "a session's record is written"
        );
        if had_old {
            self.discard(old);
        }
        self.0.index.view(&key).ok_or_else(|| gone(name))
    }

    /// Deletes a record that nothing points at, in the background. One that stays is found at the
    /// next start.
    fn discard(&self, place: String) {
        let store = self.store().clone();
        tokio::spawn(async move {
            let _ = store.delete(&place).await;
        });
    }

    /// What is known of a record that was read or written.
    fn seen(&self, record: &Record) -> Seen {
        Seen {
            view: record.view(),
            links: self.0.pins.links(&record.pinned()),
        }
    }

    /// Removes a held session: the states that no other session goes on from, and then its record.
    /// So whoever is told that it is gone is told the truth, and who asks again after a failure
    /// finds it.
    pub(super) async fn remove(&self, hold: Hold) -> Result<(), RequestError> {
        // Its records may be those of another service by now.
        if !self.0.limits.place.is_ours() {
            return Err(error::lost_place());
        }
        match self.read(&hold).await {
            Ok(record) => {
                let links = self.0.index.links(hold.key()).unwrap_or_default();
                if !links.is_empty() {
                    self.learn_all().await;
                }
                let shared = self.0.index.shared(hold.key(), &links);
                self.0.pins.forget(&record.pinned(), shared).await?;
            }
            // The states of a damaged record have no names. They go when room is short.
            Err(error) if error.reason == error::DAMAGED => {}
            // A store that fails now may answer later, and the record alone names the states.
            Err(error) => return Err(error),
        }
        let store = self.store();
        let found = store.list(&hold.folder()).await;
        for entry in found.map_err(|error| stored(&error))? {
            let deleted = store.delete(&entry.key).await;
            deleted.map_err(|error| stored(&error))?;
        }
        tracing::info!(session = hold.key().id(), "a session is forgotten");
        hold.remove();
        self.count();
        Ok(())
    }

    /// Reads the records that nobody has looked into since the start, one after the other. One that
    /// cannot be read keeps no state of another session.
    async fn learn_all(&self) {
        for key in self.0.index.all_behind(None, usize::MAX) {
            let _ = self.learn(&key).await;
        }
    }

    /// Moves the state of a held session out of memory.
    pub(super) async fn suspend(&self, hold: Hold) -> Result<v1::MovedResponse, RequestError> {
        let pinned = self.read(&hold).await?.pinned();
        let moved_bytes = self.0.pins.suspend(&pinned).await?;
        self.0.index.set_suspended(hold.key(), true);
        Ok(self.moved(hold, moved_bytes))
    }

    /// Fetches the state of a held session.
    pub(super) async fn resume(&self, hold: Hold) -> Result<v1::MovedResponse, RequestError> {
        let pinned = self.read(&hold).await?.pinned();
        let moved_bytes = self.0.pins.resume(&pinned).await?;
        self.0.index.set_suspended(hold.key(), false);
        Ok(self.moved(hold, moved_bytes))
    }

    /// The session at rest again.
    fn moved(&self, hold: Hold, moved_bytes: u64) -> v1::MovedResponse {
        let key = hold.key().clone();
        drop(hold);
        let session = self.0.index.view(&key);
        v1::MovedResponse {
            session,
            moved_bytes,
        }
    }

    fn count(&self) {
        let (open, bytes) = self.0.index.totals();
        self.0.metrics.sessions(open, bytes);
    }
}

impl Record {
    /// What the state of the session is a function of.
    fn pinned(&self) -> Pinned {
        Pinned {
            tokens: self.log.tokens.as_slice().into(),
            contract: self.contract.clone(),
            tenant: (!self.tenant.is_empty()).then(|| self.tenant.as_str().into()),
        }
    }
}
