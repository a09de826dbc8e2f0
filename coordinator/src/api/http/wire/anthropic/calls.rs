//! Calls of a conversation and their results: a turn with calls is followed by one result for each
//! of them, before anything else is said.

use std::collections::HashSet;

use crate::api::http::error::{HttpError, shorten};

/// Where a block stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) message: usize,
    pub(super) block: usize,
}

impl Place {
    /// The error of a field of this block.
    pub(super) fn wrong(self, field: &str, why: impl Into<String>) -> HttpError {
        let Self { message, block } = self;
        let field = format!("messages[{message}].content[{block}].{field}");
        HttpError::invalid(&field, why)
    }
}

/// The calls so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Calls {
    known: HashSet<String>,
    /// Those of the last turn that have no result yet.
    open: Vec<OpenCall>,
}

#[derive(Debug, Clone)]
struct OpenCall {
    id: String,
    name: String,
    place: Place,
}

impl Calls {
    /// Takes a call of the assistant.
    ///
    /// # Errors
    /// If another call has its id.
    pub(super) fn call(&mut self, id: &str, name: &str, place: Place) -> Result<(), HttpError> {
        if !self.known.insert(id.to_owned()) {
            let why = format!("`{}` is the id of an earlier call as well", shorten(id));
            return Err(place.wrong("id", why));
        }
        self.open.push(OpenCall {
            id: id.to_owned(),
            name: name.to_owned(),
            place,
        });
        Ok(())
    }

    /// Takes a result, and returns the name of its tool.
    ///
    /// # Errors
    /// If the turn before has no such call, or the call has a result.
    pub(super) fn result(&mut self, id: &str, place: Place) -> Result<String, HttpError> {
        let found = self.open.iter().position(|call| call.id == id);
        let Some(index) = found else {
            let why = format!(
                "`{}` is no call of the turn before that waits for a result: each `tool_use` has \
                 one `tool_result`, in the message behind it",
                shorten(id)
            );
            return Err(place.wrong("tool_use_id", why));
        };
        Ok(self.open.remove(index).name)
    }

    /// Says that something else than a result follows.
    ///
    /// # Errors
    /// If a call has no result.
    pub(super) fn pass(&self) -> Result<(), HttpError> {
        let Some(OpenCall { id, place, .. }) = self.open.first() else {
            return Ok(());
        };
        let why = format!(
            "`{}` has no `tool_result`: the message behind it must begin with one for each of its \
             calls",
            shorten(id)
        );
        Err(place.wrong("id", why))
    }
}
