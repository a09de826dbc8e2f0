//! The guide of a request: what can be seen of it at once, and whether it can be compiled. Guides
//! are what a client asks of an answer, and what the schemas of tools ask of its calls.

mod calls;

use palimpsest_guide::Error;
use palimpsest_proto::error::{Reason, RequestError};
use palimpsest_proto::v1::{Guide, Stopping};

pub use self::calls::{GuidedCalls, compile_calls};
use crate::model::ServedModel;

/// Checks what takes no time.
pub(super) fn validate(guide: &Guide, stopping: &Stopping) -> Result<(), RequestError> {
    palimpsest_guide::check_size(guide).map_err(|error| refused(guide, &error))?;
    check_end(stopping.ignore_eos, stopping.min_tokens, "a guide")
}

/// Refuses what keeps a guided answer from its end. `by`: what guides it.
pub(super) fn check_end(
    ignore_eos: bool,
    min_tokens: u32,
    by: &'static str,
) -> Result<(), RequestError> {
    let bad = |field: &str, path| {
        let message =
            format!("{field} does not go with {by}: an answer that is complete has to end");
        Err(RequestError::new(Reason::BadStopping, message).in_field(path))
    };
    if ignore_eos {
        return bad("ignore_eos", "stopping.ignore_eos");
    }
    if min_tokens > 0 {
        return bad("min_tokens", "stopping.min_tokens");
    }
    Ok(())
}

/// Compiles a guide, and returns what the client should know of it. It takes tens of milliseconds,
/// and more for the first guide: call it where blocking is allowed.
///
/// # Errors
/// `BadGuide`, with the reason and the place.
pub fn compile(guide: &Guide, model: &ServedModel) -> Result<Vec<String>, RequestError> {
    let vocabulary = model.guide_vocabulary();
    let checked = vocabulary.and_then(|vocabulary| vocabulary.check(guide));
    let warnings = checked.map_err(|error| refused(guide, &error))?;
    let warning = |what| format!("{}: {what}", guide.field());
    Ok(warnings.into_iter().map(warning).collect())
}

fn refused(guide: &Guide, error: &Error) -> RequestError {
    let field = guide.field();
    RequestError::new(Reason::BadGuide, format!("{field}: {error}")).in_field(field)
}
