//! What the schemas of tools ask of the calls of an answer.
//!
//! A call that has to be, or one of a tool that is strict, matches the schema of its tool. A schema
//! that cannot be enforced is refused where its tool is strict. Elsewhere as much of it is enforced
//! as can be, down to any JSON object, and the answer's usage says what was left out.

use std::sync::Arc;

use palimpsest_guide::{Error, Vocabulary, calls};
use palimpsest_proto::error::{Reason, RequestError};
use palimpsest_proto::internal::v1::CallGuide;
use palimpsest_proto::v1::{Guide, Tool};

use crate::model::ServedModel;
use crate::text::{AnswerFormat, Begun, GuidedTool};

/// Bytes that the schemas of all tools may have together.
const MAX_SCHEMA_BYTES: usize = palimpsest_guide::MAX_BYTES;

/// How the calls of an answer are guided.
#[derive(Debug, Clone, Default)]
pub struct GuidedCalls {
    /// `None`: nothing guides them.
    pub guide: Option<Arc<CallGuide>>,
    /// What the client should know.
    pub warnings: Vec<String>,
}

/// Makes and compiles the guide of an answer's calls, if its calls are guided. `answer` is what a
/// client asks of an answer that is no call. It takes as long as compiling a guide does: call it
/// where blocking is allowed.
///
/// # Errors
/// `BadChat` for the schema of a strict tool that cannot be enforced, `BadGuide` for an answer that
/// cannot be told from a call.
pub fn compile_calls(
    format: &AnswerFormat,
    answer: Option<&Guide>,
    model: &ServedModel,
) -> Result<GuidedCalls, RequestError> {
    // A call that must be leaves no room for another answer.
    let answer = answer.filter(|_| format.begun == Begun::Nothing);
    let has_shape = answer.is_some() && (format.channels || !format.asked.is_empty());
    if !format.is_strict() && !has_shape {
        return Ok(GuidedCalls::default());
    }
    let vocabulary = match model.guide_vocabulary() {
        Ok(vocabulary) => vocabulary,
        Err(error) => return unguided(format, answer, &error),
    };
    let expression = match answer.map(calls::answer).transpose() {
        Ok(expression) => expression,
        // It was compiled before.
        Err(error) => return Err(bad_answer(&error.to_string())),
    };
    if let Some(None) = expression {
        return beside_grammar(format);
    }
    let expression = expression.flatten();
    let made = |schemas: &Schemas| {
        let shape = format.shape(&schemas.tools, expression.as_deref());
        shape.grammar(&model.tokenizer)
    };
    let mut schemas = Schemas::read(&format.asked, None)?;
    let Some(mut guide) = made(&schemas) else {
        return Ok(GuidedCalls::default());
    };
    let mut checked = vocabulary.check_calls(&guide);
    if checked.is_err() {
        // It is one of them, and the others may stay as they are.
        schemas = Schemas::read(&format.asked, Some(vocabulary))?;
        guide = made(&schemas).unwrap_or_default();
        checked = vocabulary.check_calls(&guide);
    }
    let together = |error: &Error| format!("the schemas of the tools together: {error}");
    if let Err(error) = &checked
        && !format.asked.iter().any(|tool| tool.strict)
    {
        schemas = Schemas::of_any_object(&format.asked, &together(error));
        guide = made(&schemas).unwrap_or_default();
        checked = vocabulary.check_calls(&guide);
    }
    let checked = checked.map_err(|error| bad_tools(together(&error)))?;
    let warning = |what: String| format!("tools: {what}");
    schemas.warnings.extend(checked.into_iter().map(warning));
    Ok(GuidedCalls {
        guide: Some(Arc::new(guide)),
        warnings: schemas.warnings,
    })
}

/// The answer of a model whose tokenizer does not say what guides need to know.
fn unguided(
    format: &AnswerFormat,
    answer: Option<&Guide>,
    error: &Error,
) -> Result<GuidedCalls, RequestError> {
    if answer.is_some() {
        return Err(bad_answer(&error.to_string()));
    }
    let is_open = format.begun != Begun::Nothing && format.forced.is_empty();
    if is_open || format.asked.iter().any(|tool| tool.strict) {
        return Err(bad_tools(error.to_string()));
    }
    Ok(GuidedCalls {
        guide: None,
        warnings: vec![format!("tools: calls do not follow schemas: {error}")],
    })
}

/// The rules of a client's grammar cannot stand in another grammar: where calls may come, it guides
/// the whole answer as it does without tools.
fn beside_grammar(format: &AnswerFormat) -> Result<GuidedCalls, RequestError> {
    if format.channels {
        let message = "a grammar cannot guide the answers of a model whose messages have \
                       channels: send a schema, an expression or a choice";
        return Err(bad_answer(message));
    }
    Ok(GuidedCalls::default())
}

/// The schemas of tools, as a grammar has them.
struct Schemas {
    tools: Vec<GuidedTool>,
    warnings: Vec<String>,
}

impl Schemas {
    /// Any object for every tool, because of `what`.
    fn of_any_object(asked: &[Tool], what: &str) -> Self {
        let tool = |tool: &Tool| GuidedTool {
            name: tool.name.clone(),
            schema: calls::any_arguments(),
        };
        Self {
            tools: asked.iter().map(tool).collect(),
            warnings: vec![format!("tools: arguments are any JSON object: {what}")],
        }
    }

    /// Reads them, and compiles each alone where there is a vocabulary.
    fn read(asked: &[Tool], vocabulary: Option<&Vocabulary>) -> Result<Self, RequestError> {
        let mut schemas = Self {
            tools: Vec::with_capacity(asked.len()),
            warnings: Vec::new(),
        };
        let mut bytes = 0;
        for (index, tool) in asked.iter().enumerate() {
            let read = read_schema(tool, vocabulary, MAX_SCHEMA_BYTES - bytes);
            let schema = match read {
                Ok(schema) => schema,
                Err(error) if tool.strict => {
                    let message = format!(
                        "the parameters of tools[{index}] cannot be enforced, and it is strict: \
                         {error}"
                    );
                    return Err(bad_tools(message));
                }
                Err(error) => {
                    let name = &tool.name;
                    let warning = format!(
                        "tools: the arguments of {name} are any JSON object, because its \
                         parameters cannot be enforced: {error}"
                    );
                    schemas.warnings.push(warning);
                    calls::any_arguments()
                }
            };
            bytes += schema.len().min(MAX_SCHEMA_BYTES - bytes);
            schemas.tools.push(GuidedTool {
                name: tool.name.clone(),
                schema,
            });
        }
        Ok(schemas)
    }
}

/// The schema of one tool in no more than `room` bytes, which compiles where that is asked for.
fn read_schema(tool: &Tool, vocabulary: Option<&Vocabulary>, room: usize) -> Result<String, Error> {
    let schema = calls::arguments(&tool.parameters, !tool.strict)?;
    if schema.len() > room {
        return Err(Error::TooLong {
            bytes: schema.len(),
            most: room,
        });
    }
    if let Some(vocabulary) = vocabulary {
        vocabulary.check_calls(&CallGuide {
            grammar: format!("start: %json {schema}\n"),
            control_tokens: Vec::new(),
        })?;
    }
    Ok(schema)
}

fn bad_tools(message: String) -> RequestError {
    RequestError::new(Reason::BadChat, message).in_field("chat.tools")
}

fn bad_answer(message: &str) -> RequestError {
    RequestError::new(Reason::BadGuide, message).in_field("guide")
}
