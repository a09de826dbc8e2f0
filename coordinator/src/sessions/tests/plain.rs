//! Sessions of plain text and token ids: what a log holds, and what the model reads.

use super::*;

#[tokio::test]
async fn a_log_is_what_was_read_and_what_was_said() {
    let server = Server::start(Limits::default()).await;
    let made = server.create("doc").await;
    assert_eq!((made.tokens, made.messages), (0, 0));
    assert_eq!(made.state(), SessionState::Idle);
    assert!(made.expires > made.created && made.record_bytes > 0);

    let read = server.append("doc", append_request::Input::Text("the ".into()));
    let tokens = read.await.unwrap();
    assert_eq!(tokens, ids(&server, "the ").len() as u64);
    let said = server
        .generate(request("doc", text("hello"), 5))
        .await
        .unwrap();
    assert_eq!(said.text.len(), 5);

    // The same without a session, in one piece.
    let whole = [ids(&server, "the "), ids(&server, "hello")].concat();
    let alone = GenerateRequest {
        input: Some(Input::TokenIds(TokenIds { ids: whole.clone() })),
        ..request("", None, 5)
    };
    assert_eq!(server.generate(alone).await.unwrap().text, said.text);
    let log = server.log("doc").await;
    assert_eq!(log.tokens, [whole, ids(&server, &said.text)].concat());
    assert_eq!(
        said.finished.usage.unwrap().prompt_tokens + 5,
        log.tokens.len() as u64
    );
    assert_eq!(log.pending, "");

    // Ids go behind it as they are, and without an input the model goes on.
    let more = Some(Input::TokenIds(TokenIds { ids: vec![7, 8] }));
    server.generate(request("doc", more, 1)).await.unwrap();
    server.generate(request("doc", None, 3)).await.unwrap();
    let grown = server.log("doc").await.tokens;
    assert_eq!(grown[..log.tokens.len()], log.tokens[..]);
    assert_eq!(grown[log.tokens.len()..][..2], [7, 8]);
    assert_eq!(grown.len(), log.tokens.len() + 2 + 1 + 3);
    let shown = server.show("doc").await.unwrap();
    assert_eq!(shown.tokens, grown.len() as u64);
}

#[tokio::test]
async fn the_token_that_ends_an_answer_is_not_in_the_log() {
    let server = Server::with(Script::saying("Hi", 0, 1), Limits::default()).await;
    server.create("s").await;
    let said = server.generate(request("s", text("x"), 9)).await.unwrap();
    assert_eq!(said.text, "Hi");
    let log = server.log("s").await;
    assert_eq!(log.tokens, [ids(&server, "x"), ids(&server, "Hi")].concat());
}

/// A stop string may begin in the middle of a token, and what was delivered of it is tokenised with
/// the next input.
#[tokio::test]
async fn an_answer_that_a_stop_string_cut_keeps_what_was_delivered() {
    // `hello` is one token of the fake tokenizer, and the stop string begins at its `l`.
    let hello = ids(&Server::start(Limits::default()).await, "hello")[0];
    let answer = Arc::new(move |tokens: &[u32], prompt: usize| {
        let said = [u32::from(b'a'), u32::from(b'b'), hello];
        said.get(tokens.len() - prompt)
            .copied()
            .unwrap_or(u32::from(b'z'))
    });
    let server = Server::with(Script::answering(answer, 0, 1), Limits::default()).await;
    server.create("s").await;
    let mut asked = request("s", text("x"), 9);
    asked.stopping.as_mut().unwrap().stop = vec!["ll".into()];
    let said = server.generate(asked).await.unwrap();
    assert_eq!(said.text, "abhe");
    let log = server.log("s").await;
    assert_eq!(log.tokens, ids(&server, "xab"));
    assert_eq!(log.pending, "he");

    server
        .append("s", append_request::Input::Text("llo".into()))
        .await
        .unwrap();
    let log = server.log("s").await;
    assert_eq!(log.tokens, [ids(&server, "xab"), vec![hello]].concat());
    assert_eq!(log.pending, "");
}

/// Half a character at the end of an answer was delivered as U+FFFD, and stays that.
#[tokio::test]
async fn half_a_character_is_what_was_delivered_of_it() {
    let answer = Arc::new(
        |tokens: &[u32], prompt: usize| match tokens.len() - prompt {
            0 => u32::from(b'a'),
            _ => 0xf0,
        },
    );
    let server = Server::with(Script::answering(answer, 0, 1), Limits::default()).await;
    server.create("s").await;
    let said = server.generate(request("s", text("x"), 2)).await.unwrap();
    assert_eq!(said.text, "a\u{FFFD}");
    let log = server.log("s").await;
    assert_eq!(
        (log.tokens, log.pending),
        (ids(&server, "xa"), "\u{FFFD}".to_owned())
    );
}

#[tokio::test]
async fn an_answer_whose_client_goes_away_leaves_the_log_as_it_was() {
    let script = Script::endless(0, 1).with_step_time(Duration::from_millis(5));
    let server = Server::with(script, Limits::default()).await;
    server.create("s").await;
    server
        .append("s", append_request::Input::Text("kept".into()))
        .await
        .unwrap();
    let before = server.log("s").await;

    let mut answer = server.begin(request("s", text("lost"), 400)).await.unwrap();
    for _ in 0..4 {
        answer.next().await.unwrap().unwrap();
    }
    assert_eq!(
        server.show("s").await.unwrap().state(),
        SessionState::Running
    );
    drop(answer);
    assert_eq!(server.log("s").await, before);
    assert_eq!(server.show("s").await.unwrap().state(), SessionState::Idle);
    // It can be asked again.
    server
        .generate(request("s", text("lost"), 2))
        .await
        .unwrap();
}

#[tokio::test]
async fn an_answer_that_fails_leaves_the_log_as_it_was() {
    let script = Script::endless(0, 1).broken_by(u32::from(b'!'));
    let server = Server::with(script, Limits::default()).await;
    server.create("s").await;
    server
        .append("s", append_request::Input::Text("kept".into()))
        .await
        .unwrap();
    let before = server.log("s").await;
    let failed = server.generate(request("s", text("lost!"), 4)).await;
    assert_eq!(reason(failed), Reason::RankFailed);
    assert_eq!(server.log("s").await, before);
}
