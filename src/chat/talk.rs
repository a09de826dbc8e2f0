//! A conversation, as far as it has come.

use anyhow::Context;
use indicatif::ProgressBar;
use palimpsest_proto::error::{REASON_KEY, Reason};
use palimpsest_proto::v1;
use palimpsest_proto::v1::generate_event::Event;
use palimpsest_proto::v1::generate_request::Input;
use palimpsest_proto::v1::inference_client::InferenceClient;
use tokio::signal::ctrl_c;
use tonic::Status;
use tonic::transport::Channel;

use super::retention::picture;
use crate::client;
use crate::term;

/// A conversation with one server.
pub struct Talk {
    client: InferenceClient<Channel>,
    api_key: Option<String>,
    kv: v1::KvContract,
    sampling: v1::Sampling,
    max_tokens: u32,
    system: Option<String>,
    messages: Vec<v1::ChatMessage>,
    /// Goes before the next message.
    before: String,
    /// Of the last answer.
    last: Option<v1::Finished>,
    /// The server reports what is retained. It refuses that where a report would be too large.
    reports: bool,
}

/// How an answer ended.
struct Answered {
    text: String,
    /// `None`: it was stopped.
    finished: Option<v1::Finished>,
}

impl Talk {
    pub fn new(
        client: InferenceClient<Channel>,
        api_key: Option<String>,
        kv: v1::KvContract,
        sampling: v1::Sampling,
    ) -> Self {
        Self {
            client,
            api_key,
            kv,
            sampling,
            max_tokens: 0,
            system: None,
            messages: Vec::new(),
            before: String::new(),
            last: None,
            reports: true,
        }
    }

    /// Says who answers.
    ///
    /// # Errors
    /// If the server does not.
    pub async fn greet(&mut self) -> anyhow::Result<()> {
        let request = client::keyed(v1::GetModelRequest {}, self.api_key.as_deref())?;
        let model = self.client.get_model(request).await;
        let model = model.map_err(client::explain)?.into_inner();
        let kv = model.default_kv.unwrap_or_default();
        let budget = if self.kv.budget > 0 {
            self.kv.budget
        } else {
            kv.budget
        };
        eprintln!(
            "{}, {budget} entries per KV head; /help lists the commands",
            model.name
        );
        Ok(())
    }

    /// Tokens of an answer at most.
    pub const fn set_max_tokens(&mut self, most: u32) {
        self.max_tokens = most;
    }

    /// What the model is told first. The conversation begins anew.
    pub fn set_system(&mut self, text: Option<String>) {
        self.forget();
        self.system = text;
    }

    /// Entries per KV head from here on; 0: the server's default.
    pub const fn set_budget(&mut self, budget: u32) {
        self.kv.budget = budget;
    }

    /// A text that goes before the next message.
    pub fn put_before(&mut self, text: String) {
        self.before.push_str(&text);
        self.before.push_str("\n\n");
    }

    /// The conversation begins anew.
    pub fn forget(&mut self) {
        self.messages.clear();
        self.before.clear();
        self.last = None;
    }

    /// What the cache kept at the end of the last answer.
    pub fn retention(&self) -> String {
        let Some(finished) = &self.last else {
            return "nothing was asked yet".into();
        };
        let usage = finished.usage.clone().unwrap_or_default();
        match &finished.retention {
            Some(report) => picture(report, usage.prompt_tokens + usage.generated_tokens),
            None => "the server does not report what it keeps of so long a context".into(),
        }
    }

    /// Asks, and prints the answer. What the server refuses is printed too, and leaves the
    /// conversation as it was.
    ///
    /// # Errors
    /// If the output cannot be written.
    pub async fn ask(&mut self, text: String) -> anyhow::Result<()> {
        let content = format!("{}{text}", self.before);
        self.messages.push(message("user", content));
        let mut answered = self.answer().await?;
        if let Err(status) = &answered
            && self.reports
            && reason(status) == Some(Reason::AnswerTooLarge.tag())
        {
            self.reports = false;
            answered = self.answer().await?;
        }
        match answered {
            Ok(Answered { text, finished }) => {
                self.before.clear();
                self.messages.push(message("assistant", text));
                match finished {
                    Some(finished) => self.tell(finished),
                    None => eprintln!("(stopped)"),
                }
            }
            Err(status) => {
                self.messages.pop();
                eprintln!("{:#}", client::explain(status));
            }
        }
        Ok(())
    }

    /// The answer to the last message, printed as it comes, until Ctrl-C.
    async fn answer(&mut self) -> anyhow::Result<Result<Answered, Status>> {
        let request = client::keyed(self.request(), self.api_key.as_deref())?;
        let spinner = term::spinner("reading");
        let mut text = String::new();
        // Dropping it cancels the request.
        let asked = print(&mut self.client, request, &spinner, &mut text);
        let answered = tokio::select! {
            finished = asked => finished?.map(Some),
            stopped = ctrl_c() => {
                stopped.context("signals cannot be watched")?;
                term::emit("\n")?;
                Ok(None)
            }
        };
        spinner.finish_and_clear();
        Ok(answered.map(|finished| Answered { text, finished }))
    }

    fn request(&self) -> v1::GenerateRequest {
        let system = self
            .system
            .iter()
            .map(|text| message("system", text.clone()));
        let chat = v1::Chat {
            messages: system.chain(self.messages.iter().cloned()).collect(),
            ..Default::default()
        };
        v1::GenerateRequest {
            input: Some(Input::Chat(chat)),
            sampling: Some(self.sampling.clone()),
            stopping: Some(v1::Stopping {
                max_tokens: Some(self.max_tokens),
                ..Default::default()
            }),
            kv: Some(self.kv.clone()),
            retention_report: self.reports,
            ..Default::default()
        }
    }

    /// One line about an answer, and keeps its report.
    fn tell(&mut self, finished: v1::Finished) {
        let usage = finished.usage.clone().unwrap_or_default();
        let read = usage.prompt_tokens - usage.cached_tokens;
        let rate = match usage.generated_tokens {
            made if made > 1 && usage.decode_seconds > 0.0 => {
                format!(" at {:.0}/s", (made - 1) as f64 / usage.decode_seconds)
            }
            _ => String::new(),
        };
        eprintln!(
            "({read} tokens read, {} known; {} answered{rate}; cache {} of {})",
            usage.cached_tokens,
            usage.generated_tokens,
            term::bytes(usage.held_bytes),
            term::bytes(usage.full_cache_bytes),
        );
        for warning in &usage.warnings {
            eprintln!("warning: {warning}");
        }
        if finished.reason() == v1::FinishReason::Length {
            eprintln!("(cut at {} tokens: --max-tokens)", self.max_tokens);
        }
        self.last = Some(finished);
    }
}

/// Prints an answer and adds it to `text`, until it has finished.
async fn print(
    client: &mut InferenceClient<Channel>,
    request: tonic::Request<v1::GenerateRequest>,
    spinner: &ProgressBar,
    text: &mut String,
) -> anyhow::Result<Result<v1::Finished, Status>> {
    let mut events = match client.generate(request).await {
        Ok(events) => events.into_inner(),
        Err(status) => return Ok(Err(status)),
    };
    loop {
        let event = match events.message().await {
            Ok(event) => event.and_then(|event| event.event),
            Err(status) => return Ok(Err(status)),
        };
        match event {
            Some(Event::Delta(delta)) => {
                spinner.finish_and_clear();
                term::emit(&delta.text)?;
                text.push_str(&delta.text);
            }
            Some(Event::Finished(finished)) => {
                spinner.finish_and_clear();
                term::emit("\n")?;
                return Ok(Ok(finished));
            }
            Some(_) => {}
            None => {
                let message = "the server ended the stream without finishing the answer";
                return Ok(Err(Status::unavailable(message)));
            }
        }
    }
}

fn message(role: &str, content: String) -> v1::ChatMessage {
    v1::ChatMessage {
        role: role.into(),
        content,
        ..Default::default()
    }
}

/// The word for why a server refused.
fn reason(status: &Status) -> Option<&str> {
    status.metadata().get(REASON_KEY)?.to_str().ok()
}
