//! What is refused, by whom a session can be used, and how long it lives.

use super::*;
use crate::sessions::sweep::sweep;

fn contract(budget: u32) -> KvContract {
    KvContract {
        budget,
        ..Default::default()
    }
}

#[tokio::test]
async fn a_session_that_is_not_there_is_unknown() {
    let server = Server::start(Limits::default()).await;
    let sessions = &server.service().sessions;
    for id in ["never", "no/name", "../x", "é", &"x".repeat(65)] {
        let asked = server.generate(request(id, text("x"), 1)).await;
        assert_eq!(reason(asked), Reason::SessionUnknown, "{id}");
        assert_eq!(
            reason(sessions.fork(None, id, "copy").await),
            Reason::SessionUnknown
        );
        assert_eq!(
            reason(sessions.suspend(None, id).await),
            Reason::SessionUnknown
        );
        assert_eq!(
            reason(sessions.delete(None, id).await),
            Reason::SessionUnknown
        );
    }
    let error = server.show("never").await.unwrap_err();
    assert!(error.message.contains("make it"), "{error}");
    // A long name is not repeated whole.
    let error = server.show(&"x".repeat(5000)).await.unwrap_err();
    assert!(error.message.len() < 300, "{error}");
}

#[tokio::test]
async fn another_tenants_session_is_as_one_that_is_not_there() {
    let server = Server::start(Limits::default()).await;
    let (service, sessions) = (server.service(), &server.service().sessions);
    let (research, sales) = (of("research"), of("sales"));
    service.create_session(&research, named("s")).await.unwrap();
    let foreign = sessions.show(sales.tenant_name(), "s").await.unwrap_err();
    let unknown = sessions.show(sales.tenant_name(), "t").await.unwrap_err();
    assert_eq!(foreign.reason, Reason::SessionUnknown);
    assert_eq!(foreign.message.replace("\"s\"", "\"t\""), unknown.message);
    let asked = service
        .generate_for(&sales, request("s", text("x"), 1))
        .await;
    assert_eq!(reason(asked), Reason::SessionUnknown);
    assert_eq!(
        reason(sessions.show(None, "s").await),
        Reason::SessionUnknown
    );
    // Both have one of the same name, and lists hold one's own.
    service.create_session(&sales, named("s")).await.unwrap();
    service.create_session(&sales, named("u")).await.unwrap();
    let names = |page: crate::sessions::Page| {
        let names = page.sessions.into_iter().map(|one| one.session_id);
        names.collect::<Vec<_>>()
    };
    let listed = sessions.list(sales.tenant_name(), "", 0).await.unwrap();
    assert_eq!(names(listed), ["s", "u"]);
    sessions.delete(sales.tenant_name(), "s").await.unwrap();
    sessions.show(research.tenant_name(), "s").await.unwrap();
}

#[tokio::test]
async fn names_and_times_to_live_have_bounds() {
    let server = Server::start(Limits::default()).await;
    let service = server.service();
    for id in ["a b", "a/b", ".", "é", &"x".repeat(65)] {
        let refused = service
            .create_session(&Call::default(), named(id))
            .await
            .unwrap_err();
        assert_eq!(
            (refused.reason, refused.field),
            (Reason::BadSession, Some("session_id"))
        );
    }
    let long = CreateSessionRequest {
        ttl_seconds: u64::MAX,
        ..Default::default()
    };
    let refused = service
        .create_session(&Call::default(), long)
        .await
        .unwrap_err();
    assert_eq!(refused.field, Some("ttl_seconds"));
    let impossible = CreateSessionRequest {
        kv: Some(contract(3)),
        ..Default::default()
    };
    let refused = service.create_session(&Call::default(), impossible).await;
    assert_eq!(reason(refused), Reason::BadContract);
    let drawn = service
        .create_session(&Call::default(), named(""))
        .await
        .unwrap();
    assert_eq!(drawn.session_id.len(), 32);
    let again = service
        .create_session(&Call::default(), named(&drawn.session_id))
        .await;
    assert_eq!(reason(again), Reason::SessionExists);
}

#[tokio::test]
async fn one_request_at_a_time_works_on_a_session() {
    let script = Script::endless(0, 1).with_step_time(Duration::from_millis(5));
    let server = Server::with(script, Limits::default()).await;
    let sessions = &server.service().sessions;
    server.create("s").await;
    let running = server.begin(request("s", text("x"), 20)).await.unwrap();
    let second = server.generate(request("s", text("y"), 1)).await;
    assert_eq!(reason(second), Reason::SessionBusy);
    let append = server
        .append("s", append_request::Input::Text("y".into()))
        .await;
    assert_eq!(reason(append), Reason::SessionBusy);
    assert_eq!(
        reason(sessions.fork(None, "s", "copy").await),
        Reason::SessionBusy
    );
    assert_eq!(
        reason(sessions.suspend(None, "s").await),
        Reason::SessionBusy
    );
    assert_eq!(
        reason(sessions.resume(None, "s").await),
        Reason::SessionBusy
    );
    assert_eq!(
        reason(sessions.delete(None, "s").await),
        Reason::SessionBusy
    );
    let other = sessions.show(None, "copy").await;
    assert_eq!(reason(other), Reason::SessionUnknown, "nothing was copied");
    let said = ended(running).await.unwrap();
    // The client has read that it has finished, so it is free.
    let copy = sessions.fork(None, "s", "copy").await.unwrap();
    assert_eq!(copy.tokens, 1 + said.text.len() as u64);
}

/// A look at all sessions refused requests that came in the middle of it.
#[tokio::test]
async fn a_request_waits_while_the_service_itself_is_on_a_session() {
    use crate::sessions::index::By;
    let server = Server::start(Limits::default()).await;
    server.create("s").await;
    let records = &server.service().sessions.records;
    let key = records.find(None, "s").unwrap();
    let hold = records.index().hold(&key, By::Service).await.unwrap();
    assert_eq!(server.show("s").await.unwrap().state(), SessionState::Idle);
    let mut asked = Box::pin(server.generate(request("s", text("x"), 2)));
    assert!(futures::poll!(&mut asked).is_pending());
    drop(hold);
    asked.await.unwrap();
}

#[tokio::test]
async fn a_fork_goes_its_own_way() {
    let server = Server::start(Limits::default()).await;
    let sessions = &server.service().sessions;
    server.create("s").await;
    server.generate(request("s", text("the"), 3)).await.unwrap();
    let before = server.log("s").await;
    sessions.fork(None, "s", "copy").await.unwrap();
    let one = server.generate(request("s", text("x"), 4)).await.unwrap();
    let other = server
        .generate(request("copy", text("x"), 4))
        .await
        .unwrap();
    assert_eq!(one.text, other.text, "the same log has the same answer");
    server
        .append("copy", append_request::Input::Text("y".into()))
        .await
        .unwrap();
    assert!(server.log("copy").await.tokens.starts_with(&before.tokens));
    assert_ne!(server.log("copy").await, server.log("s").await);
    assert_eq!(
        reason(sessions.fork(None, "s", "copy").await),
        Reason::SessionExists
    );
    let bad = sessions.fork(None, "s", "a/b").await.unwrap_err();
    assert_eq!(bad.field, Some("new_session_id"));
}

#[tokio::test]
async fn a_session_has_one_contract() {
    let server = Server::start(Limits::default()).await;
    let asked = CreateSessionRequest {
        kv: Some(contract(40)),
        ..named("s")
    };
    let made = server
        .service()
        .create_session(&Call::default(), asked)
        .await
        .unwrap();
    let own = made.kv.unwrap();
    assert_eq!((own.budget, own.policy.as_str()), (40, "window"));
    let with = |kv| GenerateRequest {
        kv: Some(kv),
        ..request("s", text("x"), 1)
    };
    for same in [KvContract::default(), contract(40), own.clone()] {
        let said = server.begin(with(same)).await.unwrap();
        ended(said).await.unwrap();
    }
    let other = |change: fn(&mut KvContract)| {
        let mut kv = KvContract::default();
        change(&mut kv);
        kv
    };
    for (kv, field) in [
        (other(|kv| kv.budget = 41), "kv.budget"),
        (other(|kv| kv.policy = "full".into()), "kv.policy"),
        (other(|kv| kv.memory = "associative".into()), "kv.memory"),
        (
            other(|kv| kv.head_budget = "column".into()),
            "kv.head_budget",
        ),
        (other(|kv| kv.sinks = Some(0)), "kv.sinks"),
        (other(|kv| kv.window = Some(9)), "kv.window"),
        (
            other(|kv| kv.positions = "compacted".into()),
            "kv.positions",
        ),
        (other(|kv| kv.memory_slots = Some(2)), "kv.memory_slots"),
    ] {
        let refused = server.generate(with(kv)).await.unwrap_err();
        assert_eq!(
            (refused.reason, refused.field),
            (Reason::SessionContract, Some(field))
        );
    }
}

#[tokio::test]
async fn a_session_may_keep_everything() {
    let server = Server::start(Limits::default()).await;
    let asked = CreateSessionRequest {
        kv: Some(KvContract {
            policy: "full".into(),
            ..Default::default()
        }),
        ..named("s")
    };
    let call = Call::default();
    let made = server.service().create_session(&call, asked).await.unwrap();
    assert_eq!(made.kv.unwrap().policy, "full");
    server.generate(request("s", text("x"), 3)).await.unwrap();
    let bounded = GenerateRequest {
        kv: Some(contract(40)),
        ..request("s", text("x"), 3)
    };
    assert_eq!(
        reason(server.generate(bounded).await),
        Reason::SessionContract
    );
}

#[tokio::test]
async fn a_session_takes_one_prompt_and_one_answer() {
    let server = Server::start(Limits::default()).await;
    server.create("s").await;
    let choice = request("s", None, 1);
    let prompted = |choices| crate::service::Prompted {
        input: text("x"),
        choices,
        cuts: Vec::new(),
    };
    let two = vec![prompted(vec![choice.clone(), choice.clone()])];
    let refused = server
        .service()
        .generate_all(&Call::default(), two)
        .await
        .unwrap_err();
    assert_eq!(
        (refused.reason, refused.field),
        (Reason::BadSession, Some("n"))
    );
    let two = vec![prompted(vec![choice.clone()]), prompted(vec![choice])];
    let refused = server
        .service()
        .generate_all(&Call::default(), two)
        .await
        .unwrap_err();
    assert_eq!(refused.field, Some("prompt"));
    assert_eq!(
        reason(server.generate(request("s", None, 1)).await),
        Reason::EmptyPrompt
    );
    let unnamed = server
        .append("", append_request::Input::Text("x".into()))
        .await;
    assert_eq!(unnamed.unwrap_err().field, Some("session_id"));
    let outside = TokenIds { ids: vec![9999] };
    let outside = server
        .generate(request("s", Some(Input::TokenIds(outside)), 1))
        .await;
    assert_eq!(reason(outside), Reason::TokenOutOfRange);
}

#[tokio::test]
async fn sessions_have_bounds_in_number_and_tokens() {
    let limits = Limits {
        max_sessions: 3,
        max_tenant_sessions: 2,
        max_tokens: 100,
        ..Limits::default()
    };
    let server = Server::start(limits).await;
    let (service, sessions) = (server.service(), &server.service().sessions);
    server.create("a").await;
    server.create("b").await;
    let third = service
        .create_session(&Call::default(), named("c"))
        .await
        .unwrap_err();
    assert_eq!(third.reason, Reason::SessionLimit);
    assert!(
        third.message.contains("2 sessions of this client"),
        "{third}"
    );
    let (research, sales) = (of("research"), of("sales"));
    service.create_session(&research, named("a")).await.unwrap();
    let fourth = service
        .create_session(&sales, named("a"))
        .await
        .unwrap_err();
    assert!(
        fourth.message.contains("3 sessions of this server"),
        "{fourth}"
    );
    sessions.delete(research.tenant_name(), "a").await.unwrap();
    service.create_session(&sales, named("a")).await.unwrap();

    let long = server
        .append("a", append_request::Input::Text("x".repeat(101)))
        .await;
    let long = long.unwrap_err();
    assert_eq!(
        (long.reason, long.field),
        (Reason::TooLong, Some("session_id"))
    );
    server
        .append("a", append_request::Input::Text("x".repeat(100)))
        .await
        .unwrap();
    // An answer may pass the limit, and then the log is full.
    let full = server.generate(request("a", None, 2)).await.unwrap();
    assert_eq!(full.text.len(), 2);
    assert_eq!(
        reason(server.generate(request("a", None, 1)).await),
        Reason::TooLong
    );
}

#[tokio::test]
async fn records_have_a_bound_in_bytes_together() {
    let limits = Limits {
        max_bytes: 900,
        ..Limits::default()
    };
    let server = Server::start(limits).await;
    server.create("a").await;
    let held = server.show("a").await.unwrap();
    let large = server
        .append("a", append_request::Input::Text("x".repeat(300)))
        .await;
    assert_eq!(reason(large), Reason::SessionLimit);
    assert_eq!(server.show("a").await.unwrap(), held);
    server
        .append("a", append_request::Input::Text("x".repeat(100)))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_page_holds_as_many_as_asked_for_and_says_where_the_next_begins() {
    let server = Server::start(Limits::default()).await;
    for id in ["b", "d", "a", "c", "e"] {
        server.create(id).await;
    }
    let sessions = &server.service().sessions;
    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let page = sessions.list(None, &after, 2).await.unwrap();
        assert!(page.sessions.len() <= 2);
        seen.extend(page.sessions.into_iter().map(|one| one.session_id));
        match page.next {
            Some(next) => after = next,
            None => break,
        }
    }
    assert_eq!(seen, ["a", "b", "c", "d", "e"]);
    assert_eq!(
        reason(sessions.list(None, "", 1001).await),
        Reason::BadSession
    );
    assert_eq!(
        reason(sessions.list(None, "a b", 1).await),
        Reason::BadSession
    );
}

#[tokio::test(start_paused = true)]
async fn a_session_that_nobody_uses_leaves_memory_and_is_forgotten() {
    let limits = Limits {
        ttl: Duration::from_secs(600),
        suspend_after: Duration::from_secs(60),
        ..Limits::default()
    };
    let server = Server::start(limits.clone()).await;
    let sessions = &server.service().sessions;
    server.create("s").await;
    let short = CreateSessionRequest {
        ttl_seconds: 100,
        ..named("short")
    };
    server
        .service()
        .create_session(&Call::default(), short)
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(50)).await;
    server
        .append("s", append_request::Input::Text("x".into()))
        .await
        .unwrap();
    assert_eq!(server.show("s").await.unwrap().state(), SessionState::Idle);
    tokio::time::sleep(Duration::from_secs(49)).await;
    server.show("short").await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Before anybody looks.
    assert_eq!(reason(server.show("short").await), Reason::SessionUnknown);
    assert_eq!(
        reason(sessions.delete(None, "short").await),
        Reason::SessionUnknown
    );
    assert_eq!(sessions.list(None, "", 0).await.unwrap().sessions.len(), 1);
    // Its name is free for another one.
    server.create("short").await;

    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(
        server.show("s").await.unwrap().state(),
        SessionState::Suspended
    );
    server.generate(request("s", text("y"), 1)).await.unwrap();
    assert_eq!(server.show("s").await.unwrap().state(), SessionState::Idle);
    tokio::time::sleep(Duration::from_secs(620)).await;
    sweep(&sessions.records).await;
    assert_eq!(sessions.records.index().totals(), (0, 0));
    assert_eq!(
        limits.place.store().list("sessions").await.unwrap(),
        [],
        "no record is left"
    );
    let shown = server.service().metrics.encode();
    assert!(shown.contains("palimpsest_sessions 0"), "{shown}");
}

#[tokio::test]
async fn pins_are_told_of_sessions_that_move_and_go() {
    use crate::metrics::Metrics;
    use crate::model::ServedModel;
    use crate::sessions::pins::{MemoryPins, Pinned, conformance};
    use crate::sessions::{NewSession, Sessions};

    let state = |tokens: &[u32], tenant: Option<&str>| Pinned {
        tokens: tokens.into(),
        contract: palimpsest_proto::contract::Contract::Full,
        tenant: tenant.map(Arc::from),
    };
    let pins = MemoryPins::default();
    pins.keep(&state(&[1, 2], Some("a")));
    conformance(
        &pins,
        &state(&[1, 2], Some("a")),
        &state(&[1, 2], Some("b")),
    )
    .await;

    let model = ServedModel::new(vec![Script::endless(0, 1).rank]).unwrap();
    let pins = Arc::new(MemoryPins::default());
    let kept: Arc<dyn crate::sessions::pins::Pins> = pins.clone();
    let sessions = Sessions::new(Limits::default(), &model, kept, Metrics::new());
    let new = NewSession {
        id: "s".into(),
        contract: palimpsest_proto::contract::Contract::Full,
        ttl_seconds: 0,
    };
    sessions.create(None, new).await.unwrap();
    let mut turn = sessions.begin(None, "s").await.unwrap();
    let input = Some(Input::TokenIds(TokenIds { ids: vec![5, 6, 7] }));
    let config = Config::default();
    turn.extend(input, crate::sessions::Opening::Nothing, &model, &config)
        .unwrap();
    turn.commit().await.unwrap();
    pins.keep(&state(&[5, 6, 7], None));
    let moved = sessions.suspend(None, "s").await.unwrap();
    assert_eq!(moved.moved_bytes, 12);
    assert_eq!(moved.session.unwrap().state(), SessionState::Suspended);
    let moved = sessions.resume(None, "s").await.unwrap();
    assert_eq!(moved.moved_bytes, 12);
    assert_eq!(moved.session.unwrap().state(), SessionState::Idle);
    sessions.delete(None, "s").await.unwrap();
    use crate::sessions::pins::Pins;
    assert_eq!(pins.suspend(&state(&[5, 6, 7], None)).await.unwrap(), 0);
}
