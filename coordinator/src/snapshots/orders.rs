//! What ranks are to do with snapshots, collected for the next plan.

use palimpsest_proto::internal::v1::SnapshotOrders;

use super::chain::Name;

/// Something that ranks do in the background.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Want {
    /// It is to be in the store.
    Store,
    /// It is to be in host memory.
    Fetch,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// All ranks did it.
    Done,
    /// A rank could not, and why.
    Failed(String),
}

/// Something that ranks did in the background, and how that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Of which snapshot.
    pub name: Name,
    /// What it was.
    pub want: Want,
    /// How it ended.
    pub fate: Fate,
}

/// Orders since the last plan.
#[derive(Debug, Default)]
pub(super) struct Orders {
    drop: Vec<Name>,
    store: Vec<Name>,
    fetch: Vec<Name>,
    erase: Vec<Name>,
    list: bool,
}

impl Orders {
    /// Those of a new epoch: the ranks tell what they have.
    pub(super) fn of_epoch() -> Self {
        Self {
            list: true,
            ..Self::default()
        }
    }

    pub(super) fn drop(&mut self, name: Name) {
        self.drop.push(name);
    }

    pub(super) fn erase(&mut self, name: Name) {
        self.erase.push(name);
    }

    pub(super) fn want(&mut self, name: Name, want: Want) {
        match want {
            Want::Store => self.store.push(name),
            Want::Fetch => self.fetch.push(name),
        }
    }

    /// Takes back a drop that no plan has told yet.
    pub(super) fn spare(&mut self, name: Name) {
        self.drop.retain(|dropped| *dropped != name);
    }

    /// Whether no plan has told yet that it is to go.
    pub(super) fn has(&self, name: Name) -> bool {
        self.drop.contains(&name) || self.erase.contains(&name)
    }

    /// For the next plan, if there are any.
    pub(super) fn take(&mut self) -> Option<SnapshotOrders> {
        let Self {
            drop,
            store,
            fetch,
            erase,
            list,
        } = std::mem::take(self);
        let wire = |names: Vec<Name>| names.iter().map(Name::bytes).collect::<Vec<_>>();
        let orders = SnapshotOrders {
            drop: wire(drop),
            store: wire(store),
            fetch: wire(fetch),
            erase: wire(erase),
            list,
        };
        (orders != SnapshotOrders::default()).then_some(orders)
    }
}
