//! Pages of the messages before an answer.

use serde::Serialize;

use super::super::error::{HttpError, shorten};
use super::object::{Item, answer_id, message_id, write_json};
use super::refusal::unknown_parameter;
use crate::responses::Record;

/// Messages of a page when a client does not say, and at most, as in OpenAI's API.
const PAGE: usize = 20;
const MOST: usize = 100;

/// Which messages a client asks for.
#[derive(Debug, PartialEq, Eq)]
pub struct Page {
    limit: usize,
    /// The oldest first.
    is_ascending: bool,
    /// Name of the message before them.
    after: Option<String>,
}

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    first_id: Option<&'a str>,
    last_id: Option<&'a str>,
    has_more: bool,
    data: &'a [Item<'a>],
}

impl Page {
    /// The page that the parameters of a query name.
    ///
    /// # Errors
    /// Names the parameter that is wrong.
    pub fn parse(parameters: &[(String, String)]) -> Result<Self, HttpError> {
        let mut page = Self {
            limit: PAGE,
            is_ascending: false,
            after: None,
        };
        for (name, value) in parameters {
            match (name.as_str(), value.as_str()) {
                ("limit", value) => {
                    let limit = value
                        .parse()
                        .ok()
                        .filter(|limit| (1..=MOST).contains(limit));
                    page.limit = limit.ok_or_else(|| {
                        HttpError::invalid("limit", format!("limit is a number from 1 to {MOST}"))
                    })?;
                }
                ("order", "asc") => page.is_ascending = true,
                ("order", "desc") => page.is_ascending = false,
                ("order", _) => {
                    return Err(HttpError::invalid("order", "order is `asc` or `desc`"));
                }
                ("after", value) => page.after = Some(value.to_owned()),
                ("include" | "include[]", _) => {}
                (other, _) => return Err(unknown_parameter(other)),
            }
        }
        Ok(page)
    }

    /// The page of the messages of these turns, without the answer of the last one.
    ///
    /// # Errors
    /// If there is no message of the name that it goes on from.
    pub fn write(&self, turns: &[Record]) -> Result<Vec<u8>, HttpError> {
        let mut places = places(turns);
        if !self.is_ascending {
            places.reverse();
        }
        let from = match &self.after {
            None => 0,
            Some(after) => {
                let found = places.iter().position(|place| place.id() == *after);
                let unknown = || {
                    let message = format!("there is no item `{}` in this list", shorten(after));
                    HttpError::invalid("after", message)
                };
                found.ok_or_else(unknown)? + 1
            }
        };
        let rest = &places[from..];
        let shown = &rest[..rest.len().min(self.limit)];
        let ids: Vec<String> = shown.iter().map(Place::id).collect();
        let data: Vec<Item<'_>> = shown.iter().map(Place::item).collect();
        Ok(write_json(&List {
            object: "list",
            first_id: ids.first().map(String::as_str),
            last_id: ids.last().map(String::as_str),
            has_more: rest.len() > shown.len(),
            data: &data,
        }))
    }
}

/// Where a message is.
#[derive(Clone, Copy)]
struct Place<'a> {
    turn: &'a Record,
    /// Which of the messages that came; `None`: the answer.
    index: Option<usize>,
}

/// All messages, the oldest first.
fn places(turns: &[Record]) -> Vec<Place<'_>> {
    let mut places: Vec<_> = turns.iter().flat_map(places_of).collect();
    // The answer of the response itself is its output.
    places.pop();
    places
}

fn places_of(turn: &Record) -> impl Iterator<Item = Place<'_>> {
    let came = (0..turn.input.len()).map(Some);
    came.chain([None]).map(move |index| Place { turn, index })
}

impl<'a> Place<'a> {
    fn id(&self) -> String {
        match self.index {
            Some(index) => message_id(self.turn.id, index),
            None => answer_id(self.turn.id),
        }
    }

    fn item(&self) -> Item<'a> {
        match self.index {
            Some(index) => Item::message(self.turn.id, index, &self.turn.input[index]),
            None => Item::answer(self.turn),
        }
    }
}
