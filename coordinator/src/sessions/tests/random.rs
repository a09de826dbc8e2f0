//! Random operations against a plain model: a map from names to logs.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Act {
    Create(u8),
    Append(u8, String),
    Generate(u8, String, u8),
    /// The client goes away after so many events.
    Leave(u8, String, u8),
    Fork(u8, u8),
    Move(u8),
    Delete(u8),
    /// The service ends without a word and another one starts.
    Restart,
}

fn act() -> impl Strategy<Value = Act> {
    let name = || 0..4_u8;
    let words = || "[a-z ]{1,12}";
    prop_oneof![
        3 => name().prop_map(Act::Create),
        3 => (name(), words()).prop_map(|(name, words)| Act::Append(name, words)),
        4 => (name(), words(), 1..6_u8).prop_map(|(name, words, most)| {
            Act::Generate(name, words, most)
        }),
        1 => (name(), words(), 0..3_u8).prop_map(|(name, words, events)| {
            Act::Leave(name, words, events)
        }),
        2 => (name(), name()).prop_map(|(from, to)| Act::Fork(from, to)),
        1 => name().prop_map(Act::Move),
        1 => name().prop_map(Act::Delete),
        1 => Just(Act::Restart),
    ]
}

/// What sessions are, without anything else.
#[derive(Default)]
struct Model(HashMap<String, Vec<u32>>);

/// A service, the model beside it, and where its records are.
struct Pair {
    server: Server,
    limits: Limits,
    model: Model,
}

impl Pair {
    async fn act(&mut self, act: Act) {
        match act {
            Act::Create(name) => self.create(name.to_string()).await,
            Act::Append(name, words) => self.append(name.to_string(), words).await,
            Act::Generate(name, words, most) => {
                self.generate(name.to_string(), words, most.into()).await;
            }
            Act::Leave(name, words, events) => {
                let asked = request(&name.to_string(), text(&words), 40);
                if let Ok(mut answer) = self.server.begin(asked).await {
                    for _ in 0..events {
                        answer.next().await;
                    }
                }
            }
            Act::Fork(from, to) => self.fork(from.to_string(), to.to_string()).await,
            Act::Move(name) => {
                let name = name.to_string();
                let is_there = self.model.0.contains_key(&name);
                let sessions = &self.server.service().sessions;
                assert_eq!(sessions.suspend(None, &name).await.is_ok(), is_there);
                assert_eq!(sessions.resume(None, &name).await.is_ok(), is_there);
            }
            Act::Delete(name) => {
                let name = name.to_string();
                let is_there = self.model.0.remove(&name).is_some();
                let sessions = &self.server.service().sessions;
                assert_eq!(sessions.delete(None, &name).await.is_ok(), is_there);
            }
            Act::Restart => self.server = Server::start(self.limits.clone()).await,
        }
    }

    async fn create(&mut self, name: String) {
        let service = self.server.service();
        let made = service.create_session(&Call::default(), named(&name)).await;
        match self.model.0.entry(name) {
            Entry::Occupied(_) => assert_eq!(reason(made), Reason::SessionExists),
            Entry::Vacant(log) => {
                made.unwrap();
                log.insert(Vec::new());
            }
        }
    }

    async fn append(&mut self, name: String, words: String) {
        let new = ids(&self.server, &words);
        let input = append_request::Input::Text(words);
        let done = self.server.append(&name, input).await;
        match self.model.0.get_mut(&name) {
            None => assert_eq!(reason(done), Reason::SessionUnknown),
            Some(log) => {
                log.extend(new);
                assert_eq!(done.unwrap(), log.len() as u64);
            }
        }
    }

    async fn generate(&mut self, name: String, words: String, most: u32) {
        let said = self
            .server
            .generate(request(&name, text(&words), most))
            .await;
        match self.model.0.get_mut(&name) {
            None => assert_eq!(reason(said), Reason::SessionUnknown),
            Some(log) => {
                log.extend(ids(&self.server, &words));
                // The fake model says letters, each a token of its own.
                log.extend(said.unwrap().text.bytes().map(u32::from));
            }
        }
    }

    async fn fork(&mut self, from: String, to: String) {
        let logs = &mut self.model.0;
        let copied = self.server.service().sessions.fork(None, &from, &to).await;
        match (logs.get(&from).cloned(), logs.contains_key(&to)) {
            (None, _) => assert_eq!(reason(copied), Reason::SessionUnknown),
            (Some(_), true) => assert_eq!(reason(copied), Reason::SessionExists),
            (Some(log), false) => {
                copied.unwrap();
                logs.insert(to, log);
            }
        }
    }

    async fn check(&self) {
        let listed = self
            .server
            .service()
            .sessions
            .list(None, "", 0)
            .await
            .unwrap();
        let mut names: Vec<_> = self.model.0.keys().cloned().collect();
        names.sort();
        let found: Vec<_> = listed
            .sessions
            .iter()
            .map(|one| one.session_id.clone())
            .collect();
        assert_eq!(found, names);
        for (name, log) in &self.model.0 {
            assert_eq!(self.server.log(name).await.tokens, *log, "{name}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn sessions_are_what_a_map_of_logs_would_be(acts in prop::collection::vec(act(), 1..24)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let limits = Limits::default();
            let server = Server::start(limits.clone()).await;
            let mut pair = Pair {
                server,
                limits,
                model: Model::default(),
            };
            for act in acts {
                pair.act(act).await;
                pair.check().await;
            }
        });
    }
}
