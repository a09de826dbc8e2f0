//! Kept responses against a plain model of them, and what a store that fails leaves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::index::Name;
use super::*;
use crate::place::{Clock, PAUSE, Place};

/// A service's responses under a clock that tests move.
struct Kept {
    responses: Responses,
    time: Arc<AtomicU64>,
}

const TTL: u64 = 100;

fn limits(store: Store, time: &Arc<AtomicU64>) -> Limits {
    let time = time.clone();
    Limits {
        place: Place::over(store),
        ttl: std::time::Duration::from_secs(TTL),
        clock: Clock::of(move || time.load(Ordering::Relaxed)),
        ..Limits::default()
    }
}

impl Kept {
    fn new(store: Store) -> Self {
        let time = Arc::new(AtomicU64::new(1000));
        let responses = Responses::new(limits(store, &time), Metrics::new());
        Self { responses, time }
    }

    /// The same store under another process.
    fn again(&self) -> Self {
        let store = self.responses.store().clone();
        let responses = Responses::new(limits(store, &self.time), Metrics::new());
        let time = self.time.clone();
        Self { responses, time }
    }

    fn wait(&self, seconds: u64) {
        self.time.fetch_add(seconds, Ordering::Relaxed);
    }

    async fn keep(&self, tenant: TenantKey, said: &str, before: Option<Pinned>) -> ResponseId {
        let record = turn(tenant, self.responses.now(), said, before.as_ref());
        self.responses.keep(tenant, &record, before).await.unwrap();
        record.id
    }

    /// What was said in a conversation.
    async fn read(&self, tenant: TenantKey, id: ResponseId) -> Result<Vec<String>> {
        let pinned = self.responses.go_on(tenant, id).await?;
        let records = pinned.read().await?;
        let said = records.iter().map(|bytes| Record::parse(bytes, tenant));
        said.map(|record| Ok(record?.output)).collect()
    }

    /// Keys in the store, once nothing is left to remove.
    async fn keys(&self) -> BTreeSet<String> {
        while !self.responses.index().is_clean() {
            self.responses.sweep();
            tokio::task::yield_now().await;
        }
        // What was taken to be removed is removed behind this.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        let found = self.responses.store().list(FOLDER).await.unwrap();
        found.into_iter().map(|object| object.key).collect()
    }
}

fn turn(tenant: TenantKey, now: u64, said: &str, before: Option<&Pinned>) -> Record {
    let parent = before.map(Pinned::id);
    let mut record = Record::begin(tenant, parent, now, "m".into(), Asked::default());
    record.input = vec![Message {
        role: "user".into(),
        text: "?".into(),
    }];
    record.output = said.into();
    record
}

fn tenants() -> [TenantKey; 2] {
    [TenantKey::of(None), TenantKey::of(Some("a"))]
}

/// One thing that happens. Numbers name responses in the order of their making, round and round.
#[derive(Debug, Clone)]
enum Act {
    Begin {
        tenant: usize,
    },
    GoOn {
        from: usize,
    },
    Delete {
        which: usize,
    },
    Wait {
        seconds: u64,
    },
    Restart,
    /// A request holds one, which is deleted and expires meanwhile, and then keeps its turn.
    Outlive {
        from: usize,
    },
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        2 => (0..2usize).prop_map(|tenant| Act::Begin { tenant }),
        6 => (0..64usize).prop_map(|from| Act::GoOn { from }),
        3 => (0..64usize).prop_map(|which| Act::Delete { which }),
        2 => (1..60u64).prop_map(|seconds| Act::Wait { seconds }),
        1 => Just(Act::Restart),
        1 => (0..64usize).prop_map(|from| Act::Outlive { from }),
    ]
}

/// A response as the plain model has it: with its whole conversation.
#[derive(Debug, Clone)]
struct Plain {
    id: ResponseId,
    tenant: TenantKey,
    parent: Option<usize>,
    created: u64,
    said: Vec<String>,
    is_deleted: bool,
}

struct Both {
    kept: Kept,
    plain: Vec<Plain>,
}

impl Both {
    fn now(&self) -> u64 {
        self.kept.responses.now()
    }

    fn is_shown(&self, which: usize) -> bool {
        let plain = &self.plain[which];
        !plain.is_deleted && plain.created + TTL > self.now()
    }

    /// Whether the store has to have its record: it is shown, or one that goes on from it is.
    fn is_needed(&self, which: usize) -> bool {
        let children = (0..self.plain.len()).filter(|&one| self.plain[one].parent == Some(which));
        self.is_shown(which) || children.into_iter().any(|child| self.is_needed(child))
    }

    async fn add(&mut self, tenant: TenantKey, parent: Option<usize>, before: Option<Pinned>) {
        let said = format!("turn {}", self.plain.len());
        let id = self.kept.keep(tenant, &said, before).await;
        let mut all = parent.map_or(Vec::new(), |parent| self.plain[parent].said.clone());
        all.push(said);
        self.plain.push(Plain {
            id,
            tenant,
            parent,
            created: self.now(),
            said: all,
            is_deleted: false,
        });
    }

    async fn act(&mut self, act: Act) {
        let named = |number: usize| (!self.plain.is_empty()).then(|| number % self.plain.len());
        match act {
            Act::Begin { tenant } => self.add(tenants()[tenant], None, None).await,
            Act::GoOn { from } => {
                let Some(from) = named(from) else { return };
                let Plain { id, tenant, .. } = self.plain[from];
                if let Ok(before) = self.kept.responses.go_on(tenant, id).await {
                    self.add(tenant, Some(from), Some(before)).await;
                }
            }
            Act::Delete { which } => {
                let Some(which) = named(which) else { return };
                let Plain { id, tenant, .. } = self.plain[which];
                let deleted = self.kept.responses.delete(tenant, id).await;
                assert_eq!(deleted.is_ok(), self.is_shown(which));
                self.plain[which].is_deleted = true;
            }
            Act::Wait { seconds } => self.kept.wait(seconds),
            Act::Restart => {
                self.kept.keys().await;
                self.kept = self.kept.again();
            }
            Act::Outlive { from } => {
                let Some(from) = named(from) else { return };
                let Plain { id, tenant, .. } = self.plain[from];
                let Ok(before) = self.kept.responses.go_on(tenant, id).await else {
                    return;
                };
                self.kept.responses.delete(tenant, id).await.unwrap();
                self.plain[from].is_deleted = true;
                self.kept.wait(TTL);
                self.add(tenant, Some(from), Some(before)).await;
            }
        }
    }

    async fn assert_equal(&self) {
        for (which, plain) in self.plain.iter().enumerate() {
            let found = self.kept.read(plain.tenant, plain.id).await;
            let expected = self.is_shown(which).then(|| plain.said.clone());
            assert_eq!(found.ok(), expected, "{which}");
            for other in tenants() {
                if other != plain.tenant {
                    let foreign = self.kept.read(other, plain.id).await;
                    assert_eq!(foreign, Err(Error::Unknown));
                }
            }
        }
        let needed = (0..self.plain.len()).filter(|&which| self.is_needed(which));
        let needed: BTreeSet<_> = needed.map(|which| self.plain[which].id.digits()).collect();
        let held = self.kept.keys().await.into_iter().filter_map(|key| {
            let is_record = !key.ends_with(".deleted");
            is_record.then(|| key.split('-').nth(1).unwrap_or_default().to_owned())
        });
        assert_eq!(held.collect::<BTreeSet<_>>(), needed);
        assert_eq!(self.kept.responses.held().0, needed.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Deleted, expired, held, restarted: a conversation is whole or unknown, and the store holds
    /// what somebody can still ask for and nothing else.
    #[test]
    fn chains_are_those_of_a_plain_model(acts in prop::collection::vec(act(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let kept = Kept::new(Store::memory());
            let mut both = Both { kept, plain: Vec::new() };
            for act in acts {
                both.act(act).await;
                both.assert_equal().await;
            }
        });
    }
}

/// A chain of 100 turns takes the bytes of 100 turns.
#[tokio::test]
async fn a_turn_costs_its_own_bytes_however_long_the_conversation() {
    let kept = Kept::new(Store::memory());
    let tenant = tenants()[0];
    let mut last = kept.keep(tenant, &"x".repeat(1000), None).await;
    let (_, first) = kept.responses.held();
    for _ in 1..100 {
        let before = kept.responses.go_on(tenant, last).await.unwrap();
        last = kept.keep(tenant, &"x".repeat(1000), Some(before)).await;
    }
    let (count, bytes) = kept.responses.held();
    assert_eq!(count, 100);
    assert!(
        bytes < 100 * (first + 50),
        "{bytes} bytes, the first took {first}"
    );
    assert_eq!(kept.read(tenant, last).await.unwrap().len(), 100);
}

#[tokio::test]
async fn the_tenant_that_has_most_makes_room_with_what_it_used_least_recently() {
    let kept = Kept::new(Store::memory());
    let limits = Limits {
        max_responses: 4,
        ..kept.responses.0.limits.clone()
    };
    let responses = Responses::new(limits, Metrics::new());
    let kept = Kept { responses, ..kept };
    let [small, large] = tenants();
    let own = kept.keep(small, "mine", None).await;
    let first = kept.keep(large, "0", None).await;
    let second = kept.keep(large, "1", None).await;
    let third = kept.keep(large, "2", None).await;
    kept.read(large, first).await.unwrap();
    // It may not go while a request holds it.
    let held = kept.responses.pin(large, second).await.unwrap();
    let fourth = kept.keep(large, "3", None).await;
    assert_eq!(kept.read(large, third).await, Err(Error::Unknown));
    for (tenant, id) in [
        (small, own),
        (large, first),
        (large, second),
        (large, fourth),
    ] {
        kept.read(tenant, id).await.unwrap();
    }
    drop(held);
    assert_eq!(kept.keys().await.len(), 4);
    // A record that alone passes the bound pushes nothing out.
    let limits = Limits {
        max_bytes: 1000,
        ..kept.responses.0.limits.clone()
    };
    let responses = Responses::new(limits, Metrics::new());
    let record = turn(large, 1000, &"x".repeat(1000), None);
    let refused = responses.keep(large, &record, None).await;
    assert!(
        matches!(refused, Err(Error::TooLarge { most: 1000, .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_conversation_has_a_last_turn() {
    let kept = Kept::new(Store::memory());
    let limits = Limits {
        max_turns: 2,
        ..kept.responses.0.limits.clone()
    };
    let responses = Responses::new(limits, Metrics::new());
    let kept = Kept { responses, ..kept };
    let tenant = tenants()[0];
    let first = kept.keep(tenant, "0", None).await;
    let before = kept.responses.go_on(tenant, first).await.unwrap();
    let second = kept.keep(tenant, "1", Some(before)).await;
    let refused = kept.responses.go_on(tenant, second).await.map(|_| ());
    assert_eq!(refused, Err(Error::TooLong { turns: 2, most: 2 }));
    // It can still be read and deleted.
    kept.responses.pin(tenant, second).await.unwrap();
    kept.responses.delete(tenant, second).await.unwrap();
}

/// A store that cannot be written: a file stands where the folder of the tenant should be.
#[tokio::test]
async fn a_store_that_fails_leaves_nothing_half_kept() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().display().to_string()).unwrap();
    let kept = Kept::new(store);
    let tenant = tenants()[0];
    let first = kept.keep(tenant, "0", None).await;
    let folder = directory.path().join(FOLDER).join(tenant.to_string());
    let aside = directory.path().join("aside");
    std::fs::rename(&folder, &aside).unwrap();
    std::fs::write(&folder, "no folder").unwrap();

    let before = kept.responses.go_on(tenant, first).await.unwrap();
    let record = turn(tenant, 1000, "1", Some(&before));
    let refused = kept.responses.keep(tenant, &record, Some(before)).await;
    assert!(matches!(refused, Err(Error::Store(_))), "{refused:?}");
    assert_eq!(kept.responses.held().0, 1);
    assert_eq!(
        kept.responses.pin(tenant, record.id).await.map(|_| ()),
        Err(Error::Unknown)
    );
    assert!(kept.read(tenant, first).await.is_err());

    std::fs::remove_file(&folder).unwrap();
    std::fs::rename(&aside, &folder).unwrap();
    assert_eq!(kept.read(tenant, first).await.unwrap(), ["0"]);
    // A process that starts now finds the first one alone.
    assert_eq!(kept.again().read(tenant, first).await.unwrap(), ["0"]);
}

#[tokio::test]
async fn a_damaged_record_is_found_and_never_served() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().display().to_string()).unwrap();
    let kept = Kept::new(store);
    let tenant = tenants()[0];
    let first = kept.keep(tenant, "zero", None).await;
    let before = kept.responses.go_on(tenant, first).await.unwrap();
    let last = kept.keep(tenant, "one", Some(before)).await;
    let name = kept.responses.pin(tenant, first).await.unwrap().own();
    let path = directory.path().join(name.key());
    let whole = std::fs::read(&path).unwrap();
    for at in (0..whole.len()).step_by(7) {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        std::fs::write(&path, damaged).unwrap();
        let found = kept.read(tenant, last).await;
        assert!(
            matches!(found, Err(Error::Damaged { .. })),
            "{at}: {found:?}"
        );
    }
    for length in [0, 1, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        let found = kept.read(tenant, last).await;
        assert!(
            matches!(found, Err(Error::Damaged { .. })),
            "{length}: {found:?}"
        );
    }
    std::fs::remove_file(&path).unwrap();
    assert_eq!(kept.read(tenant, last).await, Err(Error::Unknown));
    // The last turn alone can still be shown.
    let own = kept
        .responses
        .pin(tenant, last)
        .await
        .unwrap()
        .read_own()
        .await;
    assert_eq!(Record::parse(&own.unwrap(), tenant).unwrap().output, "one");
}

#[test]
fn records_of_others_are_refused() {
    let [tenant, other] = tenants();
    let record = turn(tenant, 7, "secret", None);
    let written = record.write();
    assert_eq!(Record::parse(&written, tenant).unwrap(), record);
    let text = String::from_utf8(written.clone()).unwrap();
    let later = text.replace("\"version\":1", "\"version\":2");
    let unlike = later.replace("\"output\"", "\"outputs\"");
    let no_record = text.replace("\"output\"", "\"outputs\"");
    for (bytes, tenant, expected) in [
        (text.as_bytes(), other, "another tenant's"),
        (later.as_bytes(), tenant, "another version"),
        (unlike.as_bytes(), tenant, "another version"),
        (no_record.as_bytes(), tenant, "no record"),
        (b"{}", tenant, "no record"),
    ] {
        let error = Record::parse(bytes, tenant).unwrap_err().to_string();
        assert!(
            error.contains(expected) && !error.contains("secret"),
            "{error}"
        );
    }
}

/// A crash between the record and its marker, in either order, shows nothing that was deleted.
#[tokio::test]
async fn what_a_crash_leaves_of_a_removal_is_removed_at_the_next_start() {
    let store = Store::memory();
    let kept = Kept::new(store.clone());
    let tenant = tenants()[0];
    let id = kept.keep(tenant, "0", None).await;
    let name: Name = kept.responses.pin(tenant, id).await.unwrap().own();
    // The marker was written, and the process died before the record was removed.
    let marker = format!("{}.deleted", name.key());
    store.put(&marker, Bytes::new()).await.unwrap();
    store
        .put("responses/unlike/any", Bytes::new())
        .await
        .unwrap();
    let again = kept.again();
    assert_eq!(again.read(tenant, id).await, Err(Error::Unknown));
    let left = BTreeMap::from([("responses/unlike/any".to_owned(), ())]);
    assert!(again.keys().await.iter().eq(left.keys()));
    // The record was removed, and the process died before the marker was.
    store.put(&marker, Bytes::new()).await.unwrap();
    let again = kept.again();
    assert_eq!(again.read(tenant, id).await, Err(Error::Unknown));
    assert!(again.keys().await.iter().eq(left.keys()));
}

#[tokio::test(start_paused = true)]
async fn what_expires_is_removed_though_nobody_asks() {
    let kept = Kept::new(Store::memory());
    let tenant = tenants()[0];
    kept.keep(tenant, "0", None).await;
    let gauges = |kept: &Kept| {
        let text = kept.responses.0.metrics.encode();
        let found = text
            .lines()
            .find(|line| line.starts_with("palimpsest_responses "));
        found.map(str::to_owned)
    };
    assert_eq!(gauges(&kept).as_deref(), Some("palimpsest_responses 1"));
    kept.wait(TTL + 1);
    tokio::time::sleep(PAUSE + std::time::Duration::from_secs(1)).await;
    assert_eq!(gauges(&kept).as_deref(), Some("palimpsest_responses 0"));
    assert_eq!(kept.keys().await.len(), 0);
}
