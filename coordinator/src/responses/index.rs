//! Which responses are kept, who goes on from whom, and which of them make room. It does no I/O.
//!
//! A response is *shown* until it is deleted or expires. One that is hidden stays as long as a
//! shown one goes on from it, or a request holds it. What has to leave the store then is garbage,
//! which the caller takes. The names of records say all of this, so a service that starts reads
//! none of them.

mod name;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use palimpsest_store::Entry as Object;

use self::name::Found;
pub(super) use self::name::{FOLDER, Name};
use super::error::{Error, Result};
use super::id::{ResponseId, TenantKey};

/// How much may be kept, and how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Responses.
    pub count: usize,
    /// Bytes of their records.
    pub bytes: u64,
    /// Seconds.
    pub ttl: u64,
}

/// What the store has to do so that a response is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Removal {
    /// Remember by a marker that it was deleted: others go on from it.
    Marker(String),
    /// Remove its record.
    Record(String),
}

/// Keys that the store need not hold, to be removed in this order: a record whose marker is gone
/// would be shown again.
pub(super) type Garbage = Vec<String>;

/// See the text of this module.
#[derive(Debug)]
pub(super) struct Index {
    bounds: Bounds,
    entries: HashMap<ResponseId, Entry>,
    tenants: HashMap<TenantKey, Tenant>,
    /// Those that are shown, by their age.
    ages: BTreeSet<(u64, ResponseId)>,
    /// Of all records, hidden ones too.
    bytes: u64,
    /// Counts uses, for their order.
    uses: u64,
    garbage: Vec<Garbage>,
}

#[derive(Debug)]
struct Entry {
    name: Name,
    /// Responses that go on from it, and requests that hold it.
    holds: u32,
    is_shown: bool,
    /// Whether the store has a marker that it was deleted.
    is_marked: bool,
    used: u64,
}

#[derive(Debug, Default)]
struct Tenant {
    count: usize,
    bytes: u64,
    /// Those that nothing holds, by their last use. All of them are shown.
    free: BTreeMap<u64, ResponseId>,
}

impl Index {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            entries: HashMap::new(),
            tenants: HashMap::new(),
            ages: BTreeSet::new(),
            bytes: 0,
            uses: 0,
            garbage: Vec::new(),
        }
    }

    /// Takes in what a store holds.
    pub(super) fn load(&mut self, objects: impl Iterator<Item = Object>) {
        let mut marked = Vec::new();
        let mut names = Vec::new();
        for object in objects {
            match Found::parse(&object) {
                Some(Found::Record(name)) => names.push(name),
                Some(Found::Marker(id)) => marked.push((id, object.key)),
                None => {}
            }
        }
        // Uses are forgotten: the age stands for them.
        names.sort_by_key(|name| name.created);
        let parents: Vec<_> = names.iter().filter_map(|name| name.parent).collect();
        for name in names {
            self.add(name);
        }
        for parent in parents {
            self.hold(parent);
        }
        for (id, key) in marked {
            match self.entries.get_mut(&id) {
                Some(entry) => entry.is_marked = true,
                None => self.garbage.push(vec![key]),
            }
            self.conceal(id);
            self.forget(id);
        }
        self.make_room(None);
    }

    /// Takes in a response whose record was written.
    pub(super) fn insert(&mut self, name: Name) {
        let (id, parent) = (name.id, name.parent);
        self.add(name);
        if let Some(parent) = parent {
            self.hold(parent);
        }
        self.make_room(Some(id));
    }

    /// Lets a record go that may have been written, and that nobody was told of.
    pub(super) fn discard(&mut self, name: &Name) {
        self.garbage.push(vec![name.key()]);
    }

    /// Holds a response, and gives the names of its conversation, the oldest first.
    pub(super) fn pin(&mut self, tenant: TenantKey, id: ResponseId) -> Result<Vec<Name>> {
        self.shown(tenant, id)?;
        let mut names = Vec::new();
        let mut next = Some(id);
        while let Some(id) = next {
            // A record that somebody took out of the store took its conversation with it.
            let entry = self.entries.get(&id).ok_or(Error::Unknown)?;
            names.push(entry.name);
            next = entry.name.parent;
            if names.len() > self.entries.len() {
                return Err(Error::Unknown);
            }
        }
        names.reverse();
        self.touch(id);
        self.hold(id);
        Ok(names)
    }

    /// Ends what [`Self::pin`] began.
    pub(super) fn unpin(&mut self, id: ResponseId) {
        self.release(id);
        self.make_room(None);
    }

    /// Hides a response that is to be deleted, and says what the store has to do.
    pub(super) fn hide(&mut self, tenant: TenantKey, id: ResponseId) -> Result<Removal> {
        let entry = self.shown(tenant, id)?;
        let removal = match entry.holds {
            0 => Removal::Record(entry.name.key()),
            _ => Removal::Marker(entry.name.marker()),
        };
        self.conceal(id);
        if let (Some(entry), Removal::Marker(_)) = (self.entries.get_mut(&id), &removal) {
            entry.is_marked = true;
        }
        Ok(removal)
    }

    /// Undoes [`Self::hide`], where the store failed.
    pub(super) fn show(&mut self, id: ResponseId) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        entry.is_shown = true;
        self.ages.insert((entry.name.created, id));
        if std::mem::take(&mut entry.is_marked) {
            // It may have been written all the same.
            let marker = entry.name.marker();
            self.garbage.push(vec![marker]);
        }
        self.free(id);
    }

    /// Ends what [`Self::hide`] began: a hidden response that nothing holds goes, and those before
    /// it that waited for that.
    pub(super) fn forget(&mut self, id: ResponseId) {
        let mut next = Some(id);
        while let Some(id) = next.take() {
            let Some(entry) = self.entries.get(&id) else {
                return;
            };
            if entry.is_shown || entry.holds > 0 {
                return;
            }
            let parent = entry.name.parent;
            self.remove(id);
            next = parent.filter(|&parent| self.let_go(parent));
        }
    }

    /// Hides what is too old.
    pub(super) fn expire(&mut self, now: u64) {
        while let Some(&(created, id)) = self.ages.first() {
            if created.saturating_add(self.bounds.ttl) > now {
                return;
            }
            self.conceal(id);
            self.forget(id);
        }
    }

    /// At most so much of what the store need not hold.
    pub(super) fn take_garbage(&mut self, most: usize) -> Vec<Garbage> {
        let from = self.garbage.len().saturating_sub(most);
        self.garbage.split_off(from)
    }

    /// Gives back what could not be removed, to be tried behind all else.
    pub(super) fn put_garbage(&mut self, failed: Vec<Garbage>) {
        self.garbage.splice(0..0, failed);
    }

    #[cfg(test)]
    pub(super) fn is_clean(&self) -> bool {
        self.garbage.is_empty()
    }

    pub(super) fn count(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    fn shown(&self, tenant: TenantKey, id: ResponseId) -> Result<&Entry> {
        let entry = self.entries.get(&id);
        let own = entry.filter(|entry| entry.is_shown && entry.name.tenant == tenant);
        own.ok_or(Error::Unknown)
    }

    fn add(&mut self, name: Name) {
        let id = name.id;
        let tenant = self.tenants.entry(name.tenant).or_default();
        tenant.count += 1;
        tenant.bytes += name.bytes;
        self.bytes += name.bytes;
        self.ages.insert((name.created, id));
        let entry = Entry {
            name,
            holds: 0,
            is_shown: true,
            is_marked: false,
            used: 0,
        };
        self.entries.insert(id, entry);
        self.touch(id);
        self.free(id);
    }

    /// It was used now.
    fn touch(&mut self, id: ResponseId) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        self.uses += 1;
        let before = std::mem::replace(&mut entry.used, self.uses);
        let tenant = self.tenants.entry(entry.name.tenant).or_default();
        if tenant.free.remove(&before).is_some() {
            tenant.free.insert(self.uses, id);
        }
    }

    /// One more response or request keeps it.
    fn hold(&mut self, id: ResponseId) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.holds += 1;
            let tenant = self.tenants.entry(entry.name.tenant).or_default();
            tenant.free.remove(&entry.used);
        }
    }

    /// One response or request less keeps it.
    fn release(&mut self, id: ResponseId) {
        if self.let_go(id) {
            self.forget(id);
        }
    }

    /// The same, and says whether it is hidden and nothing keeps it.
    fn let_go(&mut self, id: ResponseId) -> bool {
        let Some(entry) = self.entries.get_mut(&id) else {
            return false;
        };
        entry.holds = entry.holds.saturating_sub(1);
        let (is_shown, holds) = (entry.is_shown, entry.holds);
        self.free(id);
        !is_shown && holds == 0
    }

    /// Lets it make room, if it is shown and nothing holds it.
    fn free(&mut self, id: ResponseId) {
        let Some(entry) = self.entries.get(&id) else {
            return;
        };
        if entry.is_shown && entry.holds == 0 {
            let tenant = self.tenants.entry(entry.name.tenant).or_default();
            tenant.free.insert(entry.used, id);
        }
    }

    /// Nobody can ask for it any more.
    fn conceal(&mut self, id: ResponseId) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.is_shown = false;
            self.ages.remove(&(entry.name.created, id));
            let tenant = self.tenants.entry(entry.name.tenant).or_default();
            tenant.free.remove(&entry.used);
        }
    }

    fn remove(&mut self, id: ResponseId) {
        let Some(Entry {
            name, is_marked, ..
        }) = self.entries.remove(&id)
        else {
            return;
        };
        self.bytes -= name.bytes;
        if let Some(tenant) = self.tenants.get_mut(&name.tenant) {
            tenant.count -= 1;
            tenant.bytes -= name.bytes;
            if tenant.count == 0 {
                self.tenants.remove(&name.tenant);
            }
        }
        let marker = is_marked.then(|| name.marker());
        let keys = std::iter::once(name.key()).chain(marker);
        self.garbage.push(keys.collect());
    }

    /// Lets go what was used least recently, of the tenant that has most, until the bounds hold.
    fn make_room(&mut self, newest: Option<ResponseId>) {
        loop {
            let too_many = self.entries.len() > self.bounds.count;
            if !too_many && self.bytes <= self.bounds.bytes {
                return;
            }
            let oldest = |tenant: &Tenant| {
                let mut free = tenant.free.values().copied();
                free.find(|&id| Some(id) != newest)
            };
            let tenants = self.tenants.values().filter(|one| oldest(one).is_some());
            let heaviest = tenants.max_by_key(|tenant| match too_many {
                true => tenant.count as u64,
                false => tenant.bytes,
            });
            // All the rest is held, and goes when it is let go.
            let Some(id) = heaviest.and_then(oldest) else {
                return;
            };
            self.conceal(id);
            self.forget(id);
        }
    }
}
