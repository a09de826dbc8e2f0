//! A guide of the API, as the library takes it.

use llguidance::api::TopLevelGrammar;
use palimpsest_proto::v1::Guide;
use palimpsest_proto::v1::guide::Kind;
use serde_json::{Map, Value, json};

use crate::cost;
use crate::error::Error;
use crate::limits::{MAX_BYTES, MAX_GRAMMAR_BYTES};

/// What may stand between two parts of a JSON value: a space, or a line break and an indentation.
const WHITESPACE: &str = r" |\n {0,16}";

/// The key of a schema that the library's own options stand under.
const OPTIONS: &str = "x-guidance";

/// Refuses a guide of more text than one may have. It takes no time.
///
/// # Errors
/// [`Error::TooLong`].
pub fn check_size(guide: &Guide) -> Result<(), Error> {
    let most = match guide.kind {
        Some(Kind::Grammar(_)) => MAX_GRAMMAR_BYTES,
        _ => MAX_BYTES,
    };
    let bytes = guide.bytes();
    if bytes > most {
        return Err(Error::TooLong { bytes, most });
    }
    Ok(())
}

/// What the library compiles.
pub(crate) fn grammar(guide: &Guide) -> Result<TopLevelGrammar, Error> {
    check_size(guide)?;
    let Some(kind) = &guide.kind else {
        return Err(Error::Empty(
            "a guide is one of json_schema, json_object, regex, choice, grammar",
        ));
    };
    Ok(match kind {
        Kind::JsonSchema(text) => schema(text, guide.lenient)?,
        Kind::JsonObject(true) => {
            let object = with_options(Map::from_iter([object_type()]), false);
            TopLevelGrammar::from_json_schema(object)
        }
        Kind::JsonObject(false) => return Err(Error::Empty("json_object is true, or left out")),
        Kind::Regex(expression) => TopLevelGrammar::from_regex(expression),
        Kind::Choice(choice) => choice_of(&choice.texts)?,
        Kind::Grammar(text) if text.trim().is_empty() => {
            return Err(Error::Empty("the grammar is empty"));
        }
        Kind::Grammar(text) if text.contains("%json") => {
            return Err(Error::Empty(
                "a grammar has no %json here: send the schema as a guide",
            ));
        }
        Kind::Grammar(text) => TopLevelGrammar::from_lark(text.clone()),
    })
}

fn object_type() -> (String, Value) {
    ("type".to_owned(), json!("object"))
}

fn schema(text: &str, lenient: bool) -> Result<TopLevelGrammar, Error> {
    let read = serde_json::from_str(text);
    // The library reads its text again, as what it is not; its place is of use.
    let value = read.map_err(|error| Error::Refused(format!("not JSON: {error}")))?;
    cost::check(&value)?;
    let schema = match value {
        Value::Object(schema) => schema,
        // Any value.
        Value::Bool(true) => Map::new(),
        _ => return Err(Error::Refused("a schema is a JSON object".to_owned())),
    };
    Ok(TopLevelGrammar::from_json_schema(with_options(
        schema, lenient,
    )))
}

/// The schema with our options, and those of the client before them.
pub(crate) fn with_options(mut schema: Map<String, Value>, lenient: bool) -> Value {
    let mut options = json!({"whitespace_pattern": WHITESPACE, "lenient": lenient});
    if let Some(Value::Object(own)) = schema.get(OPTIONS)
        && let Some(options) = options.as_object_mut()
    {
        options.extend(own.clone());
    }
    schema.insert(OPTIONS.to_owned(), options);
    Value::Object(schema)
}

/// A grammar of literals.
fn choice_of(texts: &[String]) -> Result<TopLevelGrammar, Error> {
    let rule = format!("start: {}\n", literals(texts)?);
    Ok(TopLevelGrammar::from_lark(rule))
}

/// Texts of which one stands there, as Lark has them.
pub(crate) fn literals(texts: &[String]) -> Result<String, Error> {
    if texts.is_empty() {
        return Err(Error::Empty("a choice needs at least one text"));
    }
    // Lark's literals are JSON's strings, but for a letter that they have by its number alone.
    let literal = |text: &String| json!(text).to_string().replace('\u{7f}', "\\u007f");
    let literals: Vec<String> = texts.iter().map(literal).collect();
    Ok(literals.join(" | "))
}
