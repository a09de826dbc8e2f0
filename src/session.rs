//! `palimpsest session`: what a running server keeps for its clients.

use palimpsest_proto::v1::sessions_client::SessionsClient;
use palimpsest_proto::v1::{self, SessionState, append_request};
use serde_json::{Value, json};
use tonic::transport::Channel;

use crate::client::{self, Server, contract_json, explain, keyed, usage_json};
use crate::{generate, term};

/// Sessions that are asked for at once.
const PAGE: u32 = 1000;

/// What to do.
#[derive(Debug)]
pub enum Config {
    /// Ask, going on from a session.
    Generate(Box<generate::Config>),
    /// Anything else.
    Manage {
        /// The server.
        server: Server,
        /// Sent as a bearer token.
        api_key: Option<String>,
        /// Whether answers are printed as JSON.
        json: bool,
        /// What is asked of it.
        action: Box<Action>,
    },
}

/// What is asked of a server. A session is meant by its name.
#[derive(Debug)]
pub enum Action {
    /// Make a session.
    Create {
        /// Its name; empty: the server makes one.
        session: String,
        /// Its contract; what is unset is the server's choice.
        kv: v1::KvContract,
        /// Seconds without use until it is forgotten; 0: the server's choice.
        ttl_seconds: u64,
    },
    /// Read without an answer.
    Append {
        /// The session.
        session: String,
        /// What is read.
        text: String,
        /// Whose message it is; `None`: plain text.
        role: Option<String>,
    },
    /// Make a copy.
    Fork {
        /// The session.
        session: String,
        /// Name of the copy; empty: the server makes one.
        copy: String,
    },
    /// Move its state out of memory.
    Suspend(String),
    /// Fetch its state.
    Resume(String),
    /// List all sessions.
    List,
    /// Say what is known of it.
    Show(String),
    /// Forget it.
    Delete(String),
}

/// Does it and prints what comes back.
///
/// # Errors
/// What the server refused, or why it cannot be reached.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let (server, api_key, json, action) = match config {
        Config::Generate(config) => return generate::run(*config).await,
        Config::Manage {
            server,
            api_key,
            json,
            action,
        } => (server, api_key, json, action),
    };
    let client = client::sessions(&server).await?;
    let asking = Asking {
        client,
        key: api_key,
    };
    let done = asking.act(*action).await?;
    if json {
        return Ok(term::emit(&format!("{}\n", done.json()))?);
    }
    Ok(term::emit(&done.text())?)
}

/// What came back.
enum Done {
    Session(v1::Session),
    /// With what it cost, or the bytes that moved.
    Changed(v1::Session, &'static str, Value),
    Sessions(Vec<v1::Session>),
    Gone(String),
}

struct Asking {
    client: SessionsClient<Channel>,
    key: Option<String>,
}

impl Asking {
    async fn act(mut self, action: Action) -> anyhow::Result<Done> {
        let key = self.key.take();
        let key = key.as_deref();
        let named = |session_id| keyed(v1::SessionRequest { session_id }, key);
        let client = &mut self.client;
        Ok(match action {
            Action::Create {
                session,
                kv,
                ttl_seconds,
            } => {
                let asked = v1::CreateSessionRequest {
                    session_id: session,
                    kv: Some(kv),
                    ttl_seconds,
                };
                let made = client.create(keyed(asked, key)?).await;
                Done::Session(made.map_err(explain)?.into_inner())
            }
            Action::Append {
                session,
                text,
                role,
            } => {
                let read = client
                    .append(keyed(append(session, text, role), key)?)
                    .await;
                let read = read.map_err(explain)?.into_inner();
                let usage = usage_json(&read.usage.unwrap_or_default());
                Done::Changed(read.session.unwrap_or_default(), "usage", usage)
            }
            Action::Fork { session, copy } => {
                let asked = v1::ForkSessionRequest {
                    session_id: session,
                    new_session_id: copy,
                };
                let copied = client.fork(keyed(asked, key)?).await;
                Done::Session(copied.map_err(explain)?.into_inner())
            }
            Action::Suspend(session) => {
                let moved = client.suspend(named(session)?).await;
                moved_session(moved.map_err(explain)?.into_inner())
            }
            Action::Resume(session) => {
                let moved = client.resume(named(session)?).await;
                moved_session(moved.map_err(explain)?.into_inner())
            }
            Action::List => Done::Sessions(list(client, key).await?),
            Action::Show(session) => {
                let shown = client.show(named(session)?).await;
                Done::Session(shown.map_err(explain)?.into_inner())
            }
            Action::Delete(session) => {
                let deleted = client.delete(named(session.clone())?).await;
                deleted.map_err(explain)?;
                Done::Gone(session)
            }
        })
    }
}

fn append(session_id: String, text: String, role: Option<String>) -> v1::AppendRequest {
    let input = match role {
        None => append_request::Input::Text(text),
        Some(role) => append_request::Input::Chat(v1::Chat {
            messages: vec![v1::ChatMessage::new(role, text)],
            ..Default::default()
        }),
    };
    v1::AppendRequest {
        session_id,
        input: Some(input),
        ..Default::default()
    }
}

fn moved_session(moved: v1::MovedResponse) -> Done {
    let session = moved.session.unwrap_or_default();
    Done::Changed(session, "moved_bytes", moved.moved_bytes.into())
}

/// All pages.
async fn list(
    client: &mut SessionsClient<Channel>,
    key: Option<&str>,
) -> anyhow::Result<Vec<v1::Session>> {
    let (mut sessions, mut page_token) = (Vec::new(), String::new());
    loop {
        let asked = v1::ListSessionsRequest {
            page_size: PAGE,
            page_token,
        };
        let page = client.list(keyed(asked, key)?).await;
        let page = page.map_err(explain)?.into_inner();
        sessions.extend(page.sessions);
        if page.next_page_token.is_empty() {
            return Ok(sessions);
        }
        page_token = page.next_page_token;
    }
}

impl Done {
    fn json(&self) -> Value {
        match self {
            Self::Session(session) => session_json(session),
            Self::Changed(session, name, value) => {
                let mut json = session_json(session);
                json[*name] = value.clone();
                json
            }
            Self::Sessions(sessions) => {
                let data: Vec<Value> = sessions.iter().map(session_json).collect();
                json!({"object": "list", "data": data})
            }
            Self::Gone(session) => {
                json!({"object": "session.deleted", "session_id": session, "deleted": true})
            }
        }
    }

    /// For people: a line for each session.
    fn text(&self) -> String {
        match self {
            Self::Session(session) | Self::Changed(session, ..) => line(session),
            Self::Sessions(sessions) => sessions.iter().map(line).collect(),
            Self::Gone(session) => format!("{session} is forgotten\n"),
        }
    }
}

fn line(session: &v1::Session) -> String {
    format!(
        "{}  {}, {} tokens, {} messages, record of {}\n",
        session.session_id,
        state(session),
        session.tokens,
        session.messages,
        term::bytes(session.record_bytes),
    )
}

fn state(session: &v1::Session) -> &'static str {
    match session.state() {
        SessionState::Running => "running",
        SessionState::Suspended => "suspended",
        SessionState::Damaged => "damaged",
        SessionState::Idle | SessionState::Unspecified => "idle",
    }
}

/// The stable JSON form of a session, as the server's HTTP API has it.
fn session_json(session: &v1::Session) -> Value {
    json!({
        "object": "session", "session_id": session.session_id, "state": state(session),
        "kv": session.kv.as_ref().map(contract_json), "tokens": session.tokens,
        "messages": session.messages, "created": session.created, "used": session.used,
        "expires": session.expires, "record_bytes": session.record_bytes,
    })
}
