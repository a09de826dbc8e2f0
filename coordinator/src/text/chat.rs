//! Chat templates: the Jinja source that models ship, with the names that Hugging Face's
//! `apply_chat_template` defines.

mod conversation;
mod guard;
mod jinja;
mod plain_tools;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::{Environment, ErrorKind, Value};
use palimpsest_proto::v1::{Chat, Tool, ToolMode};

pub use self::conversation::chat_bytes;
use self::conversation::{Conversation, Words};
use self::guard::{Guard, Marks};
use super::error::Error;
use super::marks::{CHANNEL, MESSAGE, THINK_END, THINK_START};
use super::output::AnswerFormat;
use super::rendered::Rendered;
use super::tokenizer::Tokenizer;
use super::tools::{Begun, ToolCalls, ToolFormat};

const NAME: &str = "chat";
/// Steps that a template may take for any conversation, for each message, and for each byte of
/// text. Templates of models take some dozens for a message, and some look at all messages for each
/// of them.
const FUEL: u64 = 1_000_000;
const MESSAGE_FUEL: u64 = 10_000;
const BYTE_FUEL: u64 = 16;

/// A model's chat template, compiled.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
    source: String,
    guard: Guard,
    tools: ToolFormat,
    /// Answers begin with what the model thinks, between marks.
    thinks: bool,
    /// Messages have channels.
    channels: bool,
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// [`Error::Template`] if it is not valid Jinja.
    pub fn new(source: &str, bos_token: &str, eos_token: &str) -> Result<Self, Error> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function(
            "raise_exception",
            |message: String| -> Result<String, minijinja::Error> {
                Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
            },
        );
        environment.add_function("strftime_now", |format: &str| {
            let since = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            jinja::strftime(format, since.as_secs())
        });
        environment.add_filter("tojson", jinja::to_json);
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(|error| Error::Template(format!("{error:#}")))?;
        Ok(Self {
            environment,
            bos_token: bos_token.to_owned(),
            eos_token: eos_token.to_owned(),
            guard: Guard::default(),
            tools: ToolFormat::of(source),
            thinks: source.contains(THINK_END),
            channels: source.contains(CHANNEL) && source.contains(MESSAGE),
            source: source.to_owned(),
        })
    }

    /// The same template, whose conversations cannot spell control tokens of this tokenizer.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for a template of more literals than can be found.
    pub fn guarded(self, tokenizer: &Tokenizer) -> Result<Self, Error> {
        let guard = Guard::new(&self.source, tokenizer)?;
        Ok(Self { guard, ..self })
    }

    /// The prompt for a conversation: the messages, the opening of an answer, the answer's prefix.
    ///
    /// # Errors
    /// [`Error::Render`] with what the template says; it holds no text of the messages.
    /// [`Error::OutOfFuel`] for a template that goes on and on. [`Error::Chat`] for a field that is
    /// wrong.
    pub fn render(&self, chat: &Chat) -> Result<Rendered, Error> {
        self.render_with(chat, true)
    }

    /// The messages alone, behind which nothing is answered.
    ///
    /// # Errors
    /// As [`Self::render`].
    pub fn render_messages(&self, chat: &Chat) -> Result<Rendered, Error> {
        self.render_with(chat, false)
    }

    /// What the answer to a conversation is to be read as; `None`: as text, whatever it says.
    pub fn answer_format(&self, chat: &Chat, prompt: &Rendered) -> Option<AnswerFormat> {
        let tools = has_tools(chat).then(|| ToolCalls {
            format: self.tools,
            known: chat.tools.iter().map(|tool| tool.name.clone()).collect(),
            single: chat.single_call,
        });
        let begun = prompt.text().trim_end().ends_with(THINK_START);
        let thinks = (chat.split_reasoning && self.thinks && !self.channels).then_some(begun);
        if tools.is_none() && thinks.is_none() && !self.channels {
            return None;
        }
        let asked = |tool: &&Tool| chat.tool_name.is_empty() || tool.name == chat.tool_name;
        let asked = chat.tools.iter().filter(asked).filter(|_| tools.is_some());
        Some(AnswerFormat {
            begun: self.begun(chat, prompt),
            asked: asked.cloned().collect(),
            tools,
            thinks,
            forced: prompt.forced().to_owned(),
            channels: self.channels,
        })
    }

    /// How much of a call a prompt ends with.
    fn begun(&self, chat: &Chat, prompt: &Rendered) -> Begun {
        let is_required = has_tools(chat) && chat.tool_mode() == ToolMode::Required;
        let has_opening = !chat.no_opening && !chat.continue_final_message;
        if !is_required || prompt.forced().is_empty() && !(self.channels && has_opening) {
            Begun::Nothing
        } else if chat.tool_name.is_empty() {
            Begun::Call
        } else {
            Begun::Arguments
        }
    }

    fn render_with(&self, chat: &Chat, answers: bool) -> Result<Rendered, Error> {
        let chat = self.in_words_of_the_template(chat)?;
        // Those that were put in words are not shown twice.
        let shows_tools = has_tools(&chat) && self.tools != ToolFormat::Plain;
        let conversation = Conversation::read(&chat, shows_tools)?;
        let marks = Marks::unused(|mark| self.source.contains(mark) || conversation.has(mark));
        let marks = marks.ok_or(Error::NoMark)?;
        let words = Words::new(&self.guard, marks);
        let has_opening = answers && !chat.no_opening && !chat.continue_final_message;
        let mut text = self.run(&conversation, &words, has_opening)?;
        if chat.continue_final_message {
            let end = text.rfind(marks.end).ok_or_else(|| Error::Chat {
                field: "chat.continue_final_message",
                message: "the model's chat template leaves the last message out, so it cannot be \
                          continued"
                    .to_owned(),
            })?;
            text.truncate(end);
        }
        let mut prompt = Rendered::from_marked(&text, marks.place);
        if answers {
            let prefix = words.marked(&chat.answer_prefix);
            prompt.push_marked(&prefix, marks.place);
        }
        if has_opening && has_tools(&chat) && chat.tool_mode() == ToolMode::Required {
            self.force_call(&mut prompt, &chat);
        }
        Ok(prompt)
    }

    /// Runs the template.
    fn run(
        &self,
        conversation: &Conversation<'_>,
        words: &Words<'_>,
        has_opening: bool,
    ) -> Result<String, Error> {
        let fuel = fuel(conversation);
        // Fuel belongs to an environment. A copy shares the compiled template.
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel));
        let template = environment
            .get_template(NAME)
            .map_err(|error| Error::Template(error.to_string()))?;
        let own = [
            ("messages", conversation.messages(words)),
            ("tools", conversation.tools(words)),
            ("add_generation_prompt", Value::from(has_opening)),
            ("bos_token", Value::from(self.bos_token.as_str())),
            ("eos_token", Value::from(self.eos_token.as_str())),
        ];
        let own = own.map(|(name, value)| (Value::from(name), value));
        let variables: Value = conversation
            .variables(words)
            .into_iter()
            .chain(own)
            .collect();
        template.render(variables).map_err(|error| {
            if error.kind() == ErrorKind::OutOfFuel {
                return Error::OutOfFuel(fuel);
            }
            // Details of other kinds may quote values, and values are the client's text.
            let detail = if error.kind() == ErrorKind::InvalidOperation {
                error.detail()
            } else {
                None
            };
            Error::Render(detail.map_or_else(|| error.kind().to_string(), str::to_owned))
        })
    }

    /// The conversation as this template can write it: one that knows nothing of tools is told of
    /// them in words, and one that knows no developers takes them for the system.
    fn in_words_of_the_template<'a>(&self, chat: &'a Chat) -> Result<Cow<'a, Chat>, Error> {
        let mut chat = Cow::Borrowed(chat);
        let is_developer = |role: &str| role == "developer" && !self.source.contains("developer");
        if chat.messages.iter().any(|one| is_developer(&one.role)) {
            for message in &mut chat.to_mut().messages {
                if is_developer(&message.role) {
                    "system".clone_into(&mut message.role);
                }
            }
        }
        if self.tools == ToolFormat::Plain && plain_tools::is_needed(&chat, has_tools(&chat)) {
            let has_tools = has_tools(&chat);
            plain_tools::write(chat.to_mut(), has_tools)?;
        }
        Ok(chat)
    }

    /// Begins a call in the model's place, so that it can only go on with it.
    fn force_call(&self, prompt: &mut Rendered, chat: &Chat) {
        if prompt.text().trim_end().ends_with(THINK_START) {
            prompt.push_own(THINK_END);
            prompt.push_own("\n\n");
        }
        let name = Some(chat.tool_name.as_str()).filter(|name| !name.is_empty());
        prompt.force(&self.tools.opening(name));
    }
}

/// Whether the model is told of tools.
fn has_tools(chat: &Chat) -> bool {
    !chat.tools.is_empty() && chat.tool_mode() != ToolMode::None
}

/// Steps that a template may take for a conversation.
fn fuel(conversation: &Conversation<'_>) -> u64 {
    let text = (conversation.bytes() as u64).saturating_mul(BYTE_FUEL);
    let messages = (conversation.count() as u64).saturating_mul(MESSAGE_FUEL);
    FUEL.saturating_add(text).saturating_add(messages)
}
