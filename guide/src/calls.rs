//! Guides of answers in which tools are called: what a schema of arguments becomes, and the grammar
//! around it.

use llguidance::api::TopLevelGrammar;
use palimpsest_proto::internal::v1::CallGuide;
use palimpsest_proto::v1::Guide;
use palimpsest_proto::v1::guide::Kind;
use serde_json::{Map, Value, json};

use crate::cost;
use crate::error::Error;
use crate::grammar::{check_size, literals, with_options};
use crate::limits::{MAX_BYTES, MAX_CALLS_BYTES};

/// The schema of a tool's arguments as a grammar of calls has it behind `%json`, from the text that
/// a client sent; an empty one is any object. `lenient`: keywords that cannot be enforced are left
/// out.
///
/// # Errors
/// [`Error::TooLong`], and [`Error::Refused`] for what is no schema of an object or costs too much.
pub fn arguments(schema: &str, lenient: bool) -> Result<String, Error> {
    if schema.len() > MAX_BYTES {
        return Err(Error::TooLong {
            bytes: schema.len(),
            most: MAX_BYTES,
        });
    }
    let schema = match schema.trim() {
        "" => Map::new(),
        text => read(text)?,
    };
    Ok(schema_of(schema, lenient)?.to_string())
}

/// A schema that any object matches, for arguments that no other guides.
pub fn any_arguments() -> String {
    let object = Map::from_iter([("type".to_owned(), json!("object"))]);
    with_options(object, false).to_string()
}

/// What a client asks of an answer, as an expression of a grammar in which calls may stand in its
/// place; `None` for a grammar, whose rules cannot stand in another.
///
/// # Errors
/// What is wrong with the guide.
pub fn answer(guide: &Guide) -> Result<Option<String>, Error> {
    check_size(guide)?;
    Ok(Some(match &guide.kind {
        Some(Kind::JsonSchema(text)) => {
            let schema = read(text)?;
            cost::check(&Value::Object(schema.clone()))?;
            format!("%json {}", with_options(schema, guide.lenient))
        }
        Some(Kind::JsonObject(true)) => format!("%json {}", any_arguments()),
        Some(Kind::Regex(expression)) => lark_regex(expression),
        Some(Kind::Choice(choice)) => format!("({})", literals(&choice.texts)?),
        Some(Kind::JsonObject(false) | Kind::Grammar(_)) | None => return Ok(None),
    }))
}

/// A regular expression between the slashes that Lark has around one.
fn lark_regex(expression: &str) -> String {
    let mut out = "/".to_owned();
    let mut escaped = false;
    for c in expression.chars() {
        if c == '/' && !escaped {
            out.push('\\');
        }
        out.push(c);
        escaped = c == '\\' && !escaped;
    }
    out.push('/');
    // Two slashes begin a comment, and an empty text matches the same.
    if out == "//" { "\"\"".to_owned() } else { out }
}

fn read(text: &str) -> Result<Map<String, Value>, Error> {
    match serde_json::from_str(text) {
        Ok(Value::Object(schema)) => Ok(schema),
        Ok(Value::Bool(true)) => Ok(Map::new()),
        Ok(_) => Err(Error::Refused("a schema is a JSON object".to_owned())),
        Err(error) => Err(Error::Refused(format!("not JSON: {error}"))),
    }
}

fn schema_of(mut schema: Map<String, Value>, lenient: bool) -> Result<Value, Error> {
    // Whoever reads a call takes an object for its arguments and nothing else.
    let kind = schema.entry("type").or_insert_with(|| json!("object"));
    if kind != "object" {
        let message = "the schema of a tool's arguments must have the type object".to_owned();
        return Err(Error::Refused(message));
    }
    let value = Value::Object(schema);
    cost::check(&value)?;
    match value {
        Value::Object(schema) => Ok(with_options(schema, lenient)),
        other => Ok(other),
    }
}

/// What the library compiles.
pub(crate) fn grammar(guide: &CallGuide) -> Result<TopLevelGrammar, Error> {
    let bytes = guide.grammar.len();
    if bytes > MAX_CALLS_BYTES {
        return Err(Error::TooLong {
            bytes,
            most: MAX_CALLS_BYTES,
        });
    }
    Ok(TopLevelGrammar::from_lark(guide.grammar.clone()))
}
