//! Which sessions there are: what is known of each without its record, and who works on it.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use palimpsest_proto::error::{Reason, RequestError};
use palimpsest_proto::v1::{self, SessionState};
use tokio::sync::Notify;

use super::error::{bad, gone};
use super::id::{SessionId, TenantKey};
use super::limits::Limits;

/// Folder of all records in the store.
pub(super) const FOLDER: &str = "sessions";

/// Where a session is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    tenant: TenantKey,
    id: SessionId,
}

/// All sessions of a service, each a few hundred bytes.
#[derive(Debug)]
pub(super) struct Index {
    max_sessions: usize,
    max_tenant_sessions: usize,
    max_bytes: u64,
    max_tenant_bytes: u64,
    state: Mutex<State>,
    /// Somebody has left a session.
    left: Notify,
}

/// Who works on a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// A client's request: others are refused.
    Client,
    /// The service itself, for a moment: others wait.
    Service,
}

#[derive(Debug, Default)]
struct State {
    /// The largest version of any session that was tried, also of one that is no more: a record
    /// of it may still be deleted in the background.
    tried: u64,
    entries: BTreeMap<Key, Entry>,
    of_tenant: HashMap<TenantKey, Share>,
    of_all: Share,
}

/// What some sessions take.
#[derive(Debug, Clone, Copy, Default)]
struct Share {
    sessions: usize,
    /// Of their records.
    bytes: u64,
    /// Of records that are being written.
    reserved: u64,
}

#[derive(Debug, Default)]
struct Entry {
    /// Of the record that holds; 0: none yet.
    version: u64,
    /// Of the next attempt to write one. No version is tried twice: a write that was given up may
    /// still come to be.
    next: u64,
    bytes: u64,
    busy: Option<By>,
    is_suspended: bool,
    is_damaged: bool,
    /// What the record says, once it was read.
    seen: Option<Seen>,
}

/// What is known of a record.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    /// For clients.
    pub(super) view: v1::Session,
    /// The states that its log goes through: see [`Pins::links`]. They tell which of them other
    /// sessions go on from.
    ///
    /// [`Pins::links`]: super::pins::Pins::links
    pub(super) links: Arc<[u64]>,
}

/// A record in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) key: Key,
    pub(super) version: u64,
    pub(super) bytes: u64,
}

/// A session that one request works on, until it is dropped.
#[derive(Debug)]
pub(super) struct Hold {
    index: Arc<Index>,
    key: Key,
    version: u64,
    is_known: bool,
}

/// Bytes that a record may take, until it is dropped.
#[derive(Debug)]
pub(super) struct Room {
    index: Arc<Index>,
    tenant: TenantKey,
    bytes: u64,
}

impl Key {
    pub(super) fn new(tenant: TenantKey, id: SessionId) -> Self {
        Self { tenant, id }
    }

    pub(super) fn id(&self) -> &str {
        self.id.as_str()
    }

    fn folder(&self) -> String {
        format!("{FOLDER}/{}/{}", self.tenant.as_str(), self.id.as_str())
    }

    fn place(&self, version: u64) -> String {
        format!("{}/{version:016x}", self.folder())
    }
}

impl Found {
    /// The record under a key of the store, if it is one.
    pub(super) fn parse(place: &str, bytes: u64) -> Option<Self> {
        let mut parts = place.split('/');
        let mut next = || parts.next();
        let (folder, tenant, id, version) = (next()?, next()?, next()?, next()?);
        let version = u64::from_str_radix(version, 16).ok()?;
        let key = Key::new(TenantKey::parse(tenant), SessionId::parse(id)?);
        (folder == FOLDER && key.place(version) == place).then_some(Self {
            key,
            version,
            bytes,
        })
    }

    pub(super) fn place(&self) -> String {
        self.key.place(self.version)
    }
}

impl Index {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            max_sessions: limits.max_sessions,
            max_tenant_sessions: limits.max_tenant_sessions,
            max_bytes: limits.max_bytes,
            max_tenant_bytes: limits.max_tenant_bytes,
            state: Mutex::default(),
            left: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the records that a store holds, and returns those that later versions replace.
    pub(super) fn load(&self, found: Vec<Found>) -> Vec<Found> {
        let mut newest: BTreeMap<Key, Found> = BTreeMap::new();
        let mut replaced = Vec::new();
        for one in found {
            let key = one.key.clone();
            let other = match newest.remove(&key) {
                Some(other) if other.version > one.version => {
                    newest.insert(key, other);
                    Some(one)
                }
                other => {
                    newest.insert(key, one);
                    other
                }
            };
            replaced.extend(other);
        }
        let mut state = self.state();
        for (key, found) in newest {
            state.tried = state.tried.max(found.version);
            state.change_shares(&key.tenant, |share| {
                share.sessions += 1;
                share.bytes += found.bytes;
            });
            let entry = Entry {
                version: found.version,
                next: found.version + 1,
                bytes: found.bytes,
                // Nothing of it is in memory.
                is_suspended: true,
                ..Entry::default()
            };
            state.entries.insert(key, entry);
        }
        replaced
    }

    /// A new session, which is there once its record is written.
    pub(super) fn add(self: &Arc<Self>, key: Key) -> Result<Hold, RequestError> {
        let mut state = self.state();
        if state.entries.contains_key(&key) {
            let message = format!(
                "there is a session {:?} already: delete it, or choose another name",
                key.id()
            );
            let error = RequestError::new(Reason::SessionExists, message);
            return Err(error.in_field("session_id"));
        }
        let own = state.share(&key.tenant).sessions;
        let whose = if own >= self.max_tenant_sessions {
            Some((own, "of this client"))
        } else if state.of_all.sessions >= self.max_sessions {
            Some((state.of_all.sessions, "of this server"))
        } else {
            None
        };
        if let Some((count, whose)) = whose {
            let message = format!(
                "{count} sessions {whose} are open, as many as may be: delete some, or wait until \
                 one is forgotten"
            );
            return Err(RequestError::new(Reason::SessionLimit, message));
        }
        state.change_shares(&key.tenant, |share| share.sessions += 1);
        let entry = Entry {
            next: state.tried + 1,
            busy: Some(By::Client),
            ..Entry::default()
        };
        state.entries.insert(key.clone(), entry);
        Ok(Hold {
            index: self.clone(),
            key,
            version: 0,
            is_known: true,
        })
    }

    /// A session, alone, once the service has left it.
    ///
    /// # Errors
    /// `SessionUnknown`, and `SessionBusy` where a client is on it.
    pub(super) async fn hold(self: &Arc<Self>, key: &Key, by: By) -> Result<Hold, RequestError> {
        loop {
            // It hears of everyone who leaves from here on.
            let left = self.left.notified();
            if let Some(hold) = self.try_hold(key, by)? {
                return Ok(hold);
            }
            left.await;
        }
    }

    /// The same; `None` while the service is on it.
    fn try_hold(self: &Arc<Self>, key: &Key, by: By) -> Result<Option<Hold>, RequestError> {
        let mut state = self.state();
        let entry = state.entries.get_mut(key);
        let entry = entry.ok_or_else(|| gone(key.id()))?;
        match entry.busy {
            Some(By::Service) => return Ok(None),
            Some(By::Client) => {
                let message = format!(
                    "another request works on the session {:?}: wait until that has ended, or \
                     fork the session before it begins",
                    key.id()
                );
                let error = RequestError::new(Reason::SessionBusy, message);
                return Err(error.in_field("session_id"));
            }
            None => {}
        }
        entry.busy = Some(by);
        Ok(Some(Hold {
            index: self.clone(),
            key: key.clone(),
            version: entry.version,
            is_known: entry.seen.is_some(),
        }))
    }

    /// Room for a record in place of the present one.
    pub(super) fn reserve(self: &Arc<Self>, key: &Key, bytes: u64) -> Result<Room, RequestError> {
        let mut state = self.state();
        let old = state.entries.get(key).map_or(0, |entry| entry.bytes);
        let bounds = [
            (
                state.share(&key.tenant),
                self.max_tenant_bytes,
                "of this client",
            ),
            (state.of_all, self.max_bytes, "of this server"),
        ];
        for (share, most, whose) in bounds {
            let others = share.bytes.saturating_sub(old) + share.reserved;
            if others.saturating_add(bytes) > most {
                let message = format!(
                    "records of sessions {whose} take {others} bytes, and {bytes} for this one \
                     would pass the limit of {most}: delete some, or wait until one is forgotten"
                );
                return Err(RequestError::new(Reason::SessionLimit, message));
            }
        }
        state.change_shares(&key.tenant, |share| share.reserved += bytes);
        Ok(Room {
            index: self.clone(),
            tenant: key.tenant.clone(),
            bytes,
        })
    }

    /// The record of a session is another one now.
    pub(super) fn written(&self, key: &Key, version: u64, room: Room, seen: Seen) {
        let mut state = self.state();
        if let Some(entry) = state.entries.get_mut(key) {
            let old = std::mem::replace(&mut entry.bytes, room.bytes);
            entry.version = version;
            entry.is_suspended = false;
            entry.seen = Some(seen);
            state.change_shares(&key.tenant, |share| {
                share.bytes = share.bytes.saturating_sub(old) + room.bytes;
            });
        }
        // The room takes the lock as it goes.
        drop(state);
        drop(room);
    }

    pub(super) fn learnt(&self, key: &Key, seen: Seen) {
        self.change(key, |entry| entry.seen = Some(seen));
    }

    pub(super) fn damaged(&self, key: &Key) {
        self.change(key, |entry| entry.is_damaged = true);
    }

    pub(super) fn set_suspended(&self, key: &Key, is_suspended: bool) {
        self.change(key, |entry| entry.is_suspended = is_suspended);
    }

    fn change(&self, key: &Key, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.state().entries.get_mut(key) {
            change(entry);
        }
    }

    /// Whether the record was read, or need not be tried again.
    pub(super) fn is_known(&self, key: &Key) -> bool {
        let state = self.state();
        let entry = state.entries.get(key);
        entry.is_none_or(|entry| entry.seen.is_some() || entry.is_damaged)
    }

    /// What is known of a session that has a record.
    pub(super) fn view(&self, key: &Key) -> Option<v1::Session> {
        let state = self.state();
        let entry = state.entries.get(key).filter(|entry| entry.version > 0)?;
        Some(entry.view(key))
    }

    /// Sessions of a tenant whose names come behind `after`, `most` of them at most.
    pub(super) fn behind(&self, tenant: &TenantKey, after: &str, most: usize) -> Vec<Key> {
        let state = self.state();
        let of_tenant = state
            .entries
            .iter()
            .skip_while(|(key, _)| key.tenant < *tenant);
        let of_tenant = of_tenant.take_while(|(key, _)| key.tenant == *tenant);
        let there = of_tenant.filter(|(key, entry)| entry.version > 0 && key.id() > after);
        there.take(most).map(|(key, _)| key.clone()).collect()
    }

    /// Sessions behind `after`, of all tenants.
    pub(super) fn all_behind(&self, after: Option<&Key>, most: usize) -> Vec<Key> {
        let state = self.state();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let behind = state.entries.range((from, Bound::Unbounded));
        behind.take(most).map(|(key, _)| key.clone()).collect()
    }

    /// The links of a session, if its record was read.
    pub(super) fn links(&self, key: &Key) -> Option<Arc<[u64]>> {
        let state = self.state();
        let seen = state.entries.get(key)?.seen.as_ref();
        seen.map(|seen| seen.links.clone())
    }

    /// How many of the first links of a session other sessions have in common with it, as far as
    /// their records were read.
    pub(super) fn shared(&self, key: &Key, links: &[u64]) -> usize {
        let state = self.state();
        let others = state.entries.iter().filter(|(other, _)| *other != key);
        let seen = others.filter_map(|(_, entry)| entry.seen.as_ref());
        let common = seen.map(|seen| {
            let both = seen.links.iter().zip(links);
            both.take_while(|(one, other)| one == other).count()
        });
        common.max().unwrap_or(0)
    }

    /// Sessions, and the bytes of their records.
    pub(super) fn totals(&self) -> (usize, u64) {
        let state = self.state();
        (state.of_all.sessions, state.of_all.bytes)
    }
}

impl Entry {
    fn view(&self, key: &Key) -> v1::Session {
        let state = if self.is_damaged {
            SessionState::Damaged
        } else if self.busy == Some(By::Client) {
            SessionState::Running
        } else if self.is_suspended {
            SessionState::Suspended
        } else {
            SessionState::Idle
        };
        let seen = self.seen.as_ref();
        let mut view = seen.map_or_else(Default::default, |seen| seen.view.clone());
        view.session_id = key.id().to_owned();
        view.state = state.into();
        view.record_bytes = self.bytes;
        view
    }
}

impl Hold {
    pub(super) fn key(&self) -> &Key {
        &self.key
    }

    /// Of the record that holds; 0: none yet.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Whether the record was read before.
    pub(super) fn is_known(&self) -> bool {
        self.is_known
    }

    /// Where the record is.
    pub(super) fn place(&self) -> String {
        self.key.place(self.version)
    }

    /// Where all versions of the record are.
    pub(super) fn folder(&self) -> String {
        self.key.folder()
    }

    /// A version that was never tried, and its place.
    pub(super) fn next_place(&self) -> (u64, String) {
        let mut version = self.version + 1;
        self.index.change(&self.key, |entry| {
            version = entry.next;
            entry.next += 1;
        });
        let mut state = self.index.state();
        state.tried = state.tried.max(version);
        drop(state);
        (version, self.key.place(version))
    }

    /// The session is no more.
    pub(super) fn remove(self) {
        self.index.state().remove(&self.key);
    }
}

impl State {
    fn remove(&mut self, key: &Key) {
        let Some(entry) = self.entries.remove(key) else {
            return;
        };
        self.change_shares(&key.tenant, |share| {
            share.sessions -= 1;
            share.bytes = share.bytes.saturating_sub(entry.bytes);
        });
    }

    fn share(&self, tenant: &TenantKey) -> Share {
        self.of_tenant.get(tenant).copied().unwrap_or_default()
    }

    /// Changes what a tenant's sessions take, and what all take.
    fn change_shares(&mut self, tenant: &TenantKey, change: impl Fn(&mut Share)) {
        change(&mut self.of_all);
        let share = self.of_tenant.entry(tenant.clone()).or_default();
        change(share);
        if share.sessions == 0 && share.reserved == 0 {
            self.of_tenant.remove(tenant);
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.index.state();
        if let Some(entry) = state.entries.get_mut(&self.key) {
            entry.busy = None;
            if entry.version == 0 {
                // Its first record was not written.
                state.remove(&self.key);
            }
        }
        drop(state);
        self.index.left.notify_waiters();
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let give_back = |share: &mut Share| share.reserved -= self.bytes;
        self.index.state().change_shares(&self.tenant, give_back);
    }
}

/// Refuses a page token that is no name.
pub(super) fn check_page_token(token: &str) -> Result<(), RequestError> {
    if token.is_empty() || SessionId::parse(token).is_some() {
        return Ok(());
    }
    Err(bad(
        "page_token",
        "page_token is none: send next_page_token of the page before",
    ))
}
