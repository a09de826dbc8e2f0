//! Sessions over gRPC.

use palimpsest_proto::v1::sessions_client::SessionsClient;
use palimpsest_proto::v1::{
    AppendRequest, CreateSessionRequest, ForkSessionRequest, ListSessionsRequest, SessionRequest,
    SessionState, TokenIds, append_request,
};

use super::*;
use crate::keys::ApiKeys;

fn named(id: &str) -> SessionRequest {
    SessionRequest {
        session_id: id.into(),
    }
}

fn reason(status: &tonic::Status) -> &str {
    let reason = status.metadata().get(REASON_KEY).unwrap();
    reason.to_str().unwrap()
}

#[tokio::test]
async fn a_session_lives_from_its_creation_to_its_end() {
    let (coordinator, server, channel) =
        serve(Script::saying("Yes", 0, 1), Config::default()).await;
    assert!(coordinator.ready().await);
    let mut sessions = SessionsClient::new(channel.clone());
    let mut client = InferenceClient::new(channel);
    let made = sessions.create(CreateSessionRequest {
        session_id: "s".into(),
        kv: Some(KvContract {
            budget: 32,
            ..Default::default()
        }),
        ttl_seconds: 60,
    });
    let made = made.await.unwrap().into_inner();
    assert_eq!(
        (made.expires - made.created, made.kv.unwrap().budget),
        (60, 32)
    );
    let again = sessions.create(CreateSessionRequest {
        session_id: "s".into(),
        ..Default::default()
    });
    let status = again.await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status)),
        (Code::Aborted, "session_exists")
    );

    let ids = TokenIds { ids: vec![1, 2, 3] };
    let read = sessions.append(AppendRequest {
        session_id: "s".into(),
        input: Some(append_request::Input::TokenIds(ids)),
        ..Default::default()
    });
    let read = read.await.unwrap().into_inner();
    assert_eq!(read.session.unwrap().tokens, 3);
    assert_eq!(read.usage.unwrap().prompt_tokens, 3);
    let asked = GenerateRequest {
        session_id: "s".into(),
        ..request("x", 9)
    };
    let events = client.generate(asked.clone()).await.unwrap().into_inner();
    let events: Vec<_> = events.map(|event| event.unwrap()).collect().await;
    assert!(matches!(
        events.last().unwrap().event,
        Some(Event::Finished(_))
    ));
    let shown = sessions.show(named("s")).await.unwrap().into_inner();
    assert_eq!((shown.tokens, shown.state()), (7, SessionState::Idle));

    sessions.delete(named("s")).await.unwrap();
    for status in [
        sessions.show(named("s")).await.unwrap_err(),
        client.generate(asked).await.unwrap_err(),
    ] {
        assert_eq!(
            (status.code(), reason(&status)),
            (Code::NotFound, "session_unknown")
        );
    }
    server.shut_down().await;
}

#[tokio::test]
async fn sessions_are_copied_moved_and_listed() {
    let (coordinator, server, channel) = serve(Script::endless(0, 1), Config::default()).await;
    assert!(coordinator.ready().await);
    let mut sessions = SessionsClient::new(channel);
    let made = sessions.create(CreateSessionRequest {
        session_id: "s".into(),
        ..Default::default()
    });
    made.await.unwrap();
    let fork = ForkSessionRequest {
        session_id: "s".into(),
        new_session_id: "t".into(),
    };
    let copy = sessions.fork(fork).await.unwrap().into_inner();
    assert_eq!(copy.session_id, "t");
    let moved = sessions.suspend(named("t")).await.unwrap().into_inner();
    assert_eq!(moved.session.unwrap().state(), SessionState::Suspended);
    let moved = sessions.resume(named("t")).await.unwrap().into_inner();
    assert_eq!(moved.session.unwrap().state(), SessionState::Idle);
    let page = ListSessionsRequest {
        page_size: 1,
        ..Default::default()
    };
    let page = sessions.list(page).await.unwrap().into_inner();
    assert_eq!(
        (page.sessions.len(), page.next_page_token.as_str()),
        (1, "s")
    );
    server.shut_down().await;
}

#[tokio::test]
async fn sessions_ask_for_the_key_of_their_tenant() {
    // sha256("secret") and sha256("other")
    let keys = "research:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b\n\
                sales:d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa";
    let config = Config {
        keys: Some(std::sync::Arc::new(ApiKeys::parse(keys).unwrap())),
        ..Config::default()
    };
    let (coordinator, server, channel) = serve(Script::endless(0, 1), config).await;
    assert!(coordinator.ready().await);
    let mut sessions = SessionsClient::new(channel);
    let with = |key: &str, id: &str| {
        let mut request = Request::new(named(id));
        let value = format!("Bearer {key}").parse().unwrap();
        request.metadata_mut().insert("authorization", value);
        request
    };
    let refused = sessions.show(named("s")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let mut create = Request::new(CreateSessionRequest {
        session_id: "s".into(),
        ..Default::default()
    });
    let key = "Bearer secret".parse().unwrap();
    create.metadata_mut().insert("authorization", key);
    sessions.create(create).await.unwrap();
    sessions.show(with("secret", "s")).await.unwrap();
    let foreign = sessions.show(with("other", "s")).await.unwrap_err();
    assert_eq!(foreign.code(), Code::NotFound);
    server.shut_down().await;
}
