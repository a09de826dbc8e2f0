//! `palimpsest chat`: a conversation in the terminal, with a server or a model in this process.

mod line;
mod retention;
mod talk;

use std::path::PathBuf;

use palimpsest_coordinator::Config as Limits;
use palimpsest_coordinator::LocalServer;
use palimpsest_proto::v1;

use self::line::{Lines, Said};
use self::talk::Talk;
use crate::client::{self, Server};
use crate::group::Group;
use crate::model::{self, ModelConfig};
use crate::texts;

const HELP: &str = "\
/budget N      entries per KV head from here on; the conversation is read again
/file PATH     puts a file before your next message
/forget        begins anew
/retention     shows how much the cache keeps of what was read
/system TEXT   what the model is told before the conversation, which begins anew
/help          this
/quit          ends, like Ctrl-D
A line that ends with \\ goes on in the next one, and so does text between lines of \"\"\".
Ctrl-C stops an answer. What came of it stays in the conversation.";

/// With whom, and how.
#[derive(Debug)]
pub struct Config {
    /// With whom.
    pub place: Place,
    /// The contract; what is unset is the server's choice.
    pub kv: v1::KvContract,
    /// How tokens are drawn.
    pub sampling: v1::Sampling,
    /// Tokens of an answer at most.
    pub max_tokens: u32,
    /// What the model is told before the conversation.
    pub system: Option<String>,
    /// File that keeps what was typed.
    pub history: Option<PathBuf>,
}

/// Who answers.
#[derive(Debug)]
pub enum Place {
    /// A running server.
    Server {
        /// The server.
        server: Server,
        /// Sent as a bearer token.
        api_key: Option<String>,
    },
    /// A model in this process.
    Here(Box<ModelConfig>),
}

/// A server in this process, while the conversation lasts.
struct Host {
    server: LocalServer,
    _group: Group,
}

/// Talks until the input ends.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let (server, api_key, host) = match config.place {
        Place::Server { server, api_key } => (server, api_key, None),
        Place::Here(model) => {
            let host = start(&model, &config.kv).await?;
            let server = Server {
                address: host.server.address.to_string(),
                ..Server::default()
            };
            (server, None, Some(host))
        }
    };
    let client = client::connect(&server).await?;
    let mut talk = Talk::new(client, api_key, config.kv, config.sampling);
    talk.set_max_tokens(config.max_tokens);
    talk.set_system(config.system);
    let mut lines = Lines::open(config.history.as_deref())?;
    talk.greet().await?;
    while let Some(said) = tokio::task::block_in_place(|| lines.next())? {
        match said {
            Said::Quit => break,
            Said::Nothing => {}
            Said::Help => println!("{HELP}"),
            Said::Unknown(command) => println!("/{command} is no command; /help lists them"),
            Said::Budget(asked) => match asked.parse() {
                Ok(budget) => talk.set_budget(budget),
                Err(_) => println!("/budget takes a number of entries, such as /budget 512"),
            },
            Said::Forget => talk.forget(),
            Said::System(text) => talk.set_system(Some(text).filter(|text| !text.is_empty())),
            Said::File(path) => match texts::read(path.as_ref()) {
                Ok(text) => talk.put_before(text),
                Err(error) => println!("{error:#}"),
            },
            Said::Retention => println!("{}", talk.retention()),
            Said::Message(text) => talk.ask(text).await?,
        }
    }
    lines.save();
    if let Some(host) = host {
        host.server.shut_down().await;
    }
    Ok(())
}

async fn start(model: &ModelConfig, kv: &v1::KvContract) -> anyhow::Result<Host> {
    let ranks = tokio::task::block_in_place(|| model::open_ranks(model, kv, 1))?;
    let mut group = Group::start(ranks, Limits::default(), None, None)?;
    group.ready().await?;
    let server = group.coordinator.serve_local().await?;
    Ok(Host {
        server,
        _group: group,
    })
}
