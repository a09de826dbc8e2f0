//! A store that fails, is slow, is damaged, or outlives its service.

use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use palimpsest_store::sealed;
use prost::Message;

use super::*;
use crate::sessions::sweep::sweep;

/// Limits over a directory.
fn over(directory: &tempfile::TempDir) -> Limits {
    let place = directory.path().display().to_string();
    Limits {
        place: Place::open(&place).unwrap(),
        ..Limits::default()
    }
}

async fn records(limits: &Limits) -> Vec<String> {
    let listed = limits.place.store().list("sessions").await.unwrap();
    listed.into_iter().map(|entry| entry.key).collect()
}

/// Turns that have begun leave their old records behind their clients' backs.
async fn settle(limits: &Limits, count: usize) {
    while records(limits).await.len() != count {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn what_was_acknowledged_outlives_the_service() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(over(&directory)).await;
    server.create("s").await;
    server.create("t").await;
    server
        .generate(request("s", text("the "), 4))
        .await
        .unwrap();
    server
        .generate(request("t", Some(Input::Chat(user("hi"))), 4))
        .await
        .unwrap();
    let (s, t) = (server.record("s").await, server.record("t").await);
    // A request that is under way when the process is killed.
    let _running = server.begin(request("s", text("lost"), 400)).await.unwrap();
    settle(&over(&directory), 2).await;

    let after = Server::start(over(&directory)).await;
    assert_eq!(
        after.show("s").await.unwrap().state(),
        SessionState::Suspended
    );
    assert_eq!(after.record("s").await, s);
    assert_eq!(after.record("t").await, t);
    let listed = after.service().sessions.list(None, "", 0).await.unwrap();
    assert_eq!(listed.sessions.len(), 2);
    assert_eq!(listed.sessions[0].tokens, s.log.tokens.len() as u64);
    let one = after.generate(request("s", text("x"), 3)).await.unwrap();
    let whole = [s.log.tokens, ids(&after, "x")].concat();
    let alone = Some(Input::TokenIds(TokenIds { ids: whole }));
    let other = after.generate(request("", alone, 3)).await.unwrap();
    assert_eq!(one.text, other.text);
}

#[tokio::test(start_paused = true)]
async fn what_was_forgotten_stays_so_after_a_start() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(over(&directory)).await;
    server.create("gone").await;
    server
        .service()
        .sessions
        .delete(None, "gone")
        .await
        .unwrap();
    server.create("old").await;
    // As if it had been made a day ago.
    let mut record = server.record("old").await;
    record.used -= 24 * 3600;
    let limits = over(&directory);
    let key = &records(&limits).await[0];
    limits
        .place
        .store()
        .put_sealed(key, &record.encode())
        .await
        .unwrap();

    let after = Server::start(over(&directory)).await;
    assert_eq!(reason(after.show("gone").await), Reason::SessionUnknown);
    assert_eq!(
        reason(after.generate(request("old", text("x"), 1)).await),
        Reason::SessionUnknown
    );
    assert_eq!(
        after
            .service()
            .sessions
            .list(None, "", 0)
            .await
            .unwrap()
            .sessions,
        []
    );
    sweep(&after.service().sessions.records).await;
    assert!(records(&limits).await.is_empty());
}

/// A write that was given up may come to be later, and a service may end between a write and the
/// removal of what it replaces.
#[tokio::test]
async fn a_wall_clock_that_was_set_between_two_starts_loses_nothing_and_keeps_nothing_for_ever() {
    let directory = tempfile::tempdir().unwrap();
    let at = |seconds: u64| Limits {
        clock: Clock::of(move || seconds),
        ..over(&directory)
    };
    let ttl = over(&directory).ttl.as_secs();
    Server::start(at(2_000_000_000)).await.create("s").await;
    // Set back by decades. What is used counts from now on.
    let server = Server::start(at(1000)).await;
    let shown = server.show("s").await.unwrap();
    assert_eq!(shown.expires, 2_000_000_000 + ttl);
    let input = append_request::Input::Text("one".into());
    server.append("s", input).await.unwrap();
    settle(&at(1000), 1).await;
    let server = Server::start(at(999 + ttl)).await;
    assert_eq!(server.show("s").await.unwrap().expires, 1000 + ttl);
    let server = Server::start(at(1000 + ttl)).await;
    let error = server.show("s").await.unwrap_err();
    assert_eq!(error.reason, Reason::SessionUnknown, "{error}");
}

#[tokio::test]
async fn of_two_versions_of_a_record_the_later_one_holds() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(over(&directory)).await;
    server.create("s").await;
    server
        .append("s", append_request::Input::Text("one".into()))
        .await
        .unwrap();
    let limits = over(&directory);
    settle(&limits, 1).await;
    let key = records(&limits).await.remove(0);
    let old = limits.place.store().get(&key, 9999).await.unwrap();
    server
        .append("s", append_request::Input::Text("two".into()))
        .await
        .unwrap();
    settle(&limits, 1).await;
    limits.place.store().put(&key, old).await.unwrap();
    assert_eq!(records(&limits).await.len(), 2);

    let after = Server::start(over(&directory)).await;
    assert_eq!(after.log("s").await.tokens, ids(&after, "onetwo"));
    settle(&limits, 1).await;
}

#[tokio::test]
async fn a_damaged_record_is_found_and_never_served() {
    let directory = tempfile::tempdir().unwrap();
    let limits = over(&directory);
    let server = Server::start(limits.clone()).await;
    server.create("s").await;
    let record = server.record("s").await;
    let key = records(&limits).await.remove(0);
    let whole = sealed::seal(&record.encode());
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let mut future = record.clone().encode();
    // A second field of the same number goes before the first.
    future.extend([0x08, 2]);
    let mut other = record.clone();
    other.id = "t".into();
    let mut foreign = record.clone();
    foreign.tenant = "research".into();
    // What follows is read into the fields that came before.
    let kv = KvContract {
        positions: "sideways".into(),
        ..Default::default()
    };
    let mut meaningless = record.encode();
    let kv = palimpsest_proto::internal::v1::SessionRecord {
        kv: Some(kv),
        ..Default::default()
    };
    meaningless.extend(kv.encode_to_vec());
    for (bytes, why) in [
        (whole[..whole.len() / 2].to_vec(), "damaged"),
        (Vec::new(), "damaged"),
        (flipped, "damaged"),
        (sealed::seal(&future), "later version"),
        (sealed::seal(&other.encode()), "another session's"),
        (sealed::seal(&foreign.encode()), "another session's"),
        (sealed::seal(b"\xff\xff\xff"), "none"),
        (sealed::seal(b""), "digest"),
        (sealed::seal(&meaningless), "contract"),
    ] {
        limits.place.store().put(&key, bytes).await.unwrap();
        let after = Server::start(limits.clone()).await;
        let error = after
            .generate(request("s", text("x"), 1))
            .await
            .unwrap_err();
        assert_eq!(error.reason, Reason::SessionDamaged);
        assert!(error.message.contains(why), "{error} for {why}");
        assert_eq!(
            after.show("s").await.unwrap().state(),
            SessionState::Damaged
        );
        sweep(&after.service().sessions.records).await;
        let listed = after.service().sessions.list(None, "", 0).await.unwrap();
        assert_eq!(listed.sessions[0].state(), SessionState::Damaged);
        assert!(
            records(&limits).await.contains(&key),
            "it is left to people"
        );
    }
    let after = Server::start(limits.clone()).await;
    after.service().sessions.delete(None, "s").await.unwrap();
    assert!(records(&limits).await.is_empty());
}

#[tokio::test]
async fn a_session_of_another_model_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(over(&directory)).await;
    server.create("s").await;
    server
        .append("s", append_request::Input::Text("x".into()))
        .await
        .unwrap();
    let mut script = Script::endless(0, 1);
    script.rank.model.as_mut().unwrap().name = "other".into();
    let other = Server::with(script, over(&directory)).await;
    let error = other
        .generate(request("s", text("x"), 1))
        .await
        .unwrap_err();
    assert_eq!(error.reason, Reason::SessionModel);
    assert!(!error.message.contains("other\""), "{error}");
    // The same model with other options, as another digest of the group says.
    let mut script = Script::endless(0, 1);
    script.rank.digest = b"else"[..].into();
    let same = Server::with(script, over(&directory)).await;
    same.generate(request("s", text("x"), 1)).await.unwrap();
}

/// A store whose calls can be made to take longer than their limit.
struct Slow {
    objects: Arc<ThrottledStore<InMemory>>,
    limits: Limits,
}

impl Slow {
    fn new() -> Self {
        let throttled = ThrottledStore::new(InMemory::new(), ThrottleConfig::default());
        let objects = Arc::new(throttled);
        let store = Store::over(objects.clone(), Path::default(), "slow");
        let limits = Limits {
            place: Place::over(store),
            ..Limits::default()
        };
        Self { objects, limits }
    }

    fn slow_down(&self, change: fn(&mut ThrottleConfig)) {
        self.objects.config_mut(|config| {
            *config = ThrottleConfig::default();
            change(config);
        });
    }
}

const LONG: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_in_the_middle_leaves_the_session_as_it_was() {
    let slow = Slow::new();
    let server = Server::start(slow.limits.clone()).await;
    server.create("s").await;
    server
        .append("s", append_request::Input::Text("kept".into()))
        .await
        .unwrap();
    let before = server.record("s").await;

    slow.slow_down(|config| config.wait_put_per_call = LONG);
    let answer = server.begin(request("s", text("lost"), 4)).await.unwrap();
    assert_eq!(reason(ended(answer).await), Reason::StoreUnavailable);
    let append = server
        .append("s", append_request::Input::Text("lost".into()))
        .await;
    assert_eq!(reason(append), Reason::StoreUnavailable);
    let create = server
        .service()
        .create_session(&Call::default(), named("t"))
        .await;
    assert_eq!(reason(create), Reason::StoreUnavailable);
    let fork = server.service().sessions.fork(None, "s", "t").await;
    assert_eq!(reason(fork), Reason::StoreUnavailable);
    slow.slow_down(|config| config.wait_get_per_call = LONG);
    let read = server.generate(request("s", text("x"), 1)).await;
    assert_eq!(reason(read), Reason::StoreUnavailable);
    slow.slow_down(|config| config.wait_delete_per_call = LONG);
    let delete = server.service().sessions.delete(None, "s").await;
    assert_eq!(reason(delete), Reason::StoreUnavailable);

    slow.slow_down(|_| {});
    assert_eq!(server.record("s").await, before);
    assert_eq!(reason(server.show("t").await), Reason::SessionUnknown);
    server.create("t").await;
    server.generate(request("s", text("x"), 2)).await.unwrap();
    let again = Server::start(slow.limits.clone()).await;
    assert_eq!(again.log("s").await, server.log("s").await);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_cannot_be_listed_is_asked_again() {
    let slow = Slow::new();
    slow.slow_down(|config| config.wait_list_per_call = LONG);
    let server = Server::start(slow.limits.clone()).await;
    let refused = server
        .service()
        .create_session(&Call::default(), named("s"))
        .await;
    assert_eq!(reason(refused), Reason::StoreUnavailable);
    slow.slow_down(|_| {});
    server.create("s").await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_written_to_a_place_that_went_over_to_another_service() {
    let slow = Slow::new();
    let limits = Limits {
        place: slow.limits.place.claimed("first").await.unwrap(),
        ..slow.limits.clone()
    };
    let server = Server::start(limits).await;
    server.create("s").await;
    let taken = slow
        .limits
        .place
        .store()
        .put("owner", &b"second\n00\n0\n"[..])
        .await;
    taken.unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let append = server
        .append("s", append_request::Input::Text("x".into()))
        .await;
    let error = append.unwrap_err();
    assert_eq!(error.reason, Reason::StoreUnavailable);
    assert!(error.message.contains("another service"), "{error}");
    assert!(server.log("s").await.tokens.is_empty());
}

/// A record is read and written by one request, and never by all at once.
#[tokio::test]
async fn a_thousand_sessions_are_found_again_without_their_logs_in_memory() {
    let limits = Limits::default();
    let server = Server::start(limits.clone()).await;
    for number in 0..1000 {
        server.create(&format!("s{number}")).await;
    }
    server
        .append("s500", append_request::Input::Text("x".into()))
        .await
        .unwrap();
    settle(&limits, 1000).await;
    let after = Server::start(limits).await;
    let sessions = &after.service().sessions;
    sessions.open().await.unwrap();
    assert_eq!(sessions.records.index().totals().0, 1000);
    assert_eq!(after.log("s500").await.tokens.len(), 1);
    let page = sessions.list(None, "s998", 0).await.unwrap();
    assert_eq!(page.sessions.len(), 1);
}
