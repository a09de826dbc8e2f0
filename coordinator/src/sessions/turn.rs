//! A request on a session, from the record that it reads to the one that it leaves.

use palimpsest_proto::contract::Field;
use palimpsest_proto::error::{Reason, RequestError};
use palimpsest_proto::v1::KvContract;
use palimpsest_proto::v1::generate_request::Input;

use super::error::broken;
use super::index::Hold;
use super::log::{Answered, Next, Opening, check_length};
use super::record::Record;
use super::records::Records;
use crate::config::Config;
use crate::model::ServedModel;
use crate::request::Prompt;

/// What the client is told when a conversation had to be tokenised whole.
const ANEW: &str = "the chat template wrote earlier messages in another way than before: the \
                    conversation was tokenised anew";

/// One request on a session, which no other can use meanwhile. Dropping it leaves the session as
/// it was.
#[derive(Debug)]
pub struct Turn {
    records: Records,
    hold: Hold,
    /// Without its log, once that has become a prompt.
    record: Record,
    next: Option<Next>,
    answer: Answer,
}

/// An answer as it comes.
#[derive(Debug, Default)]
struct Answer {
    pieces: Vec<Piece>,
    /// Bytes of text of all tokens so far.
    made: usize,
    /// What went to the client.
    delivered: String,
}

/// A token, and how much text there is up to it if that is whole.
#[derive(Debug, Clone, Copy)]
struct Piece {
    id: u32,
    end: Option<usize>,
}

impl Turn {
    pub(super) fn new(records: Records, hold: Hold, record: Record) -> Self {
        Self {
            records,
            hold,
            record,
            next: None,
            answer: Answer::default(),
        }
    }

    /// Name of the session.
    pub fn id(&self) -> &str {
        &self.record.id
    }

    /// Bytes that the turn holds, roughly: those of its record.
    pub fn weight(&self) -> usize {
        let log = &self.record.log;
        let messages = log.messages.iter();
        let text = messages.map(prost::Message::encoded_len);
        text.fold(size_of_val(&log.tokens[..]), usize::saturating_add)
    }

    /// The session's contract, for a request that asked for it or for nothing else.
    ///
    /// # Errors
    /// `SessionContract`, with the field.
    pub fn contract(&self, asked: &KvContract) -> Result<KvContract, RequestError> {
        let own = KvContract::from(&self.record.contract);
        let name = |asked: &str, own: &str| !asked.is_empty() && asked != own;
        let number = |asked: Option<u32>, own: Option<u32>| asked.is_some() && asked != own;
        let fields = [
            (
                Field::Budget,
                asked.budget != 0 && asked.budget != own.budget,
            ),
            (Field::Policy, name(&asked.policy, &own.policy)),
            (Field::Memory, name(&asked.memory, &own.memory)),
            (
                Field::HeadBudget,
                name(&asked.head_budget, &own.head_budget),
            ),
            (Field::Sinks, number(asked.sinks, own.sinks)),
            (Field::Window, number(asked.window, own.window)),
            (Field::Positions, name(&asked.positions, &own.positions)),
            (
                Field::MemorySlots,
                number(asked.memory_slots, own.memory_slots),
            ),
        ];
        let Some((field, _)) = fields.into_iter().find(|(_, differs)| *differs) else {
            return Ok(own);
        };
        let message = format!(
            "{} is another than that of the session {:?}: leave kv out, or make a session with \
             this contract",
            field.path(),
            self.id()
        );
        Err(RequestError::new(Reason::SessionContract, message).in_field(field.path()))
    }

    /// Makes the prompt of the log and an input. It takes time on long texts: call it where
    /// blocking is allowed.
    ///
    /// # Errors
    /// `BadSession`, `EmptyPrompt`, `TooLong`, and what is wrong with the input.
    pub fn extend(
        &mut self,
        input: Option<Input>,
        opening: Opening,
        model: &ServedModel,
        config: &Config,
    ) -> Result<Prompt, RequestError> {
        let log = std::mem::take(&mut self.record.log);
        let next = log.extend(input, opening, model, config)?;
        if next.prompt.is_empty() {
            let message = "neither the session nor the request has a token: send text, chat or \
                           token_ids";
            return Err(RequestError::new(Reason::EmptyPrompt, message));
        }
        check_length(next.prompt.len(), self.records.max_tokens())?;
        let prompt = Prompt {
            ids: next.prompt.clone(),
            format: next.format.clone(),
            ..Prompt::default()
        };
        self.next = Some(next);
        Ok(prompt)
    }

    /// What the client should know.
    pub fn warning(&self) -> Option<String> {
        let is_anew = self.next.as_ref().is_some_and(|next| next.is_anew);
        is_anew.then(|| ANEW.to_owned())
    }

    /// A token of the answer that is not its end, the bytes of text that it completed, and whether
    /// no part of a character waits for the next one.
    pub(crate) fn made(&mut self, id: u32, bytes: usize, is_whole: bool) {
        self.answer.made += bytes;
        let end = is_whole.then_some(self.answer.made);
        self.answer.pieces.push(Piece { id, end });
    }

    /// Text that goes to the client.
    pub(crate) fn delivered(&mut self, text: &str) {
        self.answer.delivered.push_str(text);
    }

    /// Writes what the request leaves, before its client is told that it has finished. It goes on
    /// to its end if the client goes away meanwhile.
    ///
    /// # Errors
    /// `StoreUnavailable`, `SessionLimit`, `TooLong`, and the session is as it was before.
    pub async fn commit(self) -> Result<(), RequestError> {
        let written = tokio::spawn(self.write()).await;
        written.unwrap_or_else(|_| Err(broken()))
    }

    async fn write(self) -> Result<(), RequestError> {
        let Some(next) = self.next else {
            return Err(broken());
        };
        let record = Record {
            used: self.records.now(),
            log: next.answered(self.answer.whole()),
            ..self.record
        };
        self.records.write(self.hold, record).await?;
        Ok(())
    }
}

impl Answer {
    /// What of it stays: the tokens whose text was delivered whole, which a stop string may have
    /// cut, and all text that was delivered.
    fn whole(self) -> Answered {
        let text = self.delivered;
        let fits = |piece: &Piece| piece.end.is_some_and(|end| end <= text.len());
        let kept = self.pieces.iter().rposition(fits).map_or(0, |at| at + 1);
        let pieces = &self.pieces[..kept];
        Answered {
            tokens: pieces.iter().map(|piece| piece.id).collect(),
            whole: pieces.last().and_then(|piece| piece.end).unwrap_or(0),
            text,
        }
    }
}
